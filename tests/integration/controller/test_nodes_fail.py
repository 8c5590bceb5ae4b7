"""Nodes and GPUs that are lost: traffic off, replaced elsewhere, nothing twice, and what status tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from berth.api.common import seconds
from tests.integration.controller.conftest import QUICK, Site
from tests.integration.controller.test_failover import end, replaced
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import eventually
from tests.support.kubectl import kubectl


async def pod_of(site: Site, slot: str) -> dict[str, Any]:
    return next(pod for pod in await site.pods() if f"-{slot}-" in pod["metadata"]["name"])


async def kill_node_of(site: Site, leaders: ScriptedLeaders, pod: dict[str, Any]) -> str:
    """Its power goes: the Lease stops and nobody there answers. Returns the node's name."""
    node: str = pod["spec"]["nodeName"]
    for each in await site.pods():
        if each["spec"]["nodeName"] == node:
            leaders.unreachable.add(each["status"]["podIP"])
    await site.cluster.kill_node(node)
    return node


async def failed(site: Site, slot: str) -> dict[str, Any]:
    """The failed incarnation of a slot, once it is restored elsewhere and that was recorded."""

    async def recorded() -> dict[str, Any] | None:
        for group in await site.groups():
            status = group.get("status", {})
            if group["spec"]["group"] == slot and status.get("state") == "Failed":
                return group if "restoredAfter" in status.get("failover", {}) else None
        return None

    return await eventually(recorded)


async def counted(berth: RunningBerth, reason: str) -> None:
    """Waits until the metrics tell of one failure and its whole failover: they are counted after what is written."""
    phases = ("detected", "traffic_cut", "replaced", "restored")
    wanted = [f'berth_failover_seconds_count{{phase="{phase}",reason="{reason}"}} 1.0' for phase in phases]
    wanted += [f'berth_group_failures_total{{reason="{reason}"}} 1.0']

    async def told() -> bool:
        metrics = berth.app.metrics.render().decode()
        assert [each for each in wanted if each not in metrics] == []
        return True

    await eventually(told)


async def test_a_node_that_dies_is_cut_off_and_its_group_replaced_elsewhere(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders, kubeconfig: Path
) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    lost = await pod_of(site, "g0")
    async with site.recording("pods", "replicagroups") as changes:
        node = await kill_node_of(site, leaders, lost)
        group = await failed(site, "g0")
    evidence = group["status"]["evidence"]
    assert (evidence["cause"], evidence["node"]) == ("NodeSilent", node)
    assert "is silent and its leader does not answer" in evidence["message"]
    assert (await pod_of(site, "g1"))["metadata"]["labels"]["berth.dev/serving"] == "true"
    replacement = next(pod for pod in await site.pods() if "-g0-2-" in pod["metadata"]["name"])
    assert replacement["spec"]["nodeName"] != node
    old = await site.cluster.get("pods", lost["metadata"]["name"], site.namespace)
    assert "deletionTimestamp" in old["metadata"], "on a dead node it stays, and holds its GPUs"
    of_lost = [change.object["metadata"]["labels"] for change in changes if change.name == lost["metadata"]["name"]]
    cut = next(change for change in changes if change.object["metadata"]["labels"].get("berth.dev/serving") == "false")
    given_up = next(
        change for change in changes if change.object["metadata"]["labels"].get("berth.dev/lifecycle") == "failed"
    )
    assert of_lost
    assert cut.version < given_up.version, "cut off on suspicion, before it was given up"

    async def told() -> dict[str, Any]:
        """The status comes after the record of the group."""
        found: dict[str, Any] = (await site.until("Ready"))["status"].get("lastFailover", {})
        assert "restoredAfter" in found, found
        return found

    last = await eventually(told)
    assert (last["group"], last["reason"]) == ("g0", "NodeSilent")
    phases = [seconds(last[name]) for name in ("trafficCutAfter", "detectedAfter", "replacedAfter", "restoredAfter")]
    assert phases == sorted(phases)
    await counted(quick, "NodeSilent")

    async def described() -> bool:
        name = group["metadata"]["name"]
        text = await kubectl(kubeconfig, "describe", "replicagroup", name, "--namespace", site.namespace)
        story = ("NodeSilent", node, "Traffic Cut After", "Restored After", "GroupUnreachable", "GroupFailed")
        assert [each for each in story if each not in text] == [], text
        return True

    await eventually(described)
    pools = await site.cluster.list("gpupools")
    mine = next(pool for pool in pools if node.startswith(pool["metadata"]["name"]))
    frozen = next(each for each in mine["status"]["conditions"] if each["type"] == "EvacuationsFrozen")
    assert frozen["status"] == "False"


async def test_a_suspicion_that_was_wrong_costs_nothing_and_is_counted(
    site: Site, operator_kubeconfig: Path, leaders: ScriptedLeaders, clock: Clock
) -> None:
    """The Lease stops, the leader is out of reach for a moment, and answers again."""
    async with running_berth(
        operator_kubeconfig, site.namespace, leaders, clock, **{**QUICK, "node_silent": 600.0}
    ) as berth:
        await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
        await site.settled()
        suspect = await pod_of(site, "g0")
        before = {pod["metadata"]["uid"] for pod in await site.pods()}
        node = await kill_node_of(site, leaders, suspect)

        async def cut() -> bool:
            return await site.serving() == {(await pod_of(site, "g1"))["metadata"]["name"]}

        await eventually(cut)
        leaders.unreachable.clear()
        await site.revive(node)

        async def both_serve() -> bool:
            return len(await site.serving()) == 2

        await eventually(both_serve)
        await site.settled()
        assert {pod["metadata"]["uid"] for pod in await site.pods()} == before
        assert "evidence" not in (await site.groups())[0]["status"]
        metrics = berth.app.metrics.render().decode()
    assert "berth_false_alarms_total 1.0" in metrics
    assert "berth_group_failures_total{" not in metrics
    assert "berth_failover_seconds_count{" not in metrics, "it was no failover"


async def test_a_taint_that_throws_pods_off_a_node_is_named_and_the_group_moves(
    site: Site, quick: RunningBerth
) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    node = (await pod_of(site, "g0"))["spec"]["nodeName"]
    taints = [{"key": "example.com/repair", "effect": "NoExecute"}]
    await site.cluster.patch("nodes", node, None, {"spec": {"taints": taints}})
    evidence = (await failed(site, "g0"))["status"]["evidence"]
    assert (evidence["cause"], evidence["node"]) == ("MemberEvicted", node)
    assert "has taint example.com/repair:NoExecute" in evidence["message"]


async def test_where_a_person_says_that_a_node_is_out_of_service_its_pods_go_and_nothing_else_changes(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    await site.create(site.deployment(await site.pool(nodes=2), groups=2))
    await site.settled()
    lost = await pod_of(site, "g0")
    node = await kill_node_of(site, leaders, lost)
    await failed(site, "g0")
    before = await site.serving()

    async def unknown() -> bool:
        conditions = (await site.cluster.get("nodes", node))["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] == "Unknown" for each in conditions)

    await eventually(unknown)
    taints = (await site.cluster.get("nodes", node))["spec"].get("taints", [])
    taints.append({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"})
    await site.cluster.patch("nodes", node, None, {"spec": {"taints": taints}})

    async def gone() -> bool:
        return lost["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in await site.pods()}

    await eventually(gone)
    await site.settled()
    assert await site.serving() == before


async def test_without_free_gpus_elsewhere_the_group_waits_and_those_of_the_dead_node_are_not_given_away(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    await site.create(site.deployment(await site.pool(nodes=2), tp=8, groups=2))
    await site.settled()
    node = await kill_node_of(site, leaders, await pod_of(site, "g0"))

    async def waiting() -> bool:
        placed = await site.condition("Placed")
        assert placed["status"] == "False", placed
        assert f"{node} " in placed["message"], placed
        return True

    await eventually(waiting)
    assert len([group for group in await site.groups() if group["spec"]["group"] == "g0"]) == 1
    leaders.unreachable.clear()
    await site.cluster.revive_node(node)

    async def old_pod_gone() -> bool:
        return len(await site.pods()) == 1

    await eventually(old_pod_gone)
    found = await site.get()
    assert found["status"]["readyReplicas"] == 1

    async def avoided() -> bool:
        return "was faulty (silent) and is avoided until" in (await site.condition("Placed"))["message"]

    await eventually(avoided)


async def test_a_pod_on_a_dead_node_is_removed_by_force_only_where_that_is_allowed(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders, clock: Clock
) -> None:
    recovery = {"recovery": {"forceDelete": "NodeUnreachable"}}
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2), replicaGroups=recovery)
    await site.settled()
    lost = await pod_of(site, "g0")
    await kill_node_of(site, leaders, lost)
    await failed(site, "g0")
    assert await site.cluster.find("pods", lost["metadata"]["name"], site.namespace), "not before its time is over"
    clock.ahead = 60

    async def gone() -> bool:
        await site.patch({"metadata": {"annotations": {"wake": str(clock.ahead)}}})
        return await site.cluster.find("pods", lost["metadata"]["name"], site.namespace) is None

    await eventually(gone)


async def test_a_node_that_is_deleted_loses_its_groups_at_once(site: Site, quick: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    node = (await pod_of(site, "g0"))["spec"]["nodeName"]
    await site.cluster.delete("nodes", node)
    group = await failed(site, "g0")
    assert (group["status"]["evidence"]["cause"], group["status"]["evidence"]["node"]) == ("NodeDeleted", node)


async def report_gpu(site: Site, pod: dict[str, Any], health: str) -> None:
    """As a kubelet tells it."""
    statuses = pod["status"]["containerStatuses"]
    resources = [{"resourceID": "GPU-7f3a", "health": health}]
    statuses[0]["allocatedResourcesStatus"] = [{"name": "nvidia.com/gpu", "resources": resources}]
    body = {"status": {"containerStatuses": statuses}}
    await site.cluster.patch("pods", pod["metadata"]["name"], site.namespace, body, subresource="status")


async def test_a_group_is_not_placed_again_on_the_node_that_took_a_member_along(
    site: Site, berth: RunningBerth, leaders: ScriptedLeaders
) -> None:
    """Its leader knows first: a member's beats stop long before the Lease of its node is late."""
    pool = await site.pool(nodes=2)
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))
    await site.settled()
    leader, worker = sorted(await site.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    dead = await kill_node_of(site, leaders, worker)
    await end(site, leader, exit_code=72, message="MemberLost: member 1 is gone")
    await site.until("Placed", "False")
    (lost,) = await site.groups()
    assert (lost["status"]["evidence"]["member"], lost["status"]["evidence"]["node"]) == (1, dead)
    await site.node(pool, 2)
    successor = await replaced(site, "g0", 2)
    assert len(await site.groups()) == 2, "there was no attempt before"
    assert set(successor["spec"]["plannedNodes"]) == {leader["spec"]["nodeName"], f"{pool}-2"}


async def test_a_sick_gpu_ends_the_group_that_holds_it_and_the_node_is_avoided(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    await site.create(site.deployment(await site.pool(nodes=2), tp=2, groups=2))
    await site.settled()
    sick, well = await pod_of(site, "g0"), await pod_of(site, "g1")
    await report_gpu(site, well, "Healthy")
    await report_gpu(site, sick, "Unhealthy")
    group = await failed(site, "g0")
    evidence = group["status"]["evidence"]
    assert (evidence["cause"], evidence["node"]) == ("GPUUnhealthy", sick["spec"]["nodeName"])
    assert "GPU-7f3a" in evidence["gpu"]
    assert leaders.drained == [sick["status"]["podIP"]] * len(leaders.drained) != [], "it finishes its requests first"
    assert (await pod_of(site, "g1"))["metadata"]["uid"] == well["metadata"]["uid"]
    replacement = next(pod for pod in await site.pods() if "-g0-2-" in pod["metadata"]["name"])
    assert replacement["spec"]["nodeName"] != sick["spec"]["nodeName"], "its GPUs may be sick as well"


async def test_a_node_condition_of_the_list_is_a_gpu_fault(site: Site, quick: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    node = (await pod_of(site, "g0"))["spec"]["nodeName"]
    times = {"lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    condition = {"type": "GPUMissing", "status": "True", "reason": "GPUMissing", **times}
    body = {"status": {"conditions": [condition]}}
    await site.cluster.patch("nodes", node, None, body, subresource="status", strategic=True)
    evidence = (await failed(site, "g0"))["status"]["evidence"]
    assert evidence["cause"] == "GPUUnhealthy"
    assert "condition GPUMissing is True" in evidence["message"]


async def test_an_engine_without_progress_and_without_a_token_for_berth_is_replaced(
    site: Site, quick: RunningBerth, leaders: ScriptedLeaders
) -> None:
    await site.create(site.deployment(await site.pool(nodes=3), tp=8, groups=2))
    await site.settled()
    address = (await pod_of(site, "g0"))["status"]["podIP"]
    leaders.frozen.add(address)
    leaders.silent.add(address)

    async def noticed() -> bool:
        return any(group.get("status", {}).get("state") == "Failed" for group in await site.groups())

    await eventually(noticed)
    leaders.frozen.clear()  # its successor may get the same address
    leaders.silent.clear()
    group = await failed(site, "g0")
    assert group["status"]["evidence"]["cause"] == "EngineFrozen"
    await counted(quick, "EngineFrozen")
