"""A deployment under random edits, failures, lost answers and crashes: what never happens, and where it always ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth import labels
from berth.controller import parse
from tests.unit.core.simulation import POOL, Manifest, Simulation, deployment

SHAPES: dict[str, Manifest] = {
    "one pod": deployment(tensor=4),
    "two nodes": deployment(tensor=8, pipeline=2, groups=1),
    "two needed": deployment(tensor=2, groups=3, min_available=2),
    "no surge": deployment(tensor=8, groups=3, update={"surge": "Never", "maxUnavailable": 1}),
    "down to needed": deployment(tensor=8, disruption={"whenNoCapacity": "DownToNeeded"}),
    "stays": deployment(tensor=4, disruption={"onCordon": "Ignore"}),
    "force": deployment(
        tensor=4,
        replicaGroups={"minAvailable": 1, "recovery": {"maxFailures": 3, "forceDelete": "NodeUnreachable"}},
    ),
    "limit": deployment(tensor=4, objectives={"limits": {"gpus": 8}}, update={"maxUnavailable": 1}),
}
NODES = {"two nodes": 7}
"""Two groups, one more while they are updated, and a node that stays cordoned; 3 for the others."""
ROOM = ("one pod", "two nodes", "two needed")
"""Shapes that can leave a node with all their groups."""


def _pick(found: list[Any], number: int) -> list[Any]:
    return [found[number % len(found)]] if found else []


def _bound(simulation: Simulation) -> list[Manifest]:
    return [pod for pod in simulation.pods.values() if "containerStatuses" in pod["status"]]


def kill(simulation: Simulation, number: int) -> None:
    for name in _pick(list(simulation.pods), number):
        del simulation.pods[name]


def delete(simulation: Simulation, number: int) -> None:
    for pod in _pick(list(simulation.pods.values()), number):
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def fail(simulation: Simulation, number: int) -> None:
    for pod in _pick(_bound(simulation), number):
        pod["status"] |= {"phase": "Failed", "reason": "Evicted", "conditions": []}


def restart(simulation: Simulation, number: int) -> None:
    for pod in _pick(_bound(simulation), number):
        simulation.restart(pod)


def crash(simulation: Simulation, number: int) -> None:
    for pod in _pick(_bound(simulation), number):
        simulation.crash(pod)


def unready(simulation: Simulation, number: int) -> None:
    for pod in _pick(_bound(simulation), number):
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]


def silence(simulation: Simulation, number: int) -> None:
    simulation.silent = {"*"} if number % 2 else {pod["metadata"]["uid"] for pod in simulation.pods.values()}


def speak(simulation: Simulation, number: int) -> None:
    simulation.silent = set()
    simulation.busy = bool(number % 2)


def edit(simulation: Simulation, number: int) -> None:
    env = [{"name": "REVISION", "value": str(number % 3)}]
    simulation.stored["spec"]["pod"] = {"env": env}
    simulation.stored["metadata"]["generation"] += 1


def scale(simulation: Simulation, number: int) -> None:
    allocation = simulation.stored["spec"]["placement"]["fixed"]["allocations"][0]
    most = 2 if allocation["tensorParallel"] * allocation.get("pipelineParallel", 1) > 2 else 4
    least = (
        2 if simulation.stored["spec"].get("update", {}).get("surge") == "Never" else 1
    )  # else it cannot be replaced
    allocation["groups"] = least + number % most
    simulation.stored["metadata"]["generation"] += 1


def pause(simulation: Simulation, number: int) -> None:
    simulation.stored["spec"]["pause"] = ("None", "Changes", "All")[number % 3]


def forge(simulation: Simulation, number: int) -> None:
    """Somebody turns a serving label by hand."""
    for pod in _pick(list(simulation.pods.values()), number):
        now = pod["metadata"]["labels"].get(labels.SERVING)
        pod["metadata"]["labels"][labels.SERVING] = "false" if now == "true" else "true"


def strip(simulation: Simulation, number: int) -> None:
    """Somebody takes all labels of ours, or a group's annotations; what tells the same is left."""
    whole = [each for each in simulation.groups.values() if each.get("status") and labels.GROUP_LABEL in _labels(each)]
    for group in _pick(whole, number):
        if number % 2:
            group["metadata"]["annotations"] = {}
        elif group["metadata"]["annotations"]:
            _strip_labels(group)
    for pod in _pick(list(simulation.pods.values()), number):
        _strip_labels(pod)


def _labels(found: Manifest) -> Manifest:
    return dict(found["metadata"]["labels"])


def _strip_labels(found: Manifest) -> None:
    kept = {labels.SERVING, labels.DEPLOYMENT_UID}
    found["metadata"]["labels"] = {key: value for key, value in _labels(found).items() if key in kept}


def wipe(simulation: Simulation, number: int) -> None:
    simulation.stored.pop("status", None)
    for group in simulation.groups.values():
        group.pop("status", None)


def forget(simulation: Simulation, number: int) -> None:
    """The operator is another process now."""
    simulation.restart_operator()


def lose_group(simulation: Simulation, number: int) -> None:
    """Somebody deletes a ReplicaGroup, and garbage collection its pods."""
    for name in _pick(list(simulation.groups), number):
        uid = simulation.groups.pop(name)["metadata"]["uid"]
        for pod in simulation.pods.values():
            if pod["metadata"]["ownerReferences"][0]["uid"] == uid:
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def lose_children(simulation: Simulation, number: int) -> None:
    simulation.children.clear()


def wait(simulation: Simulation, number: int) -> None:
    simulation.now += (1, 15, 90, 1300, 4000)[number % 5]


def node_dies(simulation: Simulation, number: int) -> None:
    simulation.dead ^= set(_pick(list(simulation.nodes), number))


def cordon(simulation: Simulation, number: int) -> None:
    simulation.cordoned ^= set(_pick(list(simulation.nodes), number))


def kubelet_is_cut_off(simulation: Simulation, number: int) -> None:
    simulation.mute ^= set(_pick(list(simulation.nodes), number))


def node_is_deleted(simulation: Simulation, number: int) -> None:
    simulation.gone ^= set(_pick(list(simulation.nodes), number))


def gpu_sick(simulation: Simulation, number: int) -> None:
    simulation.sick ^= {pod["metadata"]["uid"] for pod in _pick(_bound(simulation), number)}


def engine_hangs(simulation: Simulation, number: int) -> None:
    simulation.hung ^= {pod["metadata"]["uid"] for pod in _pick(_bound(simulation), number)}


def berth_is_cut_off(simulation: Simulation, number: int) -> None:
    simulation.deaf = bool(number % 2)


def freeze(simulation: Simulation, number: int) -> None:
    simulation.frozen = bool(number % 2)


def pool_is_taken_away(simulation: Simulation, number: int) -> None:
    """Somebody deletes the GPUPool, or makes it again."""
    simulation.pools = {} if simulation.pools else {"h100": POOL}


def node_is_renamed(simulation: Simulation, number: int) -> None:
    """The machine comes back under another name: as if one node was deleted and another joined."""
    for name in _pick(sorted(set(simulation.nodes) - simulation.gone), number):
        simulation.nodes[f"{name}r"] = simulation.nodes[name]
        simulation.gone.add(name)


def others_come(simulation: Simulation, number: int) -> None:
    """Pods of others take or leave the GPUs of a node."""
    for name in _pick(list(simulation.nodes), number):
        simulation.nodes[name] = 0 if simulation.nodes[name] else 8


def proceed(simulation: Simulation, number: int) -> None:
    for _ in range(1 + number % 4):
        simulation.kubelets()
        simulation.run_pass()


EVENTS: list[Callable[[Simulation, int], None]] = [
    kill,
    delete,
    fail,
    restart,
    crash,
    unready,
    silence,
    speak,
    edit,
    edit,
    scale,
    pause,
    forge,
    strip,
    wipe,
    forget,
    lose_group,
    lose_children,
    wait,
    node_dies,
    cordon,
    cordon,
    node_dies,
    kubelet_is_cut_off,
    node_is_deleted,
    gpu_sick,
    engine_hangs,
    berth_is_cut_off,
    freeze,
    others_come,
    pool_is_taken_away,
    node_is_renamed,
    *[proceed] * 6,
]
NUMBERS = st.integers(0, 11)


def converge(simulation: Simulation, cordoned: int) -> None:
    """Fate and the user rest, so many nodes stay cordoned; everything ends as wanted."""
    simulation.cordoned = set(sorted(simulation.cordoned)[:cordoned])
    simulation.silent, simulation.busy, simulation.dead = set(), False, set()
    simulation.mute, simulation.gone, simulation.sick, simulation.hung = set(), set(), set(), set()
    simulation.deaf = simulation.frozen = False
    simulation.pools = {"h100": POOL}
    simulation.nodes = dict.fromkeys(simulation.nodes, 8)
    simulation.stored["spec"]["pause"] = "None"
    for pod in _bound(simulation):
        if pod["status"]["phase"] == "Running" and "state" not in pod["status"]["containerStatuses"][0]:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    idle = 0
    for _ in range(300):
        simulation.kubelets()
        plan = simulation.run_pass()
        idle = 0 if plan.actions else idle + 1
        if idle > 2:
            if settled(simulation):
                return
            simulation.now += plan.requeue_after or 60.0
    raise AssertionError("did not settle:\n" + "\n".join(simulation.history[-80:]))


def settled(simulation: Simulation) -> bool:
    alive = [group for group in simulation.groups.values() if parse.lifecycle(group) == labels.COMMITTED]
    others = {parse.lifecycle(group) for group in simulation.groups.values() if group not in alive}
    hashes = {group["spec"]["templateHash"] for group in alive}
    members = sum(group["spec"]["members"] for group in alive)
    return (
        len(alive) == len({group["spec"]["group"] for group in alive}) == simulation.wanted
        and len(hashes) == 1
        and all(map(simulation.serves, alive))
        and len(simulation.pods) == members
        and others <= {labels.FAILED}
        and not {pod["spec"]["nodeName"] for pod in simulation.pods.values()} & simulation.cordoned
        and simulation.stored["status"]["summary"]["message"] == "Ready"
    )


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25)
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), NUMBERS, st.none() | st.integers(0, 5)), max_size=30))
def test_whatever_happens_nothing_forbidden_happens_and_it_settles(shape: str, events: list[Any]) -> None:
    simulation = Simulation(SHAPES[shape], NODES.get(shape, 3))
    for event, number, cut in events:
        simulation.history.append(f"--- {event.__name__} {number} cut {cut}")
        event(simulation, number)
        simulation.run_pass(cut)
    converge(simulation, int(shape in ROOM))


def test_a_silent_node_is_not_given_up_for_a_group_whose_engine_is_found_frozen_at_the_same_moment() -> None:
    simulation = Simulation(SHAPES["down to needed"], 3)
    for event, number in ((node_dies, 0), (proceed, 2), (node_dies, 1), (engine_hangs, 1), (proceed, 1)):
        event(simulation, number)
        simulation.run_pass()  # checks every order
    (failed,) = [each for each in simulation.groups.values() if parse.lifecycle(each) == labels.FAILED]
    assert failed["spec"]["group"] == "g1"


DRAINS: dict[str, Manifest] = {
    "block": deployment(tensor=8, groups=3, min_available=2),
    "down to needed": deployment(
        tensor=8, groups=3, min_available=2, disruption={"whenNoCapacity": "DownToNeeded"}, update={"maxUnavailable": 1}
    ),
    "no surge": deployment(tensor=8, groups=3, min_available=2, update={"surge": "Never", "maxUnavailable": 2}),
    "over nodes": deployment(tensor=8, pipeline=2, min_available=1, disruption={"whenNoCapacity": "DownToNeeded"}),
}
TAKEN_AWAY: list[Callable[[Simulation, int], None]] = [
    cordon,
    cordon,
    cordon,
    others_come,
    silence,
    speak,
    edit,
    forget,
    unready,
    wipe,
    *[proceed] * 4,
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", DRAINS)
@settings(max_examples=25)
@given(events=st.lists(st.tuples(st.sampled_from(TAKEN_AWAY), NUMBERS, st.none() | st.integers(0, 5)), max_size=30))
def test_nodes_are_taken_away_in_any_order_and_those_that_are_needed_serve(shape: str, events: list[Any]) -> None:
    simulation = Simulation(DRAINS[shape], 6 if shape == "over nodes" else 4)
    for _ in range(8):
        proceed(simulation, 0)
    assert settled(simulation)
    for event, number, cut in events:
        simulation.history.append(f"--- {event.__name__} {number} cut {cut}")
        event(simulation, number)
        simulation.run_pass(cut)
    converge(simulation, 0)
