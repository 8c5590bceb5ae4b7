"""The elector against faults; contenders on a real API server are in the integration tier."""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from berth.kube.client import KubeClient
from berth.kube.elector import Elector, LeadershipLost
from berth.metrics import Metrics
from tests.unit.kube.scripted import ScriptedServer, Step, answer, hang, refusal, reset


def lease(holder: str, version: int = 1, **spec: Any) -> Step:
    body = {"metadata": {"resourceVersion": str(version)}, "spec": {"holderIdentity": holder, **spec}}
    return answer(200, body)


def held(holder: str, version: int = 1) -> Step:
    return lease(holder, version, leaseDurationSeconds=1, renewTime="2026-01-01T00:00:00.000000Z")


class Clock:
    """The real one, which a test can push forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


PATIENT = {"duration": 30.0, "renew_deadline": 20.0, "retry": 10.0}
"""For what happens at once, however busy the machine is."""


def elector(client: KubeClient, **options: Any) -> Elector:
    times = {"duration": 1.0, "renew_deadline": 0.5, "retry": 0.02}
    return Elector(client, "berth-system", "berth", "me", rng=random.Random(1), **{**times, **options})


async def lost(contender: Elector) -> str:
    async with asyncio.timeout(10):
        with pytest.raises(LeadershipLost) as caught:
            await contender.hold()
    with pytest.raises(LeadershipLost):
        contender.check()
    return str(caught.value)


async def test_nobody_leads_before_the_lease_is_taken(client: KubeClient) -> None:
    with pytest.raises(LeadershipLost, match="me does not hold Lease berth-system/berth"):
        elector(client).check()


async def test_a_missing_lease_is_created(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), held("me")]
    contender = elector(client)
    await contender.acquire()
    contender.check()
    created = server.requests[1]
    assert created.method == "POST"
    assert created.body["spec"]["holderIdentity"] == "me"
    assert created.body["spec"]["leaseDurationSeconds"] == 1


async def test_times_are_utc_with_microseconds_wherever_the_process_runs(
    client: KubeClient, server: ScriptedServer
) -> None:
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    server.script = [refusal(404), held("me")]
    await elector(client, utc=lambda: datetime.datetime(2026, 3, 1, 4, 5, 6, 0, tokyo)).acquire()
    spec = server.requests[1].body["spec"]
    assert spec["renewTime"] == spec["acquireTime"] == "2026-02-28T19:05:06.000000Z"


async def test_losing_the_race_to_create_is_not_leading(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), refusal(409, "AlreadyExists"), lease("other", leaseDurationSeconds=60)]
    contender = elector(client)
    taking = asyncio.create_task(contender.acquire())
    while len(server.requests) < 4:
        await asyncio.sleep(0.005)
    assert not taking.done()
    taking.cancel()


async def test_losing_the_race_for_a_free_lease_is_not_leading(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [lease(""), refusal(409, "Conflict"), lease("other", leaseDurationSeconds=60)]
    contender = elector(client)
    taking = asyncio.create_task(contender.acquire())
    while len(server.requests) < 4:
        await asyncio.sleep(0.005)
    assert not taking.done()
    taking.cancel()


async def test_a_holder_that_was_seen_silent_for_its_duration_is_replaced_whatever_its_time_says(
    client: KubeClient, server: ScriptedServer
) -> None:
    clock = Clock()
    future = lease("other", 7, leaseDurationSeconds=15, renewTime="2099-01-01T00:00:00.000000Z", leaseTransitions=4)
    server.then = future
    contender = elector(client, now=clock)
    taking = asyncio.create_task(contender.acquire())
    while len(server.requests) < 3:
        await asyncio.sleep(0.005)
    assert not taking.done(), "an old Lease seen for the first time is not yet an expired one"
    clock.ahead = 15.1
    server.script = [future, held("me")]
    async with asyncio.timeout(5):
        await taking
    patch = server.requests[-1]
    assert patch.method == "PATCH"
    assert patch.body["metadata"] == {"resourceVersion": "7"}
    assert patch.body["spec"]["leaseTransitions"] == 5


async def test_a_holder_that_renews_is_never_replaced(client: KubeClient, server: ScriptedServer) -> None:
    clock = Clock()
    contender = elector(client, now=clock)
    server.script = [lease("other", n, leaseDurationSeconds=1, renewTime=str(n)) for n in range(10)]
    taking = asyncio.create_task(contender.acquire())
    for count in range(1, 10):
        while len(server.requests) < count:
            await asyncio.sleep(0.002)
        clock.ahead += 0.9
    assert not taking.done()
    assert {request.method for request in server.requests} == {"GET"}
    taking.cancel()


async def test_errors_do_not_end_the_attempts_to_lead(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(500), reset, hang, refusal(403), answer(200, "nonsense"), lease(""), held("me")]
    contender = elector(client)
    async with asyncio.timeout(5):
        await contender.acquire()
    contender.check()


async def test_renewals_keep_the_lead(client: KubeClient, server: ScriptedServer) -> None:
    metrics = Metrics()
    server.script = [refusal(404), held("me", 1)]
    clock = Clock()
    contender = elector(client, metrics=metrics, now=clock, duration=100.0, renew_deadline=50.0)
    await contender.acquire()
    server.then = held("me", 2)
    holding = asyncio.create_task(contender.hold())
    for sent in range(4, 12):
        while len(server.requests) < sent:  # so the one before was answered
            await asyncio.sleep(0.005)
        clock.ahead += 30
        contender.check()
    assert not holding.done()
    assert "berth_leader 1.0" in metrics.render().decode()
    assert [request.body["metadata"]["resourceVersion"] for request in server.requests[2:5]] == ["1", "2", "2"]
    holding.cancel()
    await asyncio.wait([holding])
    with pytest.raises(LeadershipLost):
        contender.check()
    assert "berth_leader 0.0" in metrics.render().decode()


async def test_a_server_that_hangs_ends_the_lead_before_anybody_else_may_start(
    api: ApiClient, server: ScriptedServer
) -> None:
    server.script = [refusal(404), held("me")]
    contender = elector(KubeClient(api))
    started = time.monotonic()
    await contender.acquire()
    assert "past its deadline" in await lost(contender)
    assert time.monotonic() - started >= 0.4
    assert len(server.requests) > 3, "one hanging connection is not the end of the attempts"


async def test_a_server_that_refuses_ends_the_lead_at_the_deadline_not_before(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [refusal(404), held("me")]
    server.then = refusal(500)
    contender = elector(client)
    started = time.monotonic()
    await contender.acquire()
    await lost(contender)
    assert time.monotonic() - started >= 0.4
    assert len(server.requests) > 5


async def test_a_lost_answer_to_a_renewal_is_found_out_and_survived(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), held("me", 1), reset, refusal(409, "Conflict"), held("me", 2), held("me", 3)]
    contender = elector(client)
    await contender.acquire()
    holding = asyncio.create_task(contender.hold())
    while len(server.requests) < 6:
        await asyncio.sleep(0.005)
    contender.check()
    assert server.requests[5].body["metadata"]["resourceVersion"] == "2"
    holding.cancel()


async def test_another_holder_ends_the_lead_at_once(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), held("me"), refusal(409, "Conflict"), held("other")]
    contender = elector(client)
    await contender.acquire()
    assert "held by other" in await lost(contender)


@pytest.mark.parametrize("script", [[refusal(404)], [refusal(409, "Conflict"), refusal(404)]])
async def test_a_deleted_lease_ends_the_lead(client: KubeClient, server: ScriptedServer, script: list[Step]) -> None:
    server.script = [refusal(404), held("me"), *script]
    contender = elector(client)
    await contender.acquire()
    assert "was deleted" in await lost(contender)


async def test_a_machine_that_slept_does_not_lead_when_it_wakes(client: KubeClient, server: ScriptedServer) -> None:
    clock = Clock()
    server.script = [refusal(404), held("me")]
    contender = elector(client, now=clock)
    await contender.acquire()
    contender.check()
    clock.ahead = 60
    with pytest.raises(LeadershipLost, match=r"59\.\d s past its deadline"):
        contender.check()


async def test_an_answer_that_arrives_after_the_deadline_does_not_bring_the_lead_back(
    client: KubeClient, server: ScriptedServer
) -> None:
    clock = Clock()

    async def late(writer: asyncio.StreamWriter) -> None:
        clock.ahead = 60
        await held("me", 2)(writer)

    server.script = [refusal(404), held("me"), late]
    server.then = held("me", 3)
    contender = elector(client, now=clock)
    await contender.acquire()
    assert "past its deadline" in await lost(contender)


async def test_giving_the_lease_back_frees_it_for_others(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), held("me", 5), lease("", 6)]
    contender = elector(client, **PATIENT)
    await contender.acquire()
    await contender.release()
    with pytest.raises(LeadershipLost):
        contender.check()
    freed = server.requests[2].body
    assert freed["spec"]["holderIdentity"] == ""
    assert freed["metadata"]["resourceVersion"] == "5"
    await contender.release()
    assert len(server.requests) == 3


async def test_a_renewal_cut_short_does_not_keep_the_lease_from_being_given_back(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [refusal(404), held("me", 5), refusal(409, "Conflict"), held("me", 6), lease("", 7)]
    contender = elector(client, **PATIENT)
    await contender.acquire()
    await contender.release()
    assert contender.holder == ""
    assert server.requests[4].body["metadata"]["resourceVersion"] == "6"


async def test_a_lease_taken_meanwhile_is_not_given_away(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(404), held("me", 5), refusal(409, "Conflict"), held("other", 6)]
    contender = elector(client, **PATIENT)
    await contender.acquire()
    await contender.release()
    assert [request.method for request in server.requests] == ["GET", "POST", "PATCH", "GET"]


async def test_giving_back_a_lease_that_is_anothers_or_unreachable_changes_nothing(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [refusal(404), held("me"), hang]
    contender = elector(client)
    await contender.acquire()
    async with asyncio.timeout(10):
        await contender.release()
    server.script = [lease("other", leaseDurationSeconds=60)]
    stranger = elector(client)
    task = asyncio.create_task(stranger.acquire())
    while stranger.holder != "other":
        await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.wait([task])
    before = len(server.requests)
    await stranger.release()
    assert len(server.requests) == before


def test_times_that_could_give_two_leaders_are_refused(client: KubeClient) -> None:
    with pytest.raises(ValueError, match="retry < renew_deadline < duration"):
        elector(client, renew_deadline=1.0)
