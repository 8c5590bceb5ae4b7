"""Contenders for one Lease on a real API server, each with its own network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from kubernetes.aio.client import ApiClient

from berth.kube.auth import configuration
from berth.kube.client import KubeClient
from berth.kube.elector import Elector, LeadershipLost
from berth.kube.kinds import LEASE
from berth.local.controlplane import ControlPlane
from tests.support.cluster import eventually
from tests.support.fault_proxy import FaultProxy, LoseReply, Refuse

DURATION, DEADLINE, RETRY = 3.0, 2.0, 0.3


@dataclass
class Contender:
    """One process: acquires, holds, and remembers when it led."""

    elector: Elector
    proxy: FaultProxy
    task: asyncio.Task[None] = field(init=False)
    lost: str = ""

    def __post_init__(self) -> None:
        self.task = asyncio.create_task(self.live())

    async def live(self) -> None:
        await self.elector.acquire()
        try:
            await self.elector.hold()
        except LeadershipLost as error:
            self.lost = str(error)

    def leads(self) -> bool:
        try:
            self.elector.check()
        except LeadershipLost:
            return False
        return True

    async def leading(self) -> bool:
        return self.leads()


class Contest:
    """Makes contenders, and watches all the time that no two lead."""

    def __init__(self, control_plane: ControlPlane, namespace: str, stack: AsyncExitStack) -> None:
        self.contenders: list[Contender] = []
        self._control_plane = control_plane
        self._namespace = namespace
        self._stack = stack

    async def join(self, identity: str) -> Contender:
        proxy = await self._stack.enter_async_context(FaultProxy(self._control_plane))
        config = await configuration(str(self._control_plane.kubeconfig))
        config.host = proxy.url
        api = await self._stack.enter_async_context(ApiClient(config))
        times = {"duration": DURATION, "renew_deadline": DEADLINE, "retry": RETRY}
        contender = Contender(Elector(KubeClient(api), self._namespace, "berth", identity, **times), proxy)
        self.contenders.append(contender)
        return contender

    async def referee(self) -> None:
        while True:
            leaders = [each.elector.identity for each in self.contenders if each.leads()]
            assert len(leaders) <= 1, leaders
            await asyncio.sleep(0.005)


@pytest.fixture
async def contest(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Contest]:
    async with AsyncExitStack() as stack:
        contest = Contest(control_plane, namespace, stack)
        referee = asyncio.create_task(contest.referee())
        yield contest
        for task in [referee, *(each.task for each in contest.contenders)]:
            if not task.done():
                task.cancel()
        await asyncio.wait([each.task for each in contest.contenders])
        assert referee.cancelled() or not referee.done() or referee.exception() is None


async def test_of_two_that_start_together_one_leads(contest: Contest, client: KubeClient, namespace: str) -> None:
    first, second = await contest.join("first"), await contest.join("second")

    async def decided() -> bool:
        return first.leads() or second.leads()

    await eventually(decided)
    lease = await client.get(LEASE, namespace, "berth")
    assert lease["spec"]["holderIdentity"] == ("first" if first.leads() else "second")
    await asyncio.sleep(DURATION + 1)
    assert first.leads() != second.leads()
    renewed = await client.get(LEASE, namespace, "berth")
    assert renewed["spec"]["holderIdentity"] == lease["spec"]["holderIdentity"]
    assert renewed["spec"]["renewTime"] > lease["spec"]["renewTime"]
    assert renewed["spec"]["leaseTransitions"] == 0


async def test_a_leader_cut_off_stops_before_the_other_starts(
    contest: Contest, client: KubeClient, namespace: str
) -> None:
    first = await contest.join("first")
    await eventually(first.leading)
    second = await contest.join("second")
    cut = time.monotonic()
    first.proxy.partition()
    await eventually(second.leading)
    took = time.monotonic() - cut
    assert "past its deadline" in first.lost
    assert DURATION - RETRY <= took < DURATION + 4 * RETRY + 1
    lease = await client.get(LEASE, namespace, "berth")
    assert lease["spec"]["holderIdentity"] == "second"
    assert lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_stops_politely_is_followed_at_once(contest: Contest) -> None:
    first = await contest.join("first")
    await eventually(first.leading)
    second = await contest.join("second")
    await asyncio.sleep(2 * RETRY)
    first.task.cancel()
    await asyncio.wait([first.task])
    freed = time.monotonic()
    await first.elector.release()
    await eventually(second.leading)
    assert time.monotonic() - freed < 2 * RETRY + 0.5


async def test_a_leader_whose_answers_get_lost_or_refused_for_a_while_goes_on(contest: Contest) -> None:
    first = await contest.join("first")
    await eventually(first.leading)
    first.proxy.inject(LoseReply(), resource="leases", verb="patch", times=2)
    first.proxy.inject(Refuse(503), resource="leases", times=2)
    second = await contest.join("second")
    await asyncio.sleep(DURATION + 1)
    assert first.leads()
    assert not second.leads()


async def test_a_lease_that_somebody_else_takes_by_force_is_given_up(
    contest: Contest, client: KubeClient, namespace: str
) -> None:
    first = await contest.join("first")
    await eventually(first.leading)
    await client.merge_patch(LEASE, namespace, "berth", {"spec": {"holderIdentity": "usurper"}})
    await asyncio.wait_for(first.task, DEADLINE + 2)
    assert "held by usurper" in first.lost
    assert not first.leads()
