"""Groups over several nodes and the capacity they need: all or nothing, said in words, never half taken."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from berth import labels
from berth.local.controlplane import ControlPlane
from tests.integration.controller.conftest import Site
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import eventually
from tests.support.fault_proxy import FaultProxy, Refuse


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


async def test_secrets_are_named_to_the_kubelet_and_never_read(site: Site, berth: RunningBerth) -> None:
    """Neither exists, and Berth has no right to see that: a node would wait for them, a simulated one does not."""
    manifest = site.deployment(await site.pool(nodes=2), tp=8, pp=2, groups=1)
    manifest["spec"]["model"]["variants"][0]["source"]["huggingFace"]["tokenSecretName"] = "hub"
    launcher = {"launcher": "SSH", "sshSecretName": "group-ssh"}
    await site.create(manifest, engine={"backend": "pytorch", "multiNode": launcher})
    await site.settled()
    pods = await site.pods()
    assert len(pods) == 2
    for pod in pods:
        mounted = [each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each]
        variables = pod["spec"]["containers"][0]["env"]
        keys = [each["valueFrom"]["secretKeyRef"]["name"] for each in variables if each["name"] == "HF_TOKEN"]
        assert (mounted, keys) == (["group-ssh"], ["hub"])


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
    await site.settled()


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
    await site.settled(waits)


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


async def test_a_pod_of_others_that_wins_the_race_costs_another_choice_and_nothing_else(
    site: Site,
    control_plane: ControlPlane,
    operator_token: str,
    leaders: ScriptedLeaders,
    clock: Clock,
    tmp_path: Path,
) -> None:
    """It takes a planned node after the choice and before the gates open, past the scheduler."""
    pool = await site.pool(nodes=3)
    async with FaultProxy(control_plane) as proxy:
        path = tmp_path / "kubeconfig"
        control_plane.write_kubeconfig(path, token=operator_token, server=proxy.url)
        closed = proxy.inject(Refuse(503), verb="patch", resource="pods")
        async with running_berth(path, site.namespace, leaders, clock):
            await site.create(site.deployment(pool, tp=8, pp=2, groups=1))

            async def both_wait() -> list[str]:
                pods = await site.pods()
                assert len([pod for pod in pods if pod["spec"].get("schedulingGates")]) == 2
                return list((await site.groups())[0]["spec"]["plannedNodes"])

            planned = await eventually(both_wait)
            await foreign_pod(site, planned[1], 8)
            async with site.recording("pods", "replicagroups") as changes:
                proxy.withdraw(closed)

                async def refused() -> bool:
                    (group,) = await site.groups()
                    assert "nvidia.com/gpu" in group["status"]["conditions"][0]["message"], group["status"]
                    return True

                await eventually(refused)
                clock.ahead = 61
                await site.patch({"metadata": {"annotations": {"wake": "up"}}})
                await site.settled()
            gone = {change.name.split("-g0-")[1] for change in changes if change.type == "DELETED"}
    assert gone == {"1", "1-0", "1-1"}, "the first choice gave everything back"
    assert {pod["spec"]["nodeName"] for pod in await site.pods("llama")} == {f"{pool}-{i}" for i in range(3)} - {
        planned[1]
    }
    assert not [group for group in await site.groups() if group["status"]["state"] == "Failed"], "nobody failed"


async def test_pools_that_grow_see_the_whole_demand_at_once(site: Site, berth: RunningBerth) -> None:
    """No gate, which would hide the pods from autoscalers, no planned nodes, and no check of ours."""
    pool = await site.pool(nodes=1, provisioning="Autoscaled")
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1))

    async def one_is_refused() -> bool:
        conditions = [c for pod in await site.pods() for c in pod["status"].get("conditions", ())]
        return any(each.get("reason") == "Unschedulable" for each in conditions)

    await eventually(one_is_refused)
    pods = await site.pods()
    assert len(pods) == 2
    assert not [pod for pod in pods if "schedulingGates" in pod["spec"] or "affinity" in pod["spec"]]
    assert "plannedNodes" not in (await site.groups())[0]["spec"]
    await site.node(pool, 1)
    await site.settled()


async def test_two_that_hold_half_each_of_a_pool_that_grows_no_more_let_go(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    pool = await site.pool(nodes=2, provisioning="Autoscaled")
    names = ("first", "second")
    await site.cluster.patch("nodes", f"{pool}-1", None, {"spec": {"unschedulable": True}})
    await site.create(site.deployment(pool, "first", tp=8, pp=2, groups=1))

    async def stands_in_part(name: str) -> bool:
        return len([pod for pod in await site.pods(name) if pod["spec"].get("nodeName")]) == 1

    await eventually(partial(stands_in_part, "first"))
    await site.create(site.deployment(pool, "second", tp=8, pp=2, groups=1))
    await site.cluster.patch("nodes", f"{pool}-1", None, {"spec": {"unschedulable": None}})

    async def somebody_serves() -> str:
        for name in names:
            if (await site.get(name)).get("status", {}).get("summary", {}).get("message") == "Ready":
                return name
        clock.ahead += 60
        for name in names:
            await site.patch({"metadata": {"annotations": {"wake": str(clock.ahead)}}}, name)
        raise AssertionError("nobody serves yet")

    served = await eventually(somebody_serves)
    await site.cluster.delete("llmdeployments", served, site.namespace)
    await site.settled(next(name for name in names if name != served))


async def test_another_scheduler_gets_whole_groups_without_gates(site: Site, berth: RunningBerth) -> None:
    """Played here by the test, which binds them."""
    pool = await site.pool(nodes=2)
    await foreign_pod(site, f"{pool}-1", 1)  # no check of ours: it is theirs to know
    await site.create(site.deployment(pool, tp=8, pp=2, groups=1), pod={"schedulerName": "gangs.example"})

    async def both_exist() -> list[dict[str, Any]]:
        pods = await site.pods("llama")
        assert len(pods) == 2
        return pods

    pods = await eventually(both_exist)
    assert [pod["spec"]["schedulerName"] for pod in pods] == ["gangs.example"] * 2
    assert not [pod for pod in pods if "schedulingGates" in pod["spec"] or "affinity" in pod["spec"]]
    await site.cluster.delete("pods", "notebook", site.namespace)
    for index, pod in enumerate(pods):
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": f"{pool}-{index}"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await site.cluster.request("POST", f"/api/v1/namespaces/{site.namespace}/pods/{name}/binding", body=binding)
    await site.settled()


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
