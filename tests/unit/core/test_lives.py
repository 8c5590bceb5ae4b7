"""Lives of a group: each has a number of its own, and a life that a person ends is ended once."""

from __future__ import annotations

import pytest

from berth import labels
from berth.core.requests import NOTHING, Request, Wish, pending
from berth.core.timestamps import timestamp
from tests.unit.core.simulation import Simulation, deployment


def run(simulation: Simulation, passes: int = 12) -> None:
    for _ in range(passes):
        simulation.kubelets()
        simulation.run_pass()


def lives(simulation: Simulation) -> set[str]:
    return {f"{each['spec']['group']}-{each['spec']['incarnation']}" for each in simulation.groups.values()}


def test_the_name_of_a_group_that_was_deleted_with_all_its_pods_is_not_used_again() -> None:
    simulation = Simulation(deployment())
    run(simulation)
    name = next(name for name, each in simulation.groups.items() if each["spec"]["group"] == "g0")
    del simulation.groups[name], simulation.pods[f"{name}-0"]
    run(simulation)
    assert lives(simulation) == {"g0-2", "g1-1"}


def test_status_that_nobody_can_read_numbers_lives_by_what_is_there() -> None:
    simulation = Simulation(deployment())
    run(simulation)
    simulation.stored["status"]["groups"] = [{"name": "g01", "incarnation": 7}, {"name": "g1"}, {"name": "other"}]
    simulation.groups.clear()
    simulation.pods.clear()
    run(simulation)
    assert lives(simulation) == {"g0-1", "g1-1"}


def test_a_failover_that_was_asked_for_happens_once_though_its_answer_is_lost() -> None:
    simulation = Simulation(deployment(groups=1))
    run(simulation)
    simulation.wish = Wish(Request("failover g0", "failover", group=0))
    for _ in range(40):
        simulation.kubelets()
        simulation.run_pass()
        simulation.stored["status"].pop("request", None)
    assert lives(simulation) == {"g0-1", "g0-2"}
    assert simulation.stored["status"]["readyReplicas"] == 1


def test_the_same_words_ask_again_once_something_else_was_answered() -> None:
    simulation = Simulation(deployment(groups=1))
    run(simulation)
    simulation.wish = Wish(Request("failover g0", "failover", group=0))
    simulation.run_pass()
    simulation.wish = Wish()
    run(simulation)
    simulation.stored["status"]["request"] = {"text": "rollback", "result": "Refused", "at": timestamp(simulation.now)}
    simulation.wish = Wish(Request("failover g0", "failover", group=0))
    simulation.run_pass()
    simulation.wish = Wish()
    run(simulation)
    assert lives(simulation) == {"g0-1", "g0-2", "g0-3"}


def asked(simulation: Simulation, passes: int = 12) -> None:
    """Passes that deal with the annotation."""
    for _ in range(passes):
        request = pending(simulation.snapshot())
        simulation.wish = Wish(request) if request is not None else NOTHING
        run(simulation, 1)


def test_what_was_asked_for_once_is_not_done_again_when_nothing_but_groups_remembers_it() -> None:
    simulation = Simulation(deployment(groups=2))
    run(simulation)
    simulation.stored["metadata"]["annotations"] = {labels.REQUEST: "failover g0"}
    asked(simulation)
    told = simulation.stored["status"]["request"]
    simulation.now += 7200
    asked(simulation)
    assert lives(simulation) == {"g0-2", "g1-1"}, "the evidence is forgotten"
    for _ in range(3):
        simulation.stored.pop("status")
        asked(simulation)
        assert lives(simulation) == {"g0-2", "g1-1"}
        assert simulation.stored["status"]["request"] == told
    simulation.stored["metadata"]["annotations"] = {labels.REQUEST: "failover g0 @again"}
    asked(simulation)
    assert lives(simulation) == {"g0-2", "g0-3", "g1-1"}


@pytest.mark.parametrize(
    "memory", ["", "{", "[]", '{"text": 3}', '{"text": "failover g0", "result": "Done", "at": "2999-01-01T00:00:00Z"}']
)
def test_a_memory_that_somebody_edited_answers_nothing(memory: str) -> None:
    simulation = Simulation(deployment(groups=1))
    run(simulation)
    for group in simulation.groups.values():
        group["metadata"]["annotations"][labels.ANSWERED] = memory
    simulation.stored["metadata"]["annotations"] = {labels.REQUEST: "failover g0"}
    asked(simulation)
    assert lives(simulation) == {"g0-1", "g0-2"}


def test_an_answer_of_an_old_backup_does_not_ask_again() -> None:
    simulation = Simulation(deployment(groups=2))
    run(simulation)
    simulation.stored["status"]["request"] = {"text": "rollback", "result": "Refused", "at": timestamp(simulation.now)}
    backup = dict(simulation.stored["status"])
    simulation.now += 60
    simulation.stored["metadata"]["annotations"] = {labels.REQUEST: "failover g0"}
    asked(simulation)
    simulation.now += 7200
    asked(simulation)
    simulation.stored["status"] = backup
    asked(simulation)
    assert lives(simulation) == {"g0-2", "g1-1"}
