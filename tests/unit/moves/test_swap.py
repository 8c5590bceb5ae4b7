"""A move without surge: groups change places one by one, never more GPUs than before, never two groups fewer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from berth import labels
from berth.api.placement import Allocation
from berth.core.moves.course import convoy_in
from berth.core.moves.swap import why_not
from berth.core.placement.decide import decide, kept
from berth.core.placement.question import spec_hash
from berth.core.plan import Plan
from berth.core.requests import NOTHING, Request, Wish, move_id, reply_before_move
from tests.unit.core.simulation import Simulation
from tests.unit.moves.test_edits import MEMORY, SUPPLIES
from tests.unit.moves.test_underway import (
    DEADLINE,
    FAULTS,
    MOVE,
    ROLLBACK,
    TRAFFIC,
    Moving,
    _pool_of,
    edit,
    settle,
    suffer,
    until,
    wipe,
)

HERE = Allocation(pool="h100", variant="bf16", tensor_parallel=4, groups=3)
THERE = Allocation(pool="a100", variant="bf16", tensor_parallel=4, groups=3)


class Swapping(Moving):
    """Three groups of which two are needed change places."""

    move = replace(MOVE, start=HERE, to=THERE, swap=True, leaves=2)

    def __init__(self, groups: int = 3, tensor: int = 4, most: int = 1) -> None:
        to = THERE.model_copy(update={"groups": groups, "tensor_parallel": tensor})
        self.move = replace(self.move, to=to)
        super().__init__(update={"surge": "Never", "maxUnavailable": most})
        self.most = self.held()

    def held(self) -> int:
        """GPUs of groups that live, and of those on their way out; lost ones are replaced at once, as ever."""
        pods = {owner["uid"] for pod in self.pods.values() for owner in pod["metadata"]["ownerReferences"]}
        standing = [
            each
            for each in self.groups.values()
            if (lifecycle := each["metadata"]["labels"][labels.LIFECYCLE]) != labels.FAILED
            and (each["metadata"]["uid"] in pods or lifecycle != labels.RETIRING)
        ]
        return sum(each["spec"]["allocation"]["tensorParallel"] for each in standing)

    def run_pass(self, cut: int | None = None) -> Plan:
        plan = super().run_pass(cut)
        if self.started:
            assert self.held() <= self.most, "\n".join(self.history[-40:])
        return plan

    def phase(self) -> str:
        return str((self.stored.get("status", {}).get("moves") or {}).get("current", {}).get("phase"))

    def living(self) -> list[str]:
        return sorted(
            _pool_of(each)
            for each in self.groups.values()
            if each["metadata"]["labels"][labels.LIFECYCLE] in ("reserved", "committed")
        )


@pytest.mark.parametrize(("groups", "tensor", "most"), [(3, 4, 1), (2, 4, 1), (3, 2, 1), (2, 2, 2)])
def test_groups_change_places_one_by_one_and_what_is_not_judged_is_kept(groups: int, tensor: int, most: int) -> None:
    simulation = Swapping(groups, tensor, most)
    served, told = [], set()

    def judged() -> bool:
        served.append(simulation.served())
        conditions = {each["type"]: each["reason"] for each in simulation.stored["status"]["conditions"]}
        told.add(conditions["Stalled"])
        return simulation.phase() == "Judging"

    until(simulation, judged)
    assert min(served) == 2
    assert told == {"Healthy"}, "to wait for one that leaves is no standstill"
    assert simulation.living() == ["a100"] * groups
    settle(simulation)
    assert [(each["id"], each["result"]) for each in simulation.recent()] == [("m1", "Completed")]
    assert simulation.stored["status"]["placement"]["allocations"][0]["pool"] == "a100"
    assert not any(labels.MOVE_ID in each["metadata"]["labels"] for each in simulation.groups.values())


@pytest.mark.parametrize("phase", ["Replacing", "Judging"])
@pytest.mark.parametrize("groups", [3, 2])
def test_taken_back_they_change_places_again(phase: str, groups: int) -> None:
    simulation = Swapping(groups)
    until(simulation, lambda: simulation.phase() == phase and "a100" in simulation.living())
    simulation.rollback = True
    settle(simulation)
    assert [each["result"] for each in simulation.recent()] == ["RolledBack"]
    assert simulation.living() == ["h100"] * 3


def test_what_finds_no_room_is_taken_back_at_the_deadline() -> None:
    simulation = Swapping()
    simulation.nodes |= {"node-2": 4, "node-3": 0}
    until(simulation, lambda: simulation.living() == ["a100", "h100"] and bool(simulation.shortages))
    simulation.now += 3 * DEADLINE
    settle(simulation)
    assert [each["result"] for each in simulation.recent()] == ["Abandoned"]
    assert "needs 1 x 4" in simulation.recent()[0]["reason"]
    assert simulation.living() == ["h100"] * 3


@pytest.mark.parametrize("phase", ["Replacing", "Judging", "Reverting"])
def test_a_wiped_status_changes_nothing_and_an_edit_ends_it_on_one_side(phase: str) -> None:
    simulation = Swapping()
    until(
        simulation, lambda: simulation.phase() == "Judging" if phase == "Reverting" else "a100" in simulation.living()
    )
    simulation.rollback = phase == "Reverting"
    until(simulation, lambda: simulation.phase() == phase)
    wipe(simulation, 1)
    simulation.step()
    assert simulation.phase() == phase
    edit(simulation, 1)
    settle(simulation)
    assert len(set(simulation.living())) == 1
    assert len(simulation.recent()) == 1


class Planned(Swapping):
    """Once it is started the placement is the planner's, for traffic that there is far less of."""

    def __init__(self) -> None:
        super().__init__()
        self.stored["spec"]["traffic"] = {**TRAFFIC, "requestsPerSecond": "150"}
        self.stored["status"]["placement"]["specHash"] = spec_hash(self.snapshot().deployment.spec)

    @property
    def needed(self) -> int:
        return min(max(2, self.decision.groups_for_traffic if self.decision else 0), 3)

    def run_pass(self, cut: int | None = None) -> Plan:
        if not self.started:
            return super().run_pass(cut)
        snapshot = self.snapshot()
        self.decision = kept(snapshot) or decide(snapshot, SUPPLIES, MEMORY)
        begins = convoy_in(snapshot) is None and not self.recent()
        self.wish = ROLLBACK if self.rollback else Wish(move=self.move) if begins else NOTHING
        self.rollback = False
        return Simulation.run_pass(self, cut)


def test_groups_that_must_serve_on_the_way_are_those_of_the_traffic_it_was_decided_on() -> None:
    simulation = Planned()
    until(simulation, lambda: simulation.phase() == "Judging")
    placement = simulation.stored["status"]["placement"]
    assert (placement["allocations"][0]["pool"], placement["groupsForTraffic"]) == ("a100", 2)
    simulation.rollback = True
    until(simulation, lambda: bool(simulation.recent()), steps=90)
    placement = simulation.stored["status"]["placement"]
    assert (placement["allocations"][0]["pool"], placement["groupsForTraffic"]) == ("h100", 2)


def test_a_request_whose_answer_was_lost_is_known_by_the_move_that_it_began() -> None:
    simulation = Swapping()
    asked, other = Request("move a100 bf16 tp4 x3", "move"), Request("move a100 bf16 tp4 x3 @again", "move")
    simulation.move = replace(simulation.move, id=move_id(simulation.snapshot(), asked))
    assert reply_before_move(simulation.snapshot(), asked) is None

    def answer() -> str:
        wipe(simulation, 1)
        reply = reply_before_move(simulation.snapshot(), asked)
        assert reply_before_move(simulation.snapshot(), other) is None
        return reply.result if reply is not None else ""

    until(simulation, lambda: answer() == "Done")
    assert simulation.living() == ["h100"] * 3, "as soon as it is under way"
    until(simulation, lambda: simulation.phase() == "Judging")
    assert answer() == "Done"
    settle(simulation)
    reply = reply_before_move(simulation.snapshot(), asked)
    assert reply is not None, "that it ended is in status"


def test_while_one_does_not_serve_nothing_begins() -> None:
    simulation = Swapping()
    simulation.silent = {pod["metadata"]["uid"] for pod in simulation.pods.values()}
    simulation.restart(next(iter(simulation.pods.values())))
    simulation.step()
    simulation.started = True
    for _ in range(5):
        simulation.step()
    assert simulation.phase() == "None"
    simulation.silent = set()
    until(simulation, lambda: simulation.phase() == "Judging")


@pytest.mark.slow
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.sampled_from([(3, 4), (2, 4), (2, 2)]),
    st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 700), st.integers(1, 6)), max_size=12),
)
def test_whatever_happens_enough_groups_serve_no_more_gpus_are_held_and_it_ends(
    to: tuple[int, int], faults: list[tuple[Callable[[Moving, int], None], int, int]]
) -> None:
    simulation = Swapping(*to)
    suffer(simulation, faults)
    assert len(set(simulation.living())) == 1, "\n".join(simulation.history[-60:])
    assert simulation.served() == len(simulation.living())
    ended = [each["id"] for each in simulation.recent()]
    assert len(ended) == len(set(ended))


@pytest.mark.parametrize(
    ("start", "to", "needed", "words"),
    [
        ((3, 4), (3, 4), (2, 2), ""),
        ((3, 4), (3, 4), (1, 2), ""),
        ((3, 4), (2, 4), (2, 1), ""),
        ((3, 4), (3, 4), (2, 3), "2 of both kinds would serve, and 3 are needed"),
        ((3, 4), (3, 4), (3, 2), "2 would serve, and 3 are needed"),
        ((1, 4), (1, 4), (0, 0), "0 would serve, and 0 are needed"),
        ((3, 4), (4, 2), (2, 2), "do not fit in the place"),
        ((3, 4), (2, 8), (2, 2), "do not fit in the place"),
    ],
)
def test_why_groups_cannot_change_places(
    start: tuple[int, int], to: tuple[int, int], needed: tuple[int, int], words: str
) -> None:
    sides = [
        Allocation(pool=pool, variant="bf16", tensor_parallel=gpus, groups=groups)
        for pool, (groups, gpus) in (("h100", start), ("a100", to))
    ]
    found = why_not(sides[0], sides[1], *needed)
    assert words in found
    assert bool(found) == bool(words)
