"""What becomes of groups whose nodes are about to go: the decisions one by one, and what counts as a notice."""

from __future__ import annotations

from typing import Any

import pytest

from berth import labels
from berth.controller import parse
from berth.core.announce import announcements
from berth.core.disruption import NOTICES, Notices, overlapping_budgets
from berth.core.nodes import NodeView, Taint
from tests.unit.core.simulation import Manifest, Simulation, deployment

TWO_NEEDED = {"minAvailable": 2, "recovery": {"maxFailures": 3}}


def started(stored: Manifest, nodes: int) -> Simulation:
    simulation = Simulation(stored, nodes)
    run(simulation)
    return simulation


def run(simulation: Simulation, passes: int = 20) -> None:
    for _ in range(passes):
        simulation.kubelets()
        simulation.run_pass()


def nodes_of(simulation: Simulation) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in simulation.pods.values()}


def alive(simulation: Simulation) -> set[str]:
    """Slot and incarnation of the groups that are neither failed nor on their way out."""
    found = simulation.groups.values()
    living = [each for each in found if parse.lifecycle(each) in (labels.RESERVED, labels.COMMITTED)]
    return {f"{each['spec']['group']}-{each['spec']['incarnation']}" for each in living}


def condition(simulation: Simulation, kind: str) -> Manifest:
    found: list[Manifest] = simulation.stored["status"]["conditions"]
    return next(each for each in found if each["type"] == kind)


def test_all_groups_of_a_node_are_replaced_at_once() -> None:
    simulation = started(deployment(tensor=2, groups=3), 2)
    (node,) = nodes_of(simulation)
    simulation.cordoned = {node}
    simulation.run_pass()
    assert alive(simulation) == {"g0-1", "g1-1", "g2-1", "g0-2", "g1-2", "g2-2"}
    run(simulation)
    assert nodes_of(simulation) == {"node-0", "node-1"} - {node}
    assert alive(simulation) == {"g0-2", "g1-2", "g2-2"}


def test_without_room_only_as_many_leave_as_are_not_needed() -> None:
    spec = deployment(tensor=8, groups=3, disruption={"whenNoCapacity": "DownToNeeded"})
    simulation = started({**spec, "spec": {**spec["spec"], "replicaGroups": TWO_NEEDED}}, 3)
    simulation.cordoned = {"node-0", "node-1", "node-2"}
    run(simulation)
    assert len(alive(simulation)) == 2
    found = condition(simulation, "Disrupted")
    assert found["reason"] == "DisruptionBlocked"
    assert "without it 1 of 2 needed would serve" in found["message"]


def test_by_default_nobody_leaves_without_room() -> None:
    simulation = started(deployment(tensor=8, groups=2, update={"maxUnavailable": 1}), 2)
    simulation.cordoned = {"node-0"}
    run(simulation)
    assert nodes_of(simulation) == {"node-0", "node-1"}
    assert "disruption.whenNoCapacity is Block" in condition(simulation, "Disrupted")["message"]


def test_limits_hold_while_groups_move() -> None:
    simulation = started(deployment(tensor=8, groups=2, objectives={"limits": {"gpus": 16}}), 4)
    simulation.cordoned = set(nodes_of(simulation))
    run(simulation)
    assert alive(simulation) == {"g0-1", "g1-1"}
    assert "16 of objectives.limits.gpus 16 are in use" in condition(simulation, "Disrupted")["message"]


def test_without_surge_a_group_leaves_first_within_max_unavailable() -> None:
    simulation = started(deployment(tensor=8, groups=3, update={"surge": "Never", "maxUnavailable": 1}), 6)
    simulation.cordoned = set(nodes_of(simulation))
    simulation.run_pass()
    assert len(alive(simulation)) == 2, "one is down, and not all three"
    run(simulation, 60)
    assert not nodes_of(simulation) & simulation.cordoned
    assert len(alive(simulation)) == 3


def test_a_node_that_comes_back_before_the_replacement_serves_is_not_left() -> None:
    simulation = started(deployment(tensor=8, groups=1), 2)
    before = set(simulation.pods)
    simulation.cordoned = nodes_of(simulation)
    simulation.silent = {"*"}
    run(simulation, 5)
    assert alive(simulation) == {"g0-1", "g0-2"}
    simulation.cordoned = set()
    run(simulation, 5)
    assert (alive(simulation), set(simulation.pods)) == ({"g0-1"}, before)


def test_a_replacement_whose_own_node_goes_is_replaced_too() -> None:
    simulation = started(deployment(tensor=8, groups=1), 3)
    first = nodes_of(simulation)
    simulation.cordoned = set(first)
    simulation.silent = {"*"}
    run(simulation, 4)
    simulation.cordoned = nodes_of(simulation)
    assert len(simulation.cordoned) == 2
    simulation.run_pass()
    simulation.run_pass()
    assert alive(simulation) == {"g0-1", "g0-3"}, "the one that never served leaves once another is on its way"
    simulation.silent = set()
    run(simulation)
    assert len(nodes_of(simulation)) == 1
    assert not nodes_of(simulation) & simulation.cordoned


def test_a_replacement_that_does_not_serve_in_time_is_a_failure_and_the_old_one_serves_on() -> None:
    simulation = started(deployment(tensor=8, groups=1), 3)
    old = set(simulation.pods)
    simulation.cordoned = nodes_of(simulation)
    simulation.silent = {"*"}
    run(simulation, 5)
    simulation.now += 1300
    run(simulation, 3)
    reasons = [group["metadata"]["annotations"].get(labels.FAILURE_REASON) for group in simulation.groups.values()]
    assert "DeadlineExceeded" in reasons
    assert old <= set(simulation.pods)


def test_a_drain_of_one_node_after_the_other_spends_no_failure_budget() -> None:
    """Pods that are not ready yet are evicted at once: the replacement, again and again."""
    simulation = started(deployment(tensor=8, groups=1), 3)
    (old,) = simulation.pods
    simulation.cordoned = nodes_of(simulation)
    simulation.silent = {"*"}
    for _ in range(6):
        run(simulation, 3)
        (fresh,) = set(simulation.pods) - {old}
        (kept,) = simulation.cordoned & {simulation.pods[old]["spec"]["nodeName"]}
        simulation.cordoned = {kept, simulation.pods[fresh]["spec"]["nodeName"]}
        del simulation.pods[fresh]
    run(simulation, 3)
    assert old in simulation.pods
    assert "-8-0" in next(iter(set(simulation.pods) - {old})), "made anew each time, without delay"
    assert condition(simulation, "Stalled")["status"] == "False"


@pytest.mark.parametrize("when", ["Changes", "All"])
def test_nothing_leaves_while_changes_are_paused(when: str) -> None:
    simulation = started(deployment(tensor=8, groups=1), 2)
    simulation.cordoned = nodes_of(simulation)
    simulation.stored["spec"]["pause"] = when
    run(simulation)
    assert alive(simulation) == {"g0-1"}
    assert condition(simulation, "Disrupted")["reason"] == "Paused"


def test_fewer_groups_are_wanted_and_those_on_leaving_nodes_go_first() -> None:
    simulation = started(deployment(tensor=8, groups=2), 2)
    (first,) = {pod["spec"]["nodeName"] for name, pod in simulation.pods.items() if "-g0-" in name}
    simulation.cordoned = {first}
    simulation.stored["spec"]["placement"]["fixed"]["allocations"][0]["groups"] = 1
    run(simulation)
    assert alive(simulation) == {"g1-1"}


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (NodeView("n"), ""),
        (NodeView("n", unschedulable=True), "is cordoned"),
        (NodeView("n", deleting=True), "is being deleted"),
        (NodeView("n", taints=(Taint("nvidia.com/gpu", "", "NoSchedule"),)), ""),
        (
            NodeView("n", taints=(Taint("ToBeDeletedByClusterAutoscaler", "1", "NoSchedule"),)),
            "has taint ToBeDeletedByClusterAutoscaler=1:NoSchedule",
        ),
        (NodeView("n", conditions={"Ready": "True", "PreemptScheduled": "False"}), ""),
        (NodeView("n", conditions={"Ready": "True", "PreemptScheduled": "True"}), "has condition PreemptScheduled"),
    ],
)
def test_what_counts_as_leaving(node: NodeView, why: str) -> None:
    assert NOTICES.why_leaving(node) == why


def test_what_counts_as_a_notice_can_be_set() -> None:
    mine = Notices(frozenset({"example.com/going"}), frozenset())
    assert mine.of(NodeView("n", taints=(Taint("example.com/going", "", "PreferNoSchedule"),)))
    assert not mine.of(NodeView("n", conditions={"PreemptScheduled": "True"}))


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"app": "llm"}}, True),
        ({"matchLabels": {"app": "llm", "tier": "x"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["llm", "web"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, False),
        ({"matchLabels": {"app": "llm"}, "matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Resembles"}]}, False),
    ],
)
def test_a_budget_selects_as_the_api_server_reads_it(selector: Any, selects: bool) -> None:
    budget = {"metadata": {"name": "theirs"}, "spec": {"selector": selector}}
    assert overlapping_budgets([budget], [{"app": "llm"}]) == (("theirs",) if selects else ())


def events(before: Manifest, after: Manifest) -> list[tuple[str, bool]]:
    return [(each.reason, each.warning) for each in announcements(before, after, ())]


def status(ready: str = "True", groups: int = 2, **reasons: str) -> Manifest:
    """A status with these reasons by condition; a reason of trouble is True, but False for LossTolerated."""
    fine = {"Disrupted": "NoDisruption", "LossTolerated": "AnyLossKeepsNeeded"}
    conditions = [{"type": "Ready", "status": ready, "reason": "AllGroupsServe", "message": ""}]
    for kind, reason in {**fine, **reasons}.items():
        good = reason == fine[kind]
        told = "True" if good == (kind == "LossTolerated") else "False"
        conditions.append({"type": kind, "status": told, "reason": reason, "message": "words"})
    return {"conditions": conditions, "replicas": groups, "needed": 1}


def test_each_turn_of_a_disruption_is_told_once() -> None:
    calm, leaving, blocked = status(), status(Disrupted="LeavingNodes"), status(Disrupted="DisruptionBlocked")
    assert events(calm, leaving) == [("LeavingNodes", False)]
    assert events(leaving, blocked) == [("DisruptionBlocked", True)]
    assert events(blocked, blocked) == events(blocked, calm) == []


def test_a_fragile_layout_is_told_when_it_is_the_layout_and_not_a_failure() -> None:
    calm, fragile = status(), status(LossTolerated="DomainLossBreaksNeeded")
    assert events(calm, fragile) == [("DomainLossBreaksNeeded", True)]
    failing = status(ready="False", LossTolerated="NodeLossBreaksNeeded")
    assert "NodeLossBreaksNeeded" not in dict(events(calm, failing))
    assert "NodeLossBreaksNeeded" in dict(events(failing, status(LossTolerated="NodeLossBreaksNeeded")))
    assert events(status(groups=1), status(groups=1, LossTolerated="NodeLossBreaksNeeded")) == [], (
        "nobody asked for more"
    )
