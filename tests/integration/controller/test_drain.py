"""Nodes are taken away on purpose: replacements serve first, and `kubectl drain` ends exactly when that is so.

kubectl is the real one, evictions are decided by the real API server and disruption controller.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.controller.conftest import Change, Site
from tests.integration.controller.test_several_nodes import foreign_pod
from tests.support.berth import RunningBerth, ScriptedLeaders
from tests.support.cluster import eventually
from tests.support.kubectl import draining


async def cordon(site: Site, node: str, unschedulable: bool = True) -> None:
    await site.cluster.patch("nodes", node, None, {"spec": {"unschedulable": unschedulable or None}})


async def taint(site: Site, node: str, key: str, effect: str = "NoSchedule") -> None:
    await site.cluster.patch("nodes", node, None, {"spec": {"taints": [{"key": key, "effect": effect}]}})


async def nodes_of(site: Site, name: str = "llama") -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in await site.pods(name)}


async def disrupted(site: Site, reason: str) -> dict[str, Any]:
    """The condition Disrupted, once it has this reason."""

    async def check() -> dict[str, Any]:
        found = await site.condition("Disrupted")
        assert found.get("reason") == reason, found
        return found

    return await eventually(check)


def lowest(changes: list[Change]) -> int:
    """From a recording of pods that all served at its beginning: how few could get requests at any moment."""
    serving = {each.name for each in changes if each.type != "ADDED" and not _added(changes, each.name)}
    low = len(serving)
    for change in changes:
        gets_requests = change.object["metadata"]["labels"].get("berth.dev/serving") == "true"
        leaves = change.type == "DELETED" or "deletionTimestamp" in change.object["metadata"]
        (serving.add if gets_requests and not leaves else serving.discard)(change.name)
        low = min(low, len(serving))
    return low


def _added(changes: list[Change], name: str) -> bool:
    return any(each.type == "ADDED" and each.name == name for each in changes)


async def test_a_drain_ends_when_a_replacement_serves_elsewhere(
    site: Site, berth: RunningBerth, leaders: ScriptedLeaders, kubeconfig: Path
) -> None:
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    (node,) = await nodes_of(site)
    leaders.silent = {"*"}  # the replacement starts, and does not serve yet
    async with site.recording("pods") as changes, draining(kubeconfig, node) as drain:

        async def replacement_runs() -> bool:
            return sum(pod["status"]["phase"] == "Running" for pod in await site.pods()) == 2

        await eventually(replacement_runs)
        await disrupted(site, "LeavingNodes")
        assert drain.running
        assert len(await site.serving()) == 1, "the old one gets the requests"
        leaders.silent = set()
        said = await drain.ended()
    assert "drained" in said
    assert "Cannot evict pod as it would violate the pod's disruption budget" in said, "it was told to wait"
    assert await nodes_of(site) == {f"{pool}-0", f"{pool}-1"} - {node}
    await site.settled()
    assert (await site.condition("Disrupted"))["status"] == "False"
    assert lowest(changes) >= 1
    assert not [group for group in await site.groups() if group["status"]["state"] == "Failed"], "nobody failed"


async def test_a_group_over_several_nodes_leaves_as_a_whole(site: Site, berth: RunningBerth, kubeconfig: Path) -> None:
    pool = await site.pool(nodes=4)
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))
    await site.settled()
    before = await nodes_of(site)
    async with site.recording("pods") as changes, draining(kubeconfig, sorted(before)[1]) as drain:
        await drain.ended()
    await site.settled()
    assert not await nodes_of(site) & before, "the other member's node has no whole group any more either"
    assert lowest(changes) >= 1


async def test_all_groups_of_a_node_move_and_as_many_as_are_needed_serve(
    site: Site, berth: RunningBerth, kubeconfig: Path
) -> None:
    pool = await site.pool(nodes=2)
    await cordon(site, f"{pool}-1")
    await site.create(site.deployment(pool, tp=2, groups=3), replicaGroups={"minAvailable": 2})
    await site.settled()
    await cordon(site, f"{pool}-1", unschedulable=False)
    async with site.recording("pods") as changes, draining(kubeconfig, f"{pool}-0") as drain:
        await drain.ended()
    await site.settled()
    assert await nodes_of(site) == {f"{pool}-1"}
    assert lowest(changes) >= 2


async def test_without_room_it_blocks_and_says_so_until_there_is(
    site: Site, berth: RunningBerth, kubeconfig: Path
) -> None:
    pool = await site.pool(nodes=2)
    await foreign_pod(site, f"{pool}-1", 1)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    async with draining(kubeconfig, f"{pool}-0") as drain:
        found = await disrupted(site, "DisruptionBlocked")
        assert "needs 1 node x 8 GPUs, best free 1 x 7" in found["message"], found
        assert f"g0: {pool}-0 is cordoned" in found["message"]
        assert "Cannot leave: g0" in (await site.get())["status"]["summary"]["message"]
        assert drain.running
        assert await nodes_of(site) == {f"{pool}-0"}
        await site.node(pool, 2)
        await drain.ended()
    await site.settled()
    assert await nodes_of(site) == {f"{pool}-2"}
    reasons = [(event["reason"], event["type"]) for event in await site.events()]
    assert ("DisruptionBlocked", "Warning") in reasons


async def test_down_to_needed_leaves_without_a_replacement(site: Site, berth: RunningBerth, kubeconfig: Path) -> None:
    pool = await site.pool(nodes=2)
    policy = {"disruption": {"whenNoCapacity": "DownToNeeded"}}
    await site.create(site.deployment(pool, tp=8, groups=2), **policy)
    await site.settled()
    async with site.recording("pods") as changes:
        async with draining(kubeconfig, f"{pool}-0") as drain:
            await drain.ended()
        assert await nodes_of(site) == {f"{pool}-1"}
        async with draining(kubeconfig, f"{pool}-1") as drain:  # the last that is needed stays
            found = await disrupted(site, "DisruptionBlocked")
            assert "without it 0 of 1 needed would serve" in found["message"]
            assert drain.running
            await cordon(site, f"{pool}-0", unschedulable=False)
            await drain.ended()
        await cordon(site, f"{pool}-1", unschedulable=False)
        await site.settled()
    assert await nodes_of(site) == {f"{pool}-0", f"{pool}-1"}
    assert lowest(changes) >= 1


async def test_a_node_that_comes_back_is_not_left(site: Site, berth: RunningBerth, leaders: ScriptedLeaders) -> None:
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    (before,) = [pod["metadata"]["uid"] for pod in await site.pods()]
    (node,) = await nodes_of(site)
    leaders.silent = {"*"}
    await cordon(site, node)

    async def replacement_runs() -> bool:
        return len(await site.pods()) == 2

    await eventually(replacement_runs)
    await cordon(site, node, unschedulable=False)
    await site.settled()
    assert [pod["metadata"]["uid"] for pod in await site.pods()] == [before]


@pytest.mark.parametrize("effect", ["NoSchedule", "PreferNoSchedule"])
@pytest.mark.parametrize("key", ["karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn"])
async def test_a_notice_of_the_cloud_is_as_good_as_a_cordon(
    site: Site, berth: RunningBerth, key: str, effect: str
) -> None:
    pool = await site.pool(nodes=2)
    everything = [{"operator": "Exists"}]  # such as users write: it must not bring the group back
    await site.create(site.deployment(pool, tp=8, groups=1), pod={"tolerations": everything})
    await site.settled()
    (node,) = await nodes_of(site)
    async with site.recording("pods") as changes:
        await taint(site, node, key, effect)

        async def elsewhere() -> bool:
            return await nodes_of(site) == {f"{pool}-0", f"{pool}-1"} - {node}

        await eventually(elsewhere)
        await site.settled()
    assert lowest(changes) >= 1


async def test_a_condition_of_the_cloud_is_as_good_as_a_cordon(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    (node,) = await nodes_of(site)
    told = [{"type": "PreemptScheduled", "status": "True", "reason": "VMEvent", "message": "in 30 s"}]
    await site.cluster.patch(
        "nodes", node, None, {"status": {"conditions": told}}, subresource="status", strategic=True
    )

    async def elsewhere() -> bool:
        return await nodes_of(site) == {f"{pool}-0", f"{pool}-1"} - {node}

    await eventually(elsewhere)
    await site.settled()


async def test_ignore_and_pause_keep_groups_where_they_are(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, groups=1), disruption={"onCordon": "Ignore"})
    await site.settled()
    before = [pod["metadata"]["uid"] for pod in await site.pods()]
    (node,) = await nodes_of(site)
    await cordon(site, node)
    await disrupted(site, "DisruptionIgnored")
    await site.patch({"spec": {"disruption": {"onCordon": "Migrate"}, "pause": "Changes"}})
    await disrupted(site, "Paused")
    assert [pod["metadata"]["uid"] for pod in await site.pods()] == before
    await site.patch({"spec": {"pause": None}})

    async def elsewhere() -> bool:
        return await nodes_of(site) == {f"{pool}-0", f"{pool}-1"} - {node}

    await eventually(elsewhere)


async def test_a_foreign_disruption_budget_is_named_and_what_it_does_is_true(
    site: Site, berth: RunningBerth, kubeconfig: Path
) -> None:
    pool = await site.pool(nodes=1)
    await site.create(site.deployment(pool, tp=8, groups=1))
    await site.settled()
    assert (await site.condition("ForeignPDBOverlap"))["status"] == "False"
    manifest = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "everything", "namespace": site.namespace},
        "spec": {"maxUnavailable": 1, "selector": {}},
    }
    await site.cluster.create(manifest)

    async def named(status: str) -> dict[str, Any]:
        found = await site.condition("ForeignPDBOverlap")
        assert found["status"] == status, found
        return found

    found = await eventually(partial(named, "True"))
    assert "PodDisruptionBudget everything selects" in found["message"]
    async with draining(kubeconfig, f"{pool}-0") as drain:
        await drain.said("more than one PodDisruptionBudget")
    narrowed = {"spec": {"selector": {"matchLabels": {"app": "other"}}}}
    await site.cluster.patch("poddisruptionbudgets", "everything", site.namespace, narrowed)
    await eventually(partial(named, "False"))
