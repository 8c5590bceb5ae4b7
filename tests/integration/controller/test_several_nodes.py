"""Groups over several nodes and the capacity they need: all or nothing, said in words, never half taken."""

from __future__ import annotations

import asyncio
from typing import Any

from berth import labels
from tests.integration.controller.conftest import Site
from tests.support.berth import Clock, RunningBerth
from tests.support.cluster import eventually


async def foreign_pod(site: Site, node: str, gpus: int, name: str = "notebook") -> None:
    """Somebody else's pod on a node of the pool."""
    container = {"name": "main", "image": "example/notebook:1", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    await site.cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": site.namespace},
            "spec": {"nodeName": node, "containers": [container]},
        }
    )

    async def runs() -> bool:
        pod = await site.cluster.get("pods", name, site.namespace)
        return bool(pod["status"]["phase"] == "Running")

    await eventually(runs)


async def waiting(site: Site, words: str, name: str = "llama") -> dict[str, Any]:
    """The deployment, once it waits for capacity in these words."""

    async def check() -> dict[str, Any] | None:
        found = await site.get(name)
        message = found.get("status", {}).get("summary", {}).get("message", "")
        assert words in message, message
        return found

    return await eventually(check)


async def test_members_stand_on_planned_nodes_and_start_together(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    async with site.recording("pods", "replicagroups") as changes:
        await site.create(site.deployment(pool, tp=8, pp=2, groups=1))
        await site.settled()
    (group,) = await site.groups()
    pods = sorted(await site.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    assert [pod["spec"]["nodeName"] for pod in pods] == group["spec"]["plannedNodes"]
    assert len(set(group["spec"]["plannedNodes"])) == 2

    created = [change for change in changes if change.type == "ADDED" and change.object["kind"] == "Pod"]
    gates = [{"name": labels.SCHEDULING_GATE}]
    assert [change.object["spec"]["schedulingGates"] for change in created] == [gates, gates]
    bound = min(change.version for change in changes if change.object["spec"].get("nodeName"))
    assert max(change.version for change in created) < bound, "nobody is bound before all exist"
    service = await site.cluster.get("services", group["metadata"]["name"], site.namespace)
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert await site.serving() == {pods[0]["metadata"]["name"]}, "requests reach the leader only"


async def test_it_says_what_is_missing_and_proceeds_when_a_node_comes(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=1)
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))
    found = await waiting(site, f"Waiting for GPUs: needs 2 nodes x 8 GPUs, pool {pool} has 1 node")
    placed = await site.condition("Placed")
    assert (placed["status"], placed["reason"]) == ("False", "WaitingForCapacity")
    assert found["status"]["summary"]["ready"] == "0/1"
    assert await site.pods() == await site.groups() == [], "nothing is half taken"
    await site.node(pool, 1)
    await site.settled()


async def test_pods_of_others_count_and_their_going_is_noticed(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    await foreign_pod(site, f"{pool}-1", 3)
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))
    await waiting(site, "needs 2 nodes x 8 GPUs, best free 1 x 8")
    assert await site.groups() == []
    await site.cluster.delete("pods", "notebook", site.namespace)
    await site.settled(timeout=60)


async def test_fragments_are_told_from_room(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    for index in range(2):
        await foreign_pod(site, f"{pool}-{index}", 5, name=f"notebook-{index}")
    await site.create(site.deployment(pool, tp=4, groups=1))
    await waiting(site, "needs 1 node x 4 GPUs, best free 2 x 3")


async def test_two_that_compete_never_hold_half_each(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=3)
    names = ("first", "second")
    async with site.recording("replicagroups") as changes:
        await asyncio.gather(*(site.create(site.deployment(pool, name, tp=8, pp=2, groups=1)) for name in names))

        async def one_serves_and_one_waits() -> str:
            messages = {name: (await site.get(name)).get("status", {}).get("summary", {}) for name in names}
            served = [name for name in names if messages[name].get("message") == "Ready"]
            held_back = [name for name in names if "best free 1 x 8" in messages[name].get("message", "")]
            assert len(served) == len(held_back) == 1, messages
            return held_back[0]

        waits = await eventually(one_serves_and_one_waits)
    assert len({change.name for change in changes if change.type == "ADDED"}) == 1
    assert await site.pods(waits) == []
    await site.cluster.delete("llmdeployments", next(name for name in names if name != waits), site.namespace)
    await site.settled(waits, timeout=90)


async def test_a_group_takes_over_the_gpus_of_its_dying_predecessor_in_a_full_pool(
    site: Site, berth: RunningBerth
) -> None:
    await site.create(site.deployment(await site.pool(nodes=2), tp=8, pp=2, groups=1))
    await site.settled()
    name = (await site.groups())[0]["metadata"]["name"]
    await site.cluster.delete("pods", f"{name}-1", site.namespace)

    async def successor_serves() -> bool:
        return any("-g0-2-0" in pod for pod in await site.serving())

    await eventually(successor_serves)
    await site.settled()


async def test_a_member_that_is_not_bound_in_time_releases_the_whole_group(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    """The scheduler has the last word: here a node that takes no more pods."""
    pool = await site.pool(nodes=2)
    await site.cluster.patch(
        "nodes", f"{pool}-1", None, {"status": {"allocatable": {"pods": "0"}}}, subresource="status"
    )
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))

    async def refused() -> bool:
        (group,) = await site.groups() or [{}]
        conditions = group.get("status", {}).get("conditions", [{}])
        assert "Too many pods" in conditions[0].get("message", ""), conditions
        return True

    await eventually(refused)
    assert len(await site.pods()) == 2, "one holds its node meanwhile"
    async with site.recording("pods", "replicagroups") as changes:
        clock.ahead = 61
        await site.patch({"metadata": {"annotations": {"wake": "up"}}})

        async def released() -> bool:
            deleted = {change.name.split("-g0-")[1] for change in changes if change.type == "DELETED"}
            return {"1", "1-0", "1-1"} <= deleted

        await eventually(released)
        patch = {"status": {"allocatable": {"pods": "250"}}}
        await site.cluster.patch("nodes", f"{pool}-1", None, patch, subresource="status")
        await site.settled()
    assert not [group for group in await site.groups() if group["status"]["state"] == "Failed"], "nobody failed"


async def test_limits_and_spread_are_part_of_the_answer(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    deployment = site.deployment(pool, tp=8, groups=2)
    spread = {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "Require"}
    await site.cluster.patch("nodes", f"{pool}-1", None, {"spec": {"unschedulable": True}})
    await site.create(deployment, replicaGroups={"spread": spread})
    await waiting(site, f"needs 1 node x 8 GPUs, none free; {pool}-1 is cordoned")
    await site.cluster.patch("nodes", f"{pool}-1", None, {"spec": {"unschedulable": None}})
    await site.settled()
    zones = {pod["spec"]["nodeName"] for pod in await site.pods()}
    assert zones == {f"{pool}-0", f"{pool}-1"}
