"""One group falls silent while something happens to the other: at no pass are both cut off without need."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import pytest

from berth import labels
from berth.controller import parse
from berth.core.requests import Request, Wish
from tests.unit.core import test_simulation as events
from tests.unit.core.cluster import Manifest, copy_of
from tests.unit.core.simulation import Simulation, deployment

SHAPES = {
    "down to needed": deployment(tensor=8, disruption={"whenNoCapacity": "DownToNeeded"}),
    "no surge": deployment(tensor=8, update={"surge": "Never", "maxUnavailable": 1}),
}


@cache
def _settled(shape: str) -> Simulation:
    simulation = Simulation(SHAPES[shape], 2)
    for _ in range(8):
        events.proceed(simulation, 0)
    assert events.settled(simulation)
    return simulation


def _leader(simulation: Simulation, slot: int) -> Manifest:
    return next(pod for name, pod in simulation.pods.items() if f"-g{slot}-" in name)


def _node(simulation: Simulation, slot: int) -> str:
    return str(_leader(simulation, slot)["spec"]["nodeName"])


def dies(simulation: Simulation) -> None:
    simulation.dead.add(_node(simulation, 0))


def is_cut_off(simulation: Simulation) -> None:
    """Its kubelet from the API server, and every leader from Berth: it works on."""
    simulation.mute.add(_node(simulation, 0))
    simulation.deaf = True


def cordoned(simulation: Simulation) -> None:
    simulation.cordoned.add(_node(simulation, 1))


def hangs(simulation: Simulation) -> None:
    simulation.hung.add(_leader(simulation, 1)["metadata"]["uid"])


def restarts_at_once(simulation: Simulation) -> None:
    simulation.restart(_leader(simulation, 1))


def restarts(simulation: Simulation) -> None:
    simulation.crash(_leader(simulation, 1))


def gpu_breaks(simulation: Simulation) -> None:
    simulation.sick.add(_leader(simulation, 1)["metadata"]["uid"])


def drains(simulation: Simulation) -> None:
    simulation.draining.add(_leader(simulation, 1)["metadata"]["uid"])


def node_dies(simulation: Simulation) -> None:
    simulation.dead.add(_node(simulation, 1))


def spec_changes(simulation: Simulation) -> None:
    events.edit(simulation, 1)


def fewer_are_wanted(simulation: Simulation) -> None:
    simulation.stored["spec"]["placement"]["fixed"]["allocations"][0]["groups"] = 1
    simulation.stored["metadata"]["generation"] += 1


def failover_is_asked_for(simulation: Simulation) -> None:
    simulation.wish = Wish(Request("failover g1", "failover", 1))


def berth_restarts(simulation: Simulation) -> None:
    simulation.restart_operator()


FIRST = [("down to needed", dies), ("no surge", dies), ("down to needed", is_cut_off)]
ROUNDS = [(True, True, True), (True, False, False, False, True)]
"""At which passes Leases are older than at the one before: leaders are asked more often than nodes renew."""
MOMENTS = [(rounds, moment) for rounds in ROUNDS for moment in range(len(rounds))]
SECOND: list[Callable[[Simulation], None]] = [
    cordoned,
    hangs,
    restarts_at_once,
    restarts,
    gpu_breaks,
    drains,
    node_dies,
    spec_changes,
    fewer_are_wanted,
    failover_is_asked_for,
    berth_restarts,
]


@pytest.mark.parametrize("second", SECOND)
def test_a_silent_group_keeps_its_requests_until_another_is_sure_to_have_them(
    second: Callable[[Simulation], None],
) -> None:
    """The referee of the simulation judges every order, at every moment that the second thing may happen."""
    for (shape, first), (rounds, moment) in product(FIRST, MOMENTS):
        simulation = copy_of(_settled(shape))
        first(simulation)
        for number, time_passes in enumerate(rounds):
            if number == moment:
                second(simulation)
            if time_passes:
                simulation.kubelets()
            simulation.run_pass()
        simulation.wish = Wish()
        for _ in range(4):
            simulation.kubelets()
            simulation.run_pass()
        _check_nobody_dead_gets_requests(simulation)


def _check_nobody_dead_gets_requests(simulation: Simulation) -> None:
    """However it came about: what was lost for good is known to be lost in the end."""
    for group in simulation.groups.values():
        leader = simulation.leader_of(group)
        if leader is None or leader["spec"].get("nodeName") not in simulation.dead:
            continue
        assert leader["metadata"]["labels"].get(labels.SERVING) != "true"
        assert parse.lifecycle(group) == labels.FAILED
