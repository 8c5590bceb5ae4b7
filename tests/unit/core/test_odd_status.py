"""What somebody else wrote into status, or a newer release: never an error, and never a reason to touch what serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from berth import labels
from tests.unit.core.cluster import copy_of
from tests.unit.core.simulation import Simulation, deployment

ODD: tuple[Any, ...] = (None, "x", -1, [], [5], {"a": 1}, [{"name": 3}], 10**30)
SELDOM = {
    "calibration": [{"scope": "pool/h100", "metric": "step", "factor": "1.1", "samples": 3}],
    "moves": {
        "current": {"id": "m1", "phase": "Starting"},
        "recent": [{"id": "m0", "result": "Completed", "finishedAt": "2026-01-01T00:00:00Z"}],
        "hold": {"reason": "CoolingDown", "message": "the last move was just now"},
    },
    "request": {"text": "rollback", "result": "Done", "at": "2026-01-01T00:00:00Z"},
    "lastFailover": {"group": "g0", "reason": "MemberFailed", "at": "2026-01-01T00:00:00.000Z"},
}
"""Beside what every deployment has."""


def paths(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything down to the fields of the first item of a list."""
    if here:
        yield here
    children = node.items() if isinstance(node, dict) else enumerate(node[:1]) if isinstance(node, list) else ()
    if len(here) < 3:
        for key, child in children:
            yield from paths(child, (*here, key))


@pytest.fixture(scope="module")
def serving() -> Simulation:
    simulation = Simulation(deployment())
    for _ in range(12):
        simulation.kubelets()
        simulation.run_pass()
    simulation.stored["status"] |= SELDOM
    simulation.run_pass()  # the groups remember of it what they have to
    simulation.stored["status"] |= SELDOM
    return simulation


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_values_anywhere_in_status_stop_no_pass_and_move_nothing(odd: Any, serving: Simulation) -> None:
    status, groups, pods = (copy_of(each) for each in (serving.stored["status"], serving.groups, serving.pods))
    for *parents, last in list(paths(status)):
        broken = node = copy_of(status)
        for key in parents:
            node = node[key]
        node[last] = copy_of(odd)
        serving.stored["status"] = broken
        serving.run_pass()
        assert (serving.groups, serving.pods) == (groups, pods), (*parents, last)
        assert serving.stored["status"]["readyReplicas"] == 2
    serving.stored["status"] = status


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_values_anywhere_in_the_status_of_a_group_stop_no_pass_and_move_nothing(
    odd: Any, serving: Simulation
) -> None:
    """But the UIDs of its pods: another UID means that a pod was replaced."""
    name = min(serving.groups)
    before, pods = copy_of(serving.groups[name]), copy_of(serving.pods)
    told = {
        "evidence": {"cause": "RestartedInPlace", "exitCode": 1, "occurredAt": "2026-01-01T00:00:00.000Z"},
        "failover": {"at": "2026-01-01T00:00:00.000Z", "detectedAfter": "1.0s", "replacedAfter": "2.0s"},
    }
    status = before["status"] | told
    for *parents, last in [path for path in paths(status) if path[0] != "memberUIDs"]:
        broken = node = copy_of(status)
        for key in parents:
            node = node[key]
        node[last] = copy_of(odd)
        serving.groups[name] = copy_of(before) | {"status": broken}
        serving.run_pass()
        assert serving.pods == pods, (*parents, last)
    serving.groups[name] = before
    serving.run_pass()


@pytest.mark.parametrize(
    "failover", [{"detectedAfter": "1.0s"}, {"at": "soon"}, {"at": "2026-01-01T00:00:00Z", "replacedAfter": "-"}]
)
def test_a_group_with_a_record_that_makes_no_sense_is_replaced_like_any_other(failover: dict[str, str]) -> None:
    simulation = Simulation(deployment(groups=1))
    for _ in range(12):
        simulation.kubelets()
        simulation.run_pass()
    (group,) = simulation.groups.values()
    group["status"]["failover"] = failover
    simulation.pods.clear()
    for _ in range(12):
        simulation.kubelets()
        simulation.run_pass()
    assert simulation.stored["status"]["readyReplicas"] == 1
    assert simulation.stored["status"]["lastFailover"]["group"] == "g0"


def test_the_files_that_pods_have_are_no_matter_of_opinion() -> None:
    simulation = Simulation(deployment(groups=1))
    for _ in range(12):
        simulation.kubelets()
        simulation.run_pass()
    (group,) = simulation.groups.values()
    before = copy_of(group["metadata"])
    group["metadata"]["annotations"][labels.CONFIG_MAP] = "other"
    simulation.run_pass()
    assert group["metadata"] == before


def test_a_number_of_lives_that_nobody_lived_leaves_names_for_those_to_come() -> None:
    simulation = Simulation(deployment(groups=1))
    simulation.run_pass()
    simulation.groups.clear()
    simulation.pods.clear()
    simulation.stored["status"]["groups"] = [{"name": "g0", "incarnation": 999_999_999}]
    for _ in range(12):
        simulation.kubelets()
        simulation.run_pass()
    assert [each["spec"]["incarnation"] for each in simulation.groups.values()] == [1]
