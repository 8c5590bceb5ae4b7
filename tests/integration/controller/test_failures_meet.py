"""Failures that meet each other, restarts and people's hands: each lost group is replaced once, the others serve on."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tests.integration.controller.conftest import QUICK, Change, Site
from tests.integration.controller.test_failover import replaced
from tests.integration.controller.test_nodes_fail import kill_node_of, pod_of
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import eventually


async def cut_off(site: Site, pod: dict[str, Any]) -> None:
    """Waits until the pod gets no more requests."""

    async def gone() -> bool:
        return pod["metadata"]["name"] not in await site.serving()

    await eventually(gone)


def made(changes: list[Change], kind: str) -> list[str]:
    """What was created, without the part of the names that differs between runs: `g0-2`, `g0-2-0`."""
    created = [each for each in changes if each.type == "ADDED" and each.object["kind"] == kind]
    return sorted(each.name.split("-", 2)[2] for each in created)


async def test_two_nodes_die_while_berth_is_replaced_and_all_status_is_lost(
    site: Site, operator_kubeconfig: Path, leaders: ScriptedLeaders, clock: Clock
) -> None:
    def berth() -> AbstractAsyncContextManager[RunningBerth]:
        return running_berth(operator_kubeconfig, site.namespace, leaders, clock, **QUICK)

    async with site.recording("pods", "replicagroups") as changes:
        async with berth():
            await site.create(site.deployment(await site.pool(nodes=5), tp=8, groups=3))
            await site.settled()
            lost, well = [await pod_of(site, "g0"), await pod_of(site, "g1")], await pod_of(site, "g2")
            dead = {await kill_node_of(site, leaders, pod) for pod in lost}
            await cut_off(site, lost[0])
        await site.wipe_status()
        async with berth():
            for slot in ("g0", "g1"):
                await replaced(site, slot, 2)
            await site.settled()
    assert made(changes, "ReplicaGroup") == ["g0-1", "g0-2", "g1-1", "g1-2", "g2-1"]
    assert made(changes, "Pod") == ["g0-1-0", "g0-2-0", "g1-1-0", "g1-2-0", "g2-1-0"]
    pods = {pod["metadata"]["name"].split("-", 2)[2]: pod for pod in await site.pods()}
    assert pods["g2-1-0"]["metadata"]["uid"] == well["metadata"]["uid"]
    assert not {pods[name]["spec"]["nodeName"] for name in ("g0-2-0", "g1-2-0", "g2-1-0")} & dead


async def test_a_pool_that_is_deleted_and_made_again_during_a_failover(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    pool = await site.pool(nodes=3)
    await site.create(site.deployment(pool, tp=8, groups=2))
    await site.settled()
    lost, well = await pod_of(site, "g0"), await pod_of(site, "g1")
    async with site.recording("pods", "replicagroups") as changes:
        spec = (await site.cluster.get("gpupools", pool))["spec"]
        await site.cluster.delete("gpupools", pool)
        await kill_node_of(site, leaders, lost)
        await cut_off(site, lost)
        await site.until("Accepted", "False")
        assert await site.serving() == {well["metadata"]["name"]}
        metadata = {"name": pool}
        await site.cluster.create(
            {"apiVersion": "berth.dev/v1alpha1", "kind": "GPUPool", "metadata": metadata, "spec": spec}
        )
        await replaced(site, "g0", 2)
        await site.settled()
    assert (made(changes, "ReplicaGroup"), made(changes, "Pod")) == (["g0-2"], ["g0-2-0"])
    assert (await pod_of(site, "g1"))["metadata"]["uid"] == well["metadata"]["uid"]


async def test_a_group_that_is_deleted_by_hand_during_its_failover_is_replaced_once(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    lost, well = await pod_of(site, "g0"), await pod_of(site, "g1")
    async with site.recording("pods", "replicagroups") as changes:
        await kill_node_of(site, leaders, lost)
        await cut_off(site, lost)
        await site.cluster.delete("replicagroups", lost["metadata"]["name"].removesuffix("-0"), site.namespace)
        await replaced(site, "g0", 2)
        await site.settled()
    assert (made(changes, "ReplicaGroup"), made(changes, "Pod")) == (["g0-2"], ["g0-2-0"])
    assert (await pod_of(site, "g1"))["metadata"]["uid"] == well["metadata"]["uid"]


async def test_in_a_full_pool_a_machine_that_comes_back_under_another_name_takes_the_group_it_lost(
    site: Site, quick: RunningBerth
) -> None:
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, groups=2))
    await site.settled()
    well = await pod_of(site, "g1")
    async with site.recording("pods", "replicagroups") as changes:
        await site.cluster.delete("nodes", (await pod_of(site, "g0"))["spec"]["nodeName"])
        renamed = await site.node(pool, 7)
        successor = await replaced(site, "g0", 2)
        await site.settled()
    assert successor["spec"]["plannedNodes"] == [renamed]
    assert (made(changes, "ReplicaGroup"), made(changes, "Pod")) == (["g0-2"], ["g0-2-0"])
    assert (await pod_of(site, "g1"))["metadata"]["uid"] == well["metadata"]["uid"]
