"""The registry of Berth's write sequences, for tests that interrupt each of them after each write.

A sequence prepares a settled world, acts on it as a user or as fate would, and tells when Berth has finished. A new
kind of write sequence gets an entry here and is then interrupted like the others.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.integration.controller.conftest import Site
from tests.integration.controller.test_several_nodes import foreign_pod
from tests.support.cluster import Manifest, eventually

Step = Callable[[Site, str], Awaitable[None]]
"""Gets the site and the name of its pool."""


@dataclass(frozen=True)
class WriteSequence:
    name: str
    prepare: Step
    act: Step
    finished: Step
    settings: Mapping[str, float] = field(default_factory=dict)
    """Of the operator, where the sequence needs others than usual."""
    numbered: bool = True
    """Which incarnation it ends with is always the same: not where a slot has no group at all for a moment, and status,
    which may be lost just then, is all that counts them."""


SEQUENCES: list[WriteSequence] = []

RIVALS = ("llama", "second")
OTHERS = "notebook"
"""A pod that is none of Berth's."""


def _register(name: str, prepare: Step, act: Step, finished: Step, *, numbered: bool = True, **settings: float) -> None:
    SEQUENCES.append(WriteSequence(name, prepare, act, finished, settings, numbered))


async def _nothing(site: Site, pool: str) -> None:
    """Nothing to prepare."""


async def _one_group(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=1))
    await site.settled()


async def _two_groups(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=2))
    await site.settled()


async def _two_full_nodes(site: Site, pool: str) -> None:
    await site.node(pool, 2)
    await site.cluster.create(site.deployment(pool, tp=8, groups=2))
    await site.settled()


async def _one_group_over_two_nodes(site: Site, pool: str) -> None:
    await _create_over_two_nodes(site, pool)
    await site.settled()


async def _beside_a_dead_node(site: Site, pool: str) -> None:
    """A group was replaced elsewhere, its pod stays on the dead node; it may be removed by force, later."""
    await site.node(pool, 2)
    recovery = {"recovery": {"forceDelete": "NodeUnreachable"}}
    await site.create(site.deployment(pool, tp=8, groups=2), replicaGroups=recovery)
    await site.settled()
    await _lose_a_node(site, pool)
    await _second_life(site)

    async def given_up() -> bool:
        conditions = [each for node in await _nodes(site, pool) for each in node["status"].get("conditions", ())]
        return any((each["type"], each["status"]) == ("Ready", "Unknown") for each in conditions)

    await eventually(given_up)
    await site.settled()


async def _create(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=1))


async def _create_over_two_nodes(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, tp=8, pp=2, groups=1))


async def _let_nodes_take(site: Site, pool: str, pods: int) -> None:
    """The scheduler binds no more than so many to each node; Berth does not look at this figure."""
    body = {"status": {"allocatable": {"pods": str(pods)}}}
    for node in await _nodes(site, pool):
        await site.cluster.patch("nodes", node["metadata"]["name"], None, body, subresource="status")


async def _three_nodes_that_take_nobody(site: Site, pool: str) -> None:
    await site.node(pool, 2)
    await _let_nodes_take(site, pool, 0)


async def _two_for_one_place(site: Site, pool: str) -> None:
    """Each wants the whole pool."""
    for name in RIVALS:
        await site.cluster.create(site.deployment(pool, name, tp=8, pp=2, groups=1))


def _scale_to(groups: int) -> Step:
    async def scale(site: Site, pool: str) -> None:
        wanted = site.deployment(pool, groups=groups)["spec"]["placement"]
        await site.patch({"spec": {"placement": wanted}})

    return scale


async def _update(site: Site, pool: str) -> None:
    await site.patch({"spec": {"pod": {"env": [{"name": "REVISION", "value": "two"}]}}})


async def _lose_a_pod(site: Site, pool: str) -> None:
    for pod in await site.pods():
        await site.cluster.delete("pods", pod["metadata"]["name"], site.namespace, grace=0)


async def _lose_a_member(site: Site, pool: str) -> None:
    worker = next(pod for pod in await site.pods() if pod["metadata"]["name"].endswith("-1"))
    await site.cluster.delete("pods", worker["metadata"]["name"], site.namespace, grace=0)


async def _let_time_pass(site: Site, pool: str) -> None:
    site.clock.ahead = 60
    await site.patch({"metadata": {"annotations": {"touched": "later"}}})


async def _restart_a_container(site: Site, pool: str) -> None:
    for pod in await site.pods():
        statuses = pod["status"]["containerStatuses"]
        statuses[0] |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 137, "reason": "Error"}}}
        body = {"status": {"containerStatuses": statuses}}
        await site.cluster.patch("pods", pod["metadata"]["name"], site.namespace, body, subresource="status")


async def _report_a_sick_gpu(site: Site, pool: str) -> None:
    for pod in await site.pods():
        statuses = pod["status"]["containerStatuses"]
        resources = [{"resourceID": "GPU-1", "health": "Unhealthy"}]
        statuses[0]["allocatedResourcesStatus"] = [{"name": "nvidia.com/gpu", "resources": resources}]
        body = {"status": {"containerStatuses": statuses}}
        await site.cluster.patch("pods", pod["metadata"]["name"], site.namespace, body, subresource="status")


async def _nodes(site: Site, pool: str) -> list[Manifest]:
    return [node for node in await site.cluster.list("nodes") if node["metadata"]["name"].startswith(pool)]


async def _lose_a_node(site: Site, pool: str) -> None:
    """Of the first group: its Lease stops and its leader does not answer."""
    lost = next(pod for pod in await site.pods() if "-g0-" in pod["metadata"]["name"])
    site.leaders.unreachable.add(lost["status"]["podIP"])
    await site.cluster.kill_node(lost["spec"]["nodeName"])


async def _restarted(site: Site, pool: str) -> None:
    async def forgiven() -> bool:
        (group,) = await site.groups()
        assert group["metadata"]["annotations"].get("berth.dev/accepted-restart", "").startswith("1@"), group
        (pod,) = await site.pods()
        assert pod["metadata"]["annotations"]["berth.dev/token-at-restart"] == "1", pod["metadata"]
        return bool(await site.serving())

    await eventually(forgiven)
    await site.settled()


async def _second_life(site: Site) -> None:
    """Of the first group of two, once it serves."""

    async def serves() -> bool:
        found = await site.get()
        groups = [each for each in found.get("status", {}).get("groups", ()) if each.get("state") == "Serving"]
        assert {each["name"]: each["incarnation"] for each in groups} == {"g0": 2, "g1": 1}, groups
        return True

    await eventually(serves)


async def _only_the_living(site: Site, pool: str) -> None:
    async def old_pod_gone() -> bool:
        return len(await site.pods()) == 2

    await eventually(old_pod_gone)
    await site.settled()


async def _replaced_elsewhere(site: Site, pool: str) -> None:
    """The second life of the first group serves; then its first node comes back and lets its pod go."""
    await _second_life(site)
    for node in await _nodes(site, pool):
        await site.cluster.revive_node(node["metadata"]["name"])
    await _only_the_living(site, pool)


async def _cut_off_and_back(site: Site, pool: str) -> None:
    """It was only suspected: as soon as it answers it has its requests back.

    Where Berth dies first, Kubernetes may be the one who cuts it off: it calls the pods of silent nodes not ready.
    """

    async def cut() -> bool:
        (suspect,) = [pod for pod in await site.pods() if pod["status"]["podIP"] in site.leaders.unreachable]
        ready = {each["type"]: each["status"] for each in suspect["status"]["conditions"]}["Ready"]
        return bool(ready != "True" or suspect["metadata"]["labels"].get("berth.dev/serving") == "false")

    async def both_serve() -> bool:
        return len(await site.serving()) == 2

    if site.leaders.unreachable:
        await eventually(cut)
        site.leaders.unreachable.clear()
    await site.revive(*[node["metadata"]["name"] for node in await _nodes(site, pool)])
    await eventually(both_serve)
    await site.settled()


async def _delete(site: Site, pool: str) -> None:
    await site.cluster.delete("llmdeployments", "llama", site.namespace)


async def _cordon_its_node(site: Site, pool: str) -> None:
    (pod,) = await site.pods()
    await site.cluster.patch("nodes", pod["spec"]["nodeName"], None, {"spec": {"unschedulable": True}})


async def _placed_by_berth(site: Site, pool: str, groups: int = 1, **spec: Any) -> None:
    """On the cheaper of two pools."""
    dear = await site.pool("A100-SXM-40", nodes=1, pricePerGPUHour="99")
    deployment = site.deployment(pool, groups=groups)
    deployment["spec"] |= {
        "traffic": {
            "requestsPerSecond": "1",
            "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
            "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
        },
        "objectives": {"timeToFirstToken": {"p95": "1s"}, "timePerOutputToken": {"p95": "50ms"}},
        "placement": {"mode": "Auto", "pools": [pool, dear]},
        "scaling": {"min": groups, "max": groups},
        **spec,
    }
    await site.cluster.create(deployment)
    await site.settled(timeout=240)


async def _without_surge(site: Site, pool: str) -> None:
    await _placed_by_berth(site, pool, groups=2, update={"surge": "Never", "maxUnavailable": 1})


async def _moved(site: Site, pool: str) -> None:
    await _placed_by_berth(site, pool)
    await _move(site, pool)
    await _judging(site, pool)


async def _move(site: Site, pool: str) -> None:
    dear = next(
        name
        for each in await site.cluster.list("gpupools")
        if site.tag in (name := each["metadata"]["name"]) and name != pool
    )
    groups = (await site.get())["spec"]["scaling"]["max"]
    await _ask(site, f"move {dear} bf16 tp1 x{groups}")


async def _take_back(site: Site, pool: str) -> None:
    await _ask(site, "rollback")


async def _without_a_token(site: Site, pool: str) -> None:
    """A move whose new group runs and produces no token."""
    await _placed_by_berth(site, pool)
    known = {pod["status"]["podIP"] for pod in await site.pods()}
    site.leaders.silent.add("*")
    await _move(site, pool)

    async def new_address() -> set[str]:
        status = (await site.get()).get("status", {})
        assert (status.get("moves") or {}).get("current", {}).get("phase") == "WarmingUp", status
        return {pod["status"]["podIP"] for pod in await site.pods()} - known

    site.leaders.silent |= await eventually(new_address)
    site.leaders.silent.discard("*")


async def _let_the_deadline_pass(site: Site, pool: str) -> None:
    site.clock.ahead = 1300
    await site.patch({"metadata": {"annotations": {"touched": "later"}}})


async def _fail_over(site: Site, pool: str) -> None:
    await _ask(site, "failover g0")


async def _ask(site: Site, request: str) -> None:
    await site.patch({"metadata": {"annotations": {"berth.dev/request": request}}})


async def _judging(site: Site, pool: str) -> None:
    """The new group alone gets requests, and the old one is kept."""

    async def flipped() -> bool:
        status = (await site.get()).get("status", {})
        assert (status.get("moves") or {}).get("current", {}).get("phase") == "Judging", status
        states = sorted(each["status"]["state"] for each in await site.groups())
        assert states == ["Draining", "Serving"], states
        return True

    await eventually(flipped)


async def _exchanged(site: Site, pool: str) -> None:
    """Each old group has made room for a new one, and that is judged."""

    async def all_new() -> bool:
        status = (await site.get()).get("status", {})
        assert (status.get("moves") or {}).get("current", {}).get("phase") == "Judging", status
        found = [(each["spec"]["allocation"]["pool"] != pool, each["status"]["state"]) for each in await site.groups()]
        assert found == [(True, "Serving")] * 2, found
        return True

    await eventually(all_new)


async def _back(site: Site, pool: str) -> None:
    async def only_the_old_one() -> bool:
        status = (await site.get()).get("status", {})
        assert "current" not in (status.get("moves") or {}), status
        pools = [each["spec"]["allocation"]["pool"] for each in await site.groups()]
        assert pools == [pool], pools
        assert all("berth.dev/role" not in each["metadata"]["labels"] for each in await site.groups())
        return True

    await eventually(only_the_old_one)
    await site.settled()


async def _arrived(site: Site, pool: str) -> None:
    async def only_the_new_one() -> bool:
        status = (await site.get()).get("status", {})
        assert "current" not in (status.get("moves") or {}), status
        groups = await site.groups()
        assert len(groups) == 1, groups
        assert groups[0]["spec"]["allocation"]["pool"] != pool, groups
        assert "berth.dev/role" not in groups[0]["metadata"]["labels"], groups
        return True

    await eventually(only_the_new_one)
    await site.settled()


async def _settled(site: Site, pool: str) -> None:
    await site.settled()


async def _one_has_it_and_one_waits(site: Site, pool: str) -> None:
    async def winner() -> str:
        ready = [name for name in RIVALS if (await site.condition("Ready", name)).get("status") == "True"]
        return ready[0] if ready else ""

    first = await eventually(winner)
    (second,) = set(RIVALS) - {first}
    await site.settled(first)
    await site.until("Placed", "False", second)
    assert (await site.groups(second), await site.pods(second)) == ([], []), "all or nothing"


async def _placed_around_others(site: Site, pool: str) -> None:
    """A pod of others gets onto a planned node before the group's own; all is given back, and placed beside it."""
    if await site.cluster.find("pods", OTHERS, site.namespace) is None:
        await foreign_pod(site, await eventually(partial(_held_off, site)), 8, OTHERS)
    await _let_nodes_take(site, pool, 250)

    async def let_go() -> bool:
        marks = {each["spec"]["incarnation"]: each["metadata"]["labels"] for each in await site.groups()}
        return marks.get(1, {}).get("berth.dev/lifecycle") not in ("reserved", "committed")

    async def refused() -> bool:
        words = [each.get("status", {}).get("conditions", [{}])[0].get("message", "") for each in await site.groups()]
        return any("nvidia.com/gpu" in each for each in words) or await let_go()

    await eventually(refused)
    if not await let_go():
        site.clock.ahead += 61
        await site.patch({"metadata": {"annotations": {"touched": secrets.token_hex(4)}}})
    await site.settled()

    async def nothing_is_left_of_former_lives() -> bool:
        """The collector takes their Services some time after them."""
        living = {each["metadata"]["name"] for each in await site.groups()}
        services = {each["metadata"]["name"] for each in await site.cluster.list("services", site.namespace)}
        assert not {each for each in services if "-g0-" in each} - living, services
        return True

    await eventually(nothing_is_left_of_former_lives)


async def _held_off(site: Site) -> str:
    """A planned node, once the scheduler has refused every member."""
    groups, words = await site.groups(), [_refusal(each) for each in await site.pods("llama")]
    assert len(words) == 2, words
    assert all("Too many pods" in each for each in words), words
    return str(groups[0]["spec"]["plannedNodes"][1])


def _refusal(pod: Manifest) -> str:
    """Why the scheduler does not bind it, in its words."""
    conditions = {each["type"]: each for each in pod["status"].get("conditions", ())}
    return str(conditions.get("PodScheduled", {}).get("message", ""))


async def _replaced(site: Site, pool: str) -> None:
    async def second_life_serves() -> bool:
        found = await site.get()
        groups = [each for each in found.get("status", {}).get("groups", ()) if each.get("state") == "Serving"]
        assert [each["incarnation"] for each in groups] == [2], groups
        assert len(await site.pods()) == 1
        return True

    await eventually(second_life_serves)
    await site.settled()


async def _replaced_as_a_whole(site: Site, pool: str) -> None:
    async def second_life_serves() -> bool:
        groups = [each for each in await site.groups() if each.get("status", {}).get("state") == "Serving"]
        assert [each["spec"]["incarnation"] for each in groups] == [2], groups
        assert len(await site.pods()) == 2
        return True

    await eventually(second_life_serves)
    await site.settled()


async def _gone(site: Site, pool: str) -> None:
    async def nothing_left() -> bool:
        left = [
            each["metadata"]["name"]
            for kind in ("pods", "replicagroups", "services", "poddisruptionbudgets")
            for each in await site.cluster.list(kind, site.namespace)
        ]
        assert not left, left
        return True

    await eventually(nothing_left)


_register("create", _nothing, _create, _settled)
_register("create-over-two-nodes", _nothing, _create_over_two_nodes, _settled)
_register("two-for-one-place", _nothing, _two_for_one_place, _one_has_it_and_one_waits)
_register("race-lost", _three_nodes_that_take_nobody, _create_over_two_nodes, _placed_around_others, numbered=False)
_register("scale-up", _one_group, _scale_to(2), _settled)
_register("scale-down", _two_groups, _scale_to(1), _settled)
_register("update", _one_group, _update, _replaced)
_register("failover", _one_group, _lose_a_pod, _replaced)
_register("failover-of-two-members", _one_group_over_two_nodes, _lose_a_member, _replaced_as_a_whole)
_register("failover-asked-for", _one_group, _fail_over, _replaced)
_register("leave-a-node", _one_group, _cordon_its_node, _replaced)
_register("restart-in-place", _one_group, _restart_a_container, _restarted)
_register("gpu-sick", _one_group, _report_a_sick_gpu, _replaced)
_register("node-silent", _two_full_nodes, _lose_a_node, _replaced_elsewhere)
_register("suspected", _two_full_nodes, _lose_a_node, _cut_off_and_back, node_silent=600.0)
_register("force-delete", _beside_a_dead_node, _let_time_pass, _only_the_living)
_register("move", _placed_by_berth, _move, _judging)
_register("move-without-surge", _without_surge, _move, _exchanged, numbered=False)
_register("take-back", _moved, _take_back, _back)
_register("complete", _moved, _let_the_deadline_pass, _arrived)
_register("abandon", _without_a_token, _let_the_deadline_pass, _back)
_register("delete", _one_group, _delete, _gone)
