"""Groups that are lost: what is recorded, in which order, who replaces them, and when nobody does any more."""

from __future__ import annotations

from typing import Any

from tests.integration.controller.conftest import Change, Site
from tests.support.berth import Clock, RunningBerth
from tests.support.cluster import eventually


async def end(site: Site, pod: dict[str, Any], *, exit_code: int = 137, message: str = "") -> None:
    """The pod's container ends for good."""
    ended = {"exitCode": exit_code, "reason": "OOMKilled", "message": message, "finishedAt": "2026-01-01T00:00:00Z"}
    containers = [{**pod["status"]["containerStatuses"][0], "ready": False, "state": {"terminated": ended}}]
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    status = {"phase": "Failed", "containerStatuses": containers, "conditions": conditions}
    name = pod["metadata"]["name"]
    await site.cluster.patch("pods", name, site.namespace, {"status": status}, subresource="status")


async def restart(site: Site, name: str, count: int) -> None:
    """The kubelet starts the pod's container again."""
    pod = await site.cluster.get("pods", name, site.namespace)
    ended = {"exitCode": 139, "signal": 11, "reason": "Error", "message": "segmentation fault"}
    container = {**pod["status"]["containerStatuses"][0], "restartCount": count, "lastState": {"terminated": ended}}
    body = {"status": {"containerStatuses": [container]}}
    await site.cluster.patch("pods", name, site.namespace, body, subresource="status")


async def replaced(site: Site, group: str, incarnation: int, name: str = "llama") -> dict[str, Any]:
    """The ReplicaGroup of that incarnation, once it serves."""

    async def check() -> dict[str, Any] | None:
        for each in await site.groups(name):
            if (each["spec"]["group"], each["spec"]["incarnation"]) == (group, incarnation):
                return each if each.get("status", {}).get("state") == "Serving" else None
        return None

    return await eventually(check)


def first(changes: list[Change], name: str, seen: Any) -> int:
    return next(change.version for change in changes if change.name == name and seen(change))


async def test_traffic_goes_then_evidence_comes_then_the_pod_is_deleted(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    lost, *others = sorted(await site.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    pod, group = lost["metadata"]["name"], lost["metadata"]["name"].removesuffix("-0")
    async with site.recording("pods", "replicagroups") as changes:
        await end(site, lost, message="CUDA error: out of memory\nlast words")
        await replaced(site, "g0", 2)
        await site.settled()
    cut = first(changes, pod, lambda change: change.object["metadata"]["labels"]["berth.dev/serving"] == "false")
    evidence = first(changes, group, lambda change: change.object["status"].get("evidence"))
    deleted = first(changes, pod, lambda change: "deletionTimestamp" in change.object["metadata"])
    graces = [change.object["metadata"].get("deletionGracePeriodSeconds") for change in changes if change.name == pod]
    assert all(grace is None or grace <= 5 for grace in graces), "short enough that its GPUs can be inherited"
    successor = first(changes, group.removesuffix("1") + "2", lambda change: True)
    assert cut < evidence < deleted
    assert evidence < successor, "the reservation of the successor comes after the loss is on record"
    recorded = (await site.cluster.get("replicagroups", group, site.namespace))["status"]
    assert recorded["memberUIDs"] == [lost["metadata"]["uid"]]
    assert recorded["evidence"] == {
        "cause": "MemberFailed",
        "message": f"pod {pod} ended: OOMKilled, exit code 137, last words",
        "occurredAt": recorded["evidence"]["occurredAt"],
        "observedAt": recorded["evidence"]["observedAt"],
        "member": 0,
        "restartCount": 0,
        "node": lost["spec"]["nodeName"],
        "exitCode": 137,
    }
    assert others[0]["metadata"]["uid"] in [each["metadata"]["uid"] for each in await site.pods()]
    failover = (await site.get())["status"]["lastFailover"]
    assert (failover["group"], failover["reason"]) == ("g0", "MemberFailed")
    told = [event for event in await site.events() if event["reason"] == "GroupFailed"]
    assert [(event["type"], event.get("series")) for event in told] == [("Warning", None)], "said once"
    assert [(event["action"], event["related"]["kind"], event["related"]["name"]) for event in told] == [
        ("Replace", "ReplicaGroup", group)
    ]


async def test_a_deleted_pod_is_replaced_by_the_next_incarnation_once(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    async with site.recording("replicagroups") as changes:
        name = sorted(await site.serving())[0]
        await site.cluster.delete("pods", name, site.namespace)
        await site.cluster.delete("pods", name, site.namespace)
        await replaced(site, "g0", 2)
        await site.settled()
    assert len({change.name for change in changes if change.type == "ADDED"}) == 1
    assert len(await site.serving()) == len(await site.pods()) == 2
    failed = [each for each in (await site.get())["status"]["groups"] if each["state"] == "Failed"]
    assert [(each["name"], each["incarnation"]) for each in failed] == [("g0", 1)], "kept as evidence"


async def test_a_container_may_restart_in_place_once(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(), groups=1))
    await site.settled()
    (name,) = await site.serving()
    berth.leaders.silent.add("*")
    await restart(site, name, 1)

    async def out_of_service() -> bool:
        return not await site.serving()

    await eventually(out_of_service)
    await site.until("Available", "False")
    berth.leaders.silent.clear()
    await site.settled()
    assert await site.serving() == {name}, "the same pod serves again after a token"
    (group,) = await site.groups()
    assert group["metadata"]["annotations"]["berth.dev/accepted-restart"].startswith("1@")
    evidence = group["status"]["evidence"]
    assert (evidence["cause"], evidence["exitCode"], evidence["signal"]) == ("RestartedInPlace", 139, 11)
    told = [event["note"] for event in await site.events() if event["reason"] == "GroupRestarted"]
    assert len(told) == 1
    assert told[0].endswith(f"container of {name} restarted: Error, exit code 139, signal 11, segmentation fault")

    await restart(site, name, 2)
    await replaced(site, "g0", 2)
    failed = next(each for each in await site.groups() if each["spec"]["incarnation"] == 1)
    assert failed["status"]["evidence"]["cause"] == "RestartedAgain"
    assert failed["status"]["evidence"]["restartCount"] == 2


async def test_a_group_over_several_nodes_lives_and_dies_as_one(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(nodes=4), tp=8, pp=2, groups=2))
    await site.settled()
    before = {pod["metadata"]["uid"]: pod for pod in await site.pods()}
    worker = next(pod for pod in before.values() if pod["metadata"]["name"].endswith("-g0-1-1"))
    async with site.recording("pods") as changes:
        await end(site, worker)
        await replaced(site, "g0", 2)
        await site.settled()
    after = {pod["metadata"]["uid"]: pod for pod in await site.pods()}
    kept = {pod["metadata"]["name"].split("-")[2] for uid, pod in after.items() if uid in before}
    assert kept == {"g1"}
    created = [change.name for change in changes if change.type == "ADDED"]
    assert len(created) == 2, f"exactly once: {created}"
    failed = next(each for each in await site.groups() if each["status"]["state"] == "Failed")
    assert failed["status"]["evidence"]["member"] == 1
    assert len(failed["status"]["memberUIDs"]) == 2


async def test_a_member_that_restarts_takes_its_group_down(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(), tp=8, pp=2, groups=1))
    await site.settled()
    (leader,) = await site.serving()
    await restart(site, leader, 1)
    group = await replaced(site, "g0", 2)
    assert {pod["metadata"]["name"] for pod in await site.pods()} == {
        f"{group['metadata']['name']}-0",
        f"{group['metadata']['name']}-1",
    }


async def test_a_group_that_keeps_failing_waits_longer_and_then_stays_down(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    recovery = {"recovery": {"maxFailures": 3, "initialBackoff": "2s", "window": "1h"}}
    await site.create(site.deployment(await site.pool()), replicaGroups=recovery)
    await site.settled()
    waits = []

    async def gets_requests(incarnation: int) -> str | None:
        return next((each for each in await site.serving() if f"-g0-{incarnation}-" in each), None)

    for incarnation in (1, 2):
        async with site.recording("pods", "replicagroups") as changes:
            name = await eventually(lambda incarnation=incarnation: gets_requests(incarnation))
            await site.cluster.delete("pods", name, site.namespace)
            group = await replaced(site, "g0", incarnation + 1)
        created = next(change for change in changes if change.name == group["metadata"]["name"])
        gone = next(change for change in changes if change.name == name and change.type == "DELETED")
        waits.append(_seconds(created.object) - _seconds(gone.object, "deletionTimestamp"))
    assert waits[0] <= 1 < 2 <= waits[1], "the first at once, the second after initialBackoff"

    name = await eventually(lambda: gets_requests(3))
    await site.cluster.delete("pods", name, site.namespace)
    found = await site.until("Stalled")
    stalled = await site.condition("Stalled")
    assert (stalled["reason"], stalled["message"]) == (
        "FailureBudgetSpent",
        "g0 failed 3 times within 3600s (recovery.maxFailures 3)",
    )
    assert found["status"]["summary"]["ready"] == "1/2"
    assert [each.split("-")[2] for each in await site.serving()] == ["g1"], "the rest serves on"
    await site.scale(3)

    async def another_group_is_made() -> bool:
        return {each.split("-")[2] for each in await site.serving()} == {"g1", "g2"}

    await eventually(another_group_is_made)

    clock.ahead = 3601
    await site.patch({"metadata": {"annotations": {"wake": "up"}}})
    await site.settled()
    assert len(await site.serving()) == 3
    assert not [each for each in await site.groups() if each["status"]["state"] == "Failed"], "old evidence goes"


def _seconds(found: dict[str, Any], field: str = "creationTimestamp") -> int:
    """Seconds within the hour, near enough for differences."""
    hours, minutes, seconds = found["metadata"][field][11:19].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


async def test_a_silent_leader_never_gets_requests_and_is_not_restarted(site: Site, berth: RunningBerth) -> None:
    berth.leaders.silent.add("*")
    await site.create(site.deployment(await site.pool(), groups=1))

    async def asked() -> bool:
        (group,) = await site.groups() or [{}]
        state = group.get("status", {})
        conditions = state.get("conditions", [{}])
        return state.get("state") == "Warming" and "silent in this test" in conditions[0].get("message", "")

    await eventually(asked)
    assert await site.serving() == set()
    assert (await site.condition("Available"))["status"] == "False"
    berth.leaders.silent.clear()
    await site.settled()
    assert {pod["metadata"]["name"].split("-")[-2] for pod in await site.pods()} == {"1"}
