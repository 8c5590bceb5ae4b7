"""Edits of a spec: which replace pods, in which order, and what happens when the new revision or the room is bad."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.controller.conftest import Change, Site
from tests.support.berth import Clock, RunningBerth
from tests.support.cluster import eventually


def serving_over_time(changes: list[Change], at_first: set[str]) -> list[set[str]]:
    """Which pods could get requests after each change."""
    now, history = set(at_first), []
    for change in changes:
        serves = change.object["metadata"]["labels"].get("berth.dev/serving") == "true"
        if serves and change.type != "DELETED" and "deletionTimestamp" not in change.object["metadata"]:
            now = now | {change.name}
        else:
            now = now - {change.name}
        history.append(now)
    return history


async def test_a_new_revision_comes_group_by_group_and_serves_before_the_old_one_leaves(
    site: Site, berth: RunningBerth
) -> None:
    await site.create(site.deployment(await site.pool(), groups=3), update={"deadline": "10m"})
    await site.settled()
    before = await site.serving()
    async with site.recording("pods") as changes:
        await site.new_revision()
        found = await site.settled()
    history = serving_over_time(changes, before)
    assert min(map(len, history)) == 3, "never fewer serve than before"
    assert max(map(len, history)) == 4, "one at a time"
    assert not history[-1] & before
    assert len(await site.pods()) == len(await site.groups()) == 3
    assert {group["spec"]["incarnation"] for group in await site.groups()} == {2}
    assert found["status"]["summary"] == {**found["status"]["summary"], "ready": "3/3", "message": "Ready"}


EDITS: dict[str, dict[str, Any]] = {
    "traffic": {
        "traffic": {
            "requestsPerSecond": "3",
            "inputTokens": {"mean": 100, "p95": 200, "max": 400},
            "outputTokens": {"mean": 100, "p95": 200, "maxRequested": 400},
        }
    },
    "objectives": {"objectives": {"availability": "0.99", "timePerOutputToken": {"p95": "40ms"}}},
    "availability": {"replicaGroups": {"minAvailable": 2, "drainTimeout": "10s"}},
    "update": {"update": {"surge": "Never", "maxUnavailable": 1}},
    "a default written down": {"engine": {"backend": "simulated", "multiNode": {"launcher": "Ray"}}},
}


async def test_edits_that_pods_do_not_depend_on_leave_them_alone(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    async with site.recording("pods", "replicagroups") as changes:
        for edit in EDITS.values():
            await site.patch({"spec": edit})
        await site.patch({"metadata": {"labels": {"team": "search"}, "annotations": {"note": "hello"}}})
        await site.settled()
    assert [(change.type, change.name) for change in changes] == []


async def test_without_room_an_update_waits_and_says_what_it_needs(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(nodes=1), tp=4, groups=2))
    await site.settled()
    before = await site.serving()
    await site.new_revision()
    await site.until("Stalled")
    stalled = await site.condition("Stalled")
    assert stalled["reason"] == "NoSurgePossible"
    assert "needs 4 more GPUs or one group less: needs 1 node x 4 GPUs, none free" in stalled["message"]
    assert stalled["message"].endswith("1 groups would be left, 1 are needed, update.maxUnavailable is 0")
    assert await site.serving() == before
    await site.patch({"spec": {"update": {"maxUnavailable": 1}}})
    async with site.recording("pods") as changes:
        await site.settled()
    assert not await site.serving() & before
    assert min(map(len, serving_over_time(changes, before))) == 1


async def test_an_update_that_waits_proceeds_when_a_node_comes(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=1)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    before = await site.serving()
    await site.new_revision()
    await site.until("Stalled")
    await site.node(pool, 1)
    await site.settled()
    assert not await site.serving() & before


async def test_needed_groups_bound_an_update_more_than_max_unavailable(site: Site, berth: RunningBerth) -> None:
    deployment = site.deployment(await site.pool(nodes=1), tp=4, groups=2)
    update = {"surge": "Never", "maxUnavailable": 2}
    await site.create(deployment, update=update, replicaGroups={"minAvailable": 2})
    await site.settled()
    before = await site.serving()
    await site.new_revision()
    await site.until("Stalled")
    message = (await site.condition("Stalled"))["message"]
    assert message.endswith("surge is Never; 1 groups would be left, 2 are needed, update.maxUnavailable is 2")
    assert await site.serving() == before


async def test_a_revision_that_never_serves_leaves_the_old_one_alone_and_is_given_up(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    recovery = {"recovery": {"maxFailures": 1}}
    await site.create(site.deployment(await site.pool()), update={"deadline": "10m"}, replicaGroups=recovery)
    await site.settled()
    before = await site.serving()
    berth.leaders.silent.add("*")
    await site.new_revision()

    async def the_new_one_is_asked() -> bool:
        return "silent in this test" in (await site.condition("Progressing")).get("message", "") or any(
            "silent in this test" in group.get("reason", "") for group in (await site.get())["status"]["groups"]
        )

    await eventually(the_new_one_is_asked)
    assert await site.serving() == before
    clock.ahead = 601
    await site.patch({"metadata": {"annotations": {"wake": "up"}}})
    await site.until("Stalled")
    stalled = await site.condition("Stalled")
    assert stalled["message"] == "g1 failed 1 times within 3600s (recovery.maxFailures 1)"
    failed = next(group for group in await site.groups() if group["status"]["state"] == "Failed")
    assert failed["status"]["evidence"]["cause"] == "DeadlineExceeded"
    assert await site.serving() == before
    assert (await site.get())["status"]["summary"]["ready"] == "2/2"

    clock.ahead = 0
    berth.leaders.silent.clear()
    await site.new_revision("three")
    await site.settled()
    assert not await site.serving() & before, "a corrected spec starts afresh"


async def test_going_back_in_the_middle_of_an_update_keeps_what_serves(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    before = await site.serving()
    berth.leaders.silent.add("*")
    await site.new_revision()

    async def surge() -> bool:
        return len(await site.pods()) == 3

    await eventually(surge)
    await site.patch({"spec": {"pod": None}})
    await site.settled()
    assert await site.serving() == before
    assert len(await site.pods()) == 2


async def test_a_first_revision_that_cannot_start_is_replaced_at_once_though_the_pool_is_full(
    site: Site, berth: RunningBerth
) -> None:
    await site.create(site.deployment(await site.pool(nodes=1), tp=8, groups=2))
    berth.leaders.silent.add("*")

    async def one_starts_and_one_waits() -> bool:
        return len(await site.pods()) == 1 and (await site.condition("Placed"))["status"] == "False"

    await eventually(one_starts_and_one_waits)
    first = (await site.pods())[0]["metadata"]["name"]
    await site.new_revision()
    berth.leaders.silent.clear()

    async def corrected() -> bool:
        return len(await site.pods()) == len(await site.serving()) == 1 and first not in await site.serving()

    await eventually(corrected)


@pytest.mark.parametrize("field", ["image", "tensorParallel"])
async def test_these_edits_replace_pods(field: str, site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    await site.create(site.deployment(pool, groups=1))
    await site.settled()
    before = await site.serving()
    changed = site.deployment(pool, tp=4 if field == "tensorParallel" else 2, groups=1)["spec"]
    if field == "image":
        changed["engine"]["image"] = "registry.example/triton:26.07"
    await site.patch({"spec": changed})
    found = await site.settled()
    assert not await site.serving() & before
    assert found["status"]["resolved"]["image"] == changed["engine"].get("image", "berth-triton-simulated:0.1.0")
