"""A move under random failures, edits, wiped statuses and crashes: what never happens, and that it always ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from berth import labels
from berth.api.placement import Allocation
from berth.core import actions as do
from berth.core.moves.course import Course, convoy_in
from berth.core.moves.decision import HOLDS, Hold, Move
from berth.core.moves.machine import may_flip
from berth.core.moves.underway import moves_status
from berth.core.placement.decide import Decision, in_force
from berth.core.placement.question import spec_hash
from berth.core.plan import Plan
from berth.core.requests import NOTHING, Request, Wish
from tests.unit.core.cluster import copy_of
from tests.unit.core.simulation import POOL, Manifest, Simulation, deployment

HERE = Allocation(pool="h100", variant="bf16", tensor_parallel=4, groups=2)
THERE = Allocation(pool="a100", variant="bf16", tensor_parallel=2, groups=3)
DEADLINE = 1200
TRAFFIC = {
    "requestsPerSecond": "1",
    "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
    "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
}
MOVE = Move(
    id="m1",
    start=HERE,
    to=THERE,
    cause="Cost",
    reason="cheaper",
    decision=Decision(THERE, 2),
    needed=2,
    capacity_from=1.0,
    capacity_to=0.7,
    cooldown=3600.0,
)
ROLLBACK = Wish(Request("rollback", "rollback"))


class Moving(Simulation):
    """Two pools of two nodes each; the deployment serves on h100 and is asked to move to a100."""

    move = MOVE

    def __init__(self, room: int = 2, **spec: Any) -> None:
        stored = deployment(groups=self.move.start.groups, min_available=2)
        stored["spec"] |= {"traffic": TRAFFIC, "placement": {"mode": "Auto"}, **spec}
        super().__init__(stored, nodes=2 + room)
        a100 = {**POOL, "metadata": {"name": "a100", "uid": "pool-2"}, "spec": {**POOL["spec"], "gpu": "A100-SXM-40"}}
        self.pools = {"h100": POOL, "a100": a100}
        self.wants_to_move = True
        self.rollback = False
        for _ in range(12):
            self.step()
        assert self.served() == self.move.start.groups

    def _nodes_of(self, pool: str) -> set[str]:
        first, rest = list(self.nodes)[:2], list(self.nodes)[2:]
        return set(first if pool == "h100" else rest)

    @property
    def wanted(self) -> int:
        return 2

    @property
    def needed(self) -> int:
        return 2

    def served(self) -> int:
        return sum(self.serves(group) for group in self.groups.values())

    def run_pass(self, cut: int | None = None) -> Plan:
        snapshot = self.snapshot()
        now = in_force(snapshot)
        there = now is not None and now.allocation.pool == self.move.to.pool
        allocation = self.move.to if there else self.move.start
        record = {
            "allocations": [allocation.model_dump(by_alias=True, exclude_none=True, mode="json")],
            "specHash": spec_hash(snapshot.deployment.spec),
            "groupsForTraffic": 2,
        }
        self.decision = Decision(allocation, 2, {"placement": record})
        convoy = convoy_in(snapshot)
        begins = self.wants_to_move and convoy is None and len(self.history) > 0 and self.served() >= 2
        self.wish = ROLLBACK if self.rollback else Wish(move=self.move) if begins and self.started else NOTHING
        before = {name for name, group in self.groups.items() if self.serves(group)}
        plan = super().run_pass(cut)
        lost = {
            name for name, judgement in plan.judgements.items() if judgement.state.value not in ("Serving", "Draining")
        }
        staying = sum(self.serves(group) for group in self.groups.values())
        assert staying >= min(self.needed, len(before - lost)), f"{staying} serve of {before} without {lost}"
        if any(group["metadata"]["labels"].get(labels.MOVE_ID) for group in self.groups.values()):
            self.wants_to_move = False
        self.rollback = False
        return plan

    started = False

    def step(self, cut: int | None = None) -> None:
        self.run_pass(cut)
        self.kubelets()
        for pod in self.pods.values():
            if pod["status"].get("phase") == "Running":
                ready = pod["metadata"]["uid"] not in self.draining
                pod["status"]["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]

    def roles(self) -> set[str]:
        return {group["metadata"]["labels"].get(labels.ROLE, "") for group in self.groups.values()}

    def available(self) -> str:
        conditions = self.stored["status"]["conditions"]
        return next(str(each["status"]) for each in conditions if each["type"] == "Available")

    def recent(self) -> list[Manifest]:
        moves = self.stored.get("status", {}).get("moves") or {}
        return list(moves.get("recent") or ())


def until(simulation: Moving, condition: Callable[[], bool], steps: int = 60) -> None:
    simulation.started = True
    for _ in range(steps):
        if condition():
            return
        simulation.step()
    raise AssertionError("\n".join(simulation.history[-40:]))


def _pool_of(group: Manifest) -> str:
    return str(group["spec"]["allocation"]["pool"])


def settle(simulation: Moving) -> None:
    """No more faults, and time goes by: longer than failures count."""
    simulation.silent = set()
    for _ in range(20):
        for _ in range(4):
            simulation.step()
        simulation.now += DEADLINE / 4
    until(simulation, lambda: simulation.served() >= 2 and simulation.roles() == {""})


def suffer(simulation: Moving, faults: list[tuple[Callable[[Moving, int], None], int, int]]) -> None:
    """Each fault, with its number, and so many steps after it; then all is well again."""
    simulation.started = True
    for fault, number, steps in faults:
        fault(simulation, number)
        for _ in range(steps):
            simulation.step()
    simulation.stored["spec"]["pause"] = "None"
    settle(simulation)


def test_the_flip_is_one_pass_and_old_groups_are_cut_after_it() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles())
    told = [line for line in simulation.history if "SetServing" in line]
    on = [index for index, line in enumerate(told) if line.endswith("True")]
    off = [index for index, line in enumerate(told) if line.endswith("False")]
    assert len(on) == 5, "two at first, then three of the new placement"
    assert not off or min(off) > max(on)
    marks = [line for line in simulation.history if "incumbent" in line]
    assert len({line.split()[0] for line in marks}) == 1, marks


def test_it_completes_at_the_deadline_without_measurements() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles())
    settle(simulation)
    assert [(each["id"], each["result"]) for each in simulation.recent()] == [("m1", "Completed")]
    assert {_pool_of(group) for group in simulation.groups.values()} == {"a100"}
    assert simulation.served() == 3
    assert simulation.stored["status"]["placement"]["allocations"][0]["pool"] == "a100"


def test_taken_back_the_old_groups_are_resumed_before_the_new_ones_leave() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles() and len(simulation.draining) == 2)
    simulation.rollback = True
    told = []

    def ended() -> bool:
        told.append(simulation.available())
        return bool(simulation.recent())

    until(simulation, ended)
    assert set(told) == {"True"}, "whoever serves, enough did at every moment"
    settle(simulation)
    assert simulation.recent()[0]["result"] == "RolledBack"
    assert {
        _pool_of(g) for g in simulation.groups.values() if g["metadata"]["labels"][labels.LIFECYCLE] != "failed"
    } == {"h100"}


def test_old_groups_that_were_taken_back_by_an_operator_that_ended_get_no_requests_before_they_take_them() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles() and len(simulation.draining) == 2)
    simulation.rollback = True
    while "outgoing" in simulation.roles():
        simulation.run_pass()
    simulation.restart_operator()
    for pod in simulation.pods.values():  # kubelets look at readiness every few seconds only
        pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    plan = simulation.run_pass()
    waiting = {name for name, judgement in plan.judgements.items() if judgement.reason == "Resuming"}
    assert len(waiting) == len(simulation.draining) == 2, "they may be draining, and they are"
    assert plan.requeue_after == 1.0, "their first word alone wakes nobody"
    settle(simulation)
    assert simulation.recent()[0]["result"] == "RolledBack"
    assert simulation.served() == 2


def test_a_request_to_take_back_is_done_only_when_it_is() -> None:
    simulation = Moving()
    until(simulation, lambda: "incumbent" in simulation.roles())
    simulation.step()
    simulation.rollback = True
    flips = simulation.run_pass()
    assert flips.reply is not None
    assert (flips.reply.result, "outgoing" in simulation.roles()) == ("Waiting", True), "this pass had another order"
    simulation.stored["spec"]["pause"] = "Changes"
    simulation.rollback = True
    paused = simulation.run_pass()
    assert paused.reply is not None
    assert (paused.reply.result, paused.reply.message) == ("Waiting", "changes are paused")
    simulation.stored["spec"]["pause"] = "None"
    simulation.rollback = True
    taken_back = simulation.run_pass()
    assert taken_back.reply is not None
    assert (taken_back.reply.result, "returning" in simulation.roles()) == ("Done", True)
    settle(simulation)
    simulation.rollback = True
    over = simulation.run_pass()
    assert over.reply is not None
    assert over.reply.result == "Refused"


def test_an_old_group_of_which_nobody_knows_any_more_that_it_served_is_resumed_all_the_same() -> None:
    simulation = Moving()
    until(simulation, lambda: "outgoing" in simulation.roles() and len(simulation.draining) == 2)
    for pod in simulation.pods.values():
        if pod["metadata"]["uid"] in simulation.draining:
            pod["metadata"]["annotations"].pop(labels.TOKEN_RESTARTS)
    simulation.rollback = True
    settle(simulation)
    assert simulation.recent()[0]["result"] == "RolledBack"


def test_without_room_it_is_abandoned_at_the_deadline_and_frees_what_it_held() -> None:
    simulation = Moving(room=0)
    simulation.nodes["node-2"] = 4  # room for two of three groups
    until(simulation, lambda: "incoming" in simulation.roles())
    settle(simulation)
    assert simulation.recent()[0]["result"] == "Abandoned"
    assert "no capacity by the deadline" in simulation.recent()[0]["reason"]
    assert {_pool_of(group) for group in simulation.groups.values()} == {"h100"}


@pytest.mark.parametrize(("limit", "most"), [(40, 2), (16, 1)])
def test_a_group_lost_while_another_is_brought_in_takes_neither_its_slot_nor_its_share_of_the_limit(
    limit: int, most: int
) -> None:
    simulation = Moving(objectives={"limits": {"gpus": limit}})
    simulation.nodes |= {"node-2": 4, "node-3": 0}
    until(simulation, lambda: bool(simulation.shortages))
    assert [_pool_of(group) for group in simulation.groups.values()].count("a100") == 2
    lost = next(name for name in simulation.pods if "-g0-" in name)
    simulation.pods[lost]["status"] |= {"phase": "Failed"}
    simulation.nodes["node-3"] = 8
    plan = simulation.run_pass()
    reserved = [order.group for order in plan.actions if isinstance(order, do.Reserve)]
    assert reserved == [0, 4][:most], "the lost one goes before growth, and its GPUs are still held"
    settle(simulation)


def test_without_surge_no_move_begins() -> None:
    simulation = Moving()
    simulation.stored["spec"]["update"] = {"surge": "Never", "maxUnavailable": 1}
    simulation.started = True
    for _ in range(10):
        simulation.step()
    assert {_pool_of(group) for group in simulation.groups.values()} == {"h100"}
    assert simulation.served() == 2


def hold(simulation: Moving, phase: str) -> None:
    """The first pass after which the move is in this phase."""

    def current() -> str:
        return str((simulation.stored["status"].get("moves") or {}).get("current", {}).get("phase"))

    if phase == "Reverting":
        hold(simulation, "Judging")
        simulation.rollback = True
    elif phase == "Draining":
        hold(simulation, "Judging")
        simulation.busy = True
        simulation.now += DEADLINE
    until(simulation, lambda: current() == phase)


BEFORE, AFTER = ("Abandoned", "h100"), ("Completed", "a100")
HOW_IT_ENDS = {
    "Reserving": BEFORE,
    "Starting": BEFORE,
    "WarmingUp": BEFORE,
    "Flipping": AFTER,
    "Judging": AFTER,
    "Draining": AFTER,
    "Reverting": ("RolledBack", "h100"),
}


@pytest.mark.parametrize(("phase", "end"), HOW_IT_ENDS.items())
def test_in_every_phase_an_edit_of_the_spec_ends_it_on_the_side_that_serves(phase: str, end: tuple[str, str]) -> None:
    simulation = Moving()
    if phase == "Reserving":
        simulation.nodes |= {"node-2": 4, "node-3": 0}
    hold(simulation, phase)
    edit(simulation, 1)
    settle(simulation)
    assert (simulation.recent()[0]["result"], *{_pool_of(group) for group in simulation.groups.values()}) == end
    assert len(simulation.recent()) == 1


# --- anything may happen ----------------------------------------------------------------------------------------------
def _pick(found: list[Any], number: int) -> list[Any]:
    return [found[number % len(found)]] if found else []


def kill(simulation: Moving, number: int) -> None:
    for name in _pick(sorted(simulation.pods), number):
        del simulation.pods[name]


def restart(simulation: Moving, number: int) -> None:
    for pod in _pick([p for p in simulation.pods.values() if "containerStatuses" in p["status"]], number):
        simulation.restart(pod)


def silence(simulation: Moving, number: int) -> None:
    simulation.silent = {pod["metadata"]["uid"] for pod in simulation.pods.values()} if number % 2 else set()


def wipe(simulation: Moving, number: int) -> None:
    simulation.stored.pop("status", None)
    if number % 2:
        for group in simulation.groups.values():
            group.pop("status", None)


def crash(simulation: Moving, number: int) -> None:
    simulation.run_pass(cut=number % 9)


def edit(simulation: Moving, number: int) -> None:
    simulation.stored["spec"]["objectives"] = {"timePerOutputToken": {"p95": f"{50 + number % 3}ms"}}
    simulation.stored["metadata"]["generation"] += 1


def pause(simulation: Moving, number: int) -> None:
    simulation.stored["spec"]["pause"] = ("None", "Changes")[number % 2]


def take_back(simulation: Moving, number: int) -> None:
    simulation.rollback = True


def wait(simulation: Moving, number: int) -> None:
    simulation.now += number


FAULTS = (kill, restart, silence, wipe, crash, edit, pause, take_back, wait)


@pytest.mark.slow
@pytest.mark.parametrize("room", [2, 1])
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.lists(
        st.tuples(st.sampled_from(FAULTS), st.integers(0, 700), st.integers(1, 6)),
        max_size=12,
    )
)
def test_whatever_happens_enough_groups_serve_and_the_move_ends(
    room: int, faults: list[tuple[Callable[[Moving, int], None], int, int]]
) -> None:
    simulation = Moving(room)
    suffer(simulation, faults)
    living = [g for g in simulation.groups.values() if g["metadata"]["labels"][labels.LIFECYCLE] == labels.COMMITTED]
    assert len({_pool_of(group) for group in living}) == 1, "\n".join(simulation.history[-60:])
    assert simulation.served() == len(living)
    ended = [each["id"] for each in simulation.recent()]
    assert len(ended) == len(set(ended))


@pytest.mark.parametrize(
    "marks",
    [
        ({labels.ROLE: labels.OUTGOING}, {}),
        ({labels.MOVE_ID: "never", labels.ROLE: labels.OUTGOING}, {}),
        ({labels.MOVE_ID: "never", labels.ROLE: labels.INCOMING}, {labels.MOVE: "{not a record"}),
        ({labels.MOVE_ID: "m0", labels.ROLE: "unheard-of"}, {labels.FLIPPED_AT: "nan", labels.MOVE_RESULT: ":"}),
    ],
)
def test_a_role_of_no_move_keeps_nothing_from_requests_and_from_moves_and_is_taken_off(
    marks: tuple[dict[str, str], dict[str, str]],
) -> None:
    simulation = Moving()
    before = copy_of(simulation.groups)
    for group in simulation.groups.values():
        group["metadata"]["labels"] |= marks[0]
        group["metadata"].setdefault("annotations", {}).update(marks[1])
    simulation.step()
    assert simulation.groups == before
    assert simulation.served() == 2
    until(simulation, lambda: simulation.roles() == {"", labels.INCOMING})


def test_marks_of_a_move_that_a_newer_release_began_are_left_to_it() -> None:
    simulation = Moving()
    group = next(iter(simulation.groups.values()))
    group["metadata"]["labels"] |= {labels.MOVE_ID: "m9", labels.ROLE: "chaperone"}
    group["metadata"].setdefault("annotations", {})[labels.MOVE] = '{"id": "m9", "spells": 3}'
    before = copy_of(group["metadata"])
    for _ in range(3):
        simulation.step()
    assert group["metadata"] == before
    assert simulation.served() == 2


@given(st.integers(0, 9), st.text(max_size=40))
def test_a_record_that_somebody_edited_is_no_record(cut: int, text: str) -> None:
    course = Course("m1", HERE, THERE, "Cost", "cheaper", 1_000_000.0, "hash", 2, 1.0, 0.7, 60.0)
    whole = course.dump()
    assert Course.load_from(whole) == course
    broken = whole[: len(whole) * cut // 10] + text
    assert broken == whole or Course.load_from(broken) is None or isinstance(Course.load_from(broken), Course)


def test_why_it_stays_is_told_once_per_reason_and_not_while_it_moves() -> None:
    first = moves_status({}, None, None, Hold("CoolingDown", "the last move ended 5 minutes ago"), 1000.0)
    assert first["hold"]["reason"] == "CoolingDown"
    later = moves_status(first, None, None, Hold("CoolingDown", "the last move ended 6 minutes ago"), 1060.0)
    assert later == first
    assert moves_status(first, None, None, None, 1060.0) == first, "nothing was looked at"
    other = moves_status(first, None, None, Hold("NothingBetter"), 1060.0)
    assert other["hold"]["message"] == HOLDS["NothingBetter"]
    assert other["hold"]["since"] != first["hold"]["since"]
    assert "hold" not in moves_status(first, None, None, MOVE, 1060.0)


@pytest.mark.parametrize(
    ("fresh", "staying", "capacity_to", "capacity_from", "load", "so"),
    [
        (2, 2, 3.0, 2.0, 6.0, True),
        (1, 4, 1.0, 4.0, 12.0, False),
        (2, 2, 3.0, 0.5, 5.0, True),
        (1, 0, 1.0, 4.0, 12.0, True),
        (1, 4, 1.0, 0.0, 12.0, True),
        (1, 4, 1.0, 4.0, None, True),
    ],
    ids=[
        "together they carry it",
        "one small group would get the share of a large one",
        "old ones that are slow carry too little anyhow",
        "nothing else serves",
        "capacity not known",
        "load not known",
    ],
)
def test_new_groups_get_requests_where_that_is_no_worse_than_before(
    fresh: int, staying: int, capacity_to: float, capacity_from: float, load: float | None, so: bool
) -> None:
    assert may_flip(fresh, staying, capacity_to, capacity_from, load) is so
