"""One look at a running deployment: what follows from a reading, and that nothing follows from none."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest

from berth.api.placement import Allocation
from berth.core.calibration.learn import Calibration
from berth.core.moves.decision import Advise, Hold, Move
from berth.core.moves.rules import Past, State
from berth.core.observed import Shortage
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import question
from berth.core.steering.day import Day
from berth.core.steering.policy import past_of, policy_of
from berth.core.steering.reading import Reading, Span
from berth.core.steering.steer import Situation, Steering, steer
from berth.core.steering.told import state_of
from berth.estimator.latency import Objectives
from tests.unit.moves.test_underway import Moving
from tests.unit.placement.cases import BF16, FP8, deployment, supply

HOUR, DAY = 3600.0, 86400.0
NOW = 1000 * DAY
MEMORY = Memory()
HERE = Allocation(pool="h100", variant="fp8", tensor_parallel=2, max_batch_size=256, max_num_tokens=2048, groups=3)


def span(
    rate: float, *, seconds: float = HOUR, misses: float = 0.01, effective: float = 400.0, prompt: float = 1155.0
) -> Span:
    return Span(seconds, rate, 2.0 * rate, prompt, 211.0, misses, effective)


def reading(rate: float = 5.4, **given: Any) -> Reading:
    return Reading(NOW, replace(span(rate, **given), seconds=300.0), span(rate, **given))


def a_day(load: float) -> Day:
    day = Day()
    for hour in range(25):
        day = day.seen(NOW - DAY + hour * HOUR, load, HOUR)
    return day


def situation(found: Reading | None, spec: dict[str, Any] | None = None, **given: Any) -> Situation:
    asked = question(deployment(variants=(FP8, BF16), **(spec or {})))
    pools = {"h100": supply("h100"), "cheap": supply("cheap", price="1.19")}
    return Situation(
        now=NOW, uid="uid", asked=asked, supplies=pools, in_force=HERE, groups_for_traffic=3,
        policy=policy_of(asked.spec), past=Past(), state=State(), reading=found, day=a_day(5.4),
        calibration=Calibration(), changed_at=NOW - 2 * DAY, **given,
    )  # fmt: skip


def look(at: Situation) -> Steering:
    return steer(at, MEMORY)


def test_without_a_reading_everything_stays_as_it_is() -> None:
    found = look(situation(None))
    assert (found.sized.groups, found.sized.for_traffic) == (3, 3)
    assert isinstance(found.verdict, Hold)
    assert found.verdict.reason == "NoMetrics"
    assert found.calibration == Calibration()


@pytest.mark.parametrize("changed", [{"variant": "gone"}, {"pool": "gone"}, {"tensor_parallel": 1, "variant": "bf16"}])
def test_what_the_models_know_nothing_of_is_left_alone(changed: dict[str, Any]) -> None:
    """The spec was edited since, the pool is gone, or the copy does not even fit as the models have it."""
    found = look(replace(situation(reading(14.0)), in_force=HERE.model_copy(update=changed)))
    assert found.sized.groups == 3
    assert isinstance(found.verdict, Hold)
    assert found.verdict.reason == "Unknown"


@pytest.mark.parametrize("seconds", [10.0, 100.0])
def test_a_minute_says_nothing_yet(seconds: float) -> None:
    young = Reading(NOW, span(50.0, seconds=seconds), span(50.0, seconds=seconds))
    found = look(situation(young))
    assert found.sized.groups == 3
    assert isinstance(found.verdict, Hold)


@pytest.mark.slow
def test_the_same_situation_gives_the_same_answer_with_and_without_memory() -> None:
    at = situation(reading(9.0))
    assert look(at).sized == steer(at, Memory()).sized == look(at).sized


def test_measured_load_brings_groups_and_manual_scaling_does_not() -> None:
    assert look(situation(reading(14.0))).sized.groups > 3
    assert look(situation(reading(14.0), scales=False)).sized.groups == 3


def test_longer_prompts_bring_groups_at_the_same_rate() -> None:
    usual, longer = look(situation(reading(6.0))), look(situation(reading(6.0, prompt=2400.0)))
    assert longer.sized.for_traffic > usual.sized.for_traffic


def test_a_much_cheaper_pool_is_a_move_with_all_that_whoever_carries_it_out_needs() -> None:
    found = look(situation(reading()))
    move = found.verdict
    assert isinstance(move, Move)
    assert (move.cause, move.to.pool, move.start) == ("Cost", "cheap", HERE)
    assert move.saving is not None
    assert move.saving_at_worst is not None
    assert move.saving > move.saving_at_worst > 0
    assert move.cooldown >= 3 * (move.pay_back or 0)
    assert 1 <= move.needed <= move.to.groups
    assert move.capacity_from > 0 < move.capacity_to
    assert move.decision.status["placement"]["allocations"][0]["pool"] == "cheap"
    assert "saves" in move.reason
    again = look(situation(reading())).verdict
    assert isinstance(again, Move)
    assert again.id == move.id


@pytest.mark.parametrize(("needed", "begins"), [(2, True), (3, False)])
def test_without_surge_the_same_move_is_one_by_one_where_a_group_can_be_spared(needed: int, begins: bool) -> None:
    at = situation(reading(), {"update": {"surge": "Never", "maxUnavailable": 1}})
    verdict = look(replace(at, groups_for_traffic=needed)).verdict
    if begins:
        assert isinstance(verdict, Move)
        assert (verdict.to.pool, verdict.swap, verdict.leaves, verdict.price) == ("cheap", True, 2, 0.0)
        assert verdict.to.groups * verdict.to.gpus <= HERE.groups * HERE.gpus
    else:
        assert isinstance(verdict, Hold)
        assert verdict.reason == "NoSurgePossible"


def test_advise_gives_the_same_move_as_an_advice() -> None:
    moved, advised = (
        look(situation(reading())),
        look(situation(reading(), {"placement": {"moves": {"mode": "Advise"}}})),
    )
    assert isinstance(moved.verdict, Move)
    assert isinstance(advised.verdict, Advise)
    assert advised.verdict.move.to == moved.verdict.to


def test_a_close_look_is_not_taken_again_at_once() -> None:
    mode = {"placement": {"moves": {"mode": "Advise"}}}
    first = look(situation(reading(), mode))
    second = look(situation(reading(), mode, reviewed=first.reviewed))
    assert second.weighed is None
    assert second.verdict == first.verdict
    later = replace(situation(reading(), mode, reviewed=first.reviewed), now=NOW + HOUR)
    assert look(later).weighed is first.weighed, "nothing it depends on has changed"


def test_what_is_remembered_of_a_look_holds_neither_the_nodes_nor_the_look_before() -> None:
    """A thousand deployments look every quarter of an hour, for months."""
    at = situation(reading())
    pool, before = weakref.ref(at.supplies["cheap"]), weakref.ref(at)
    reviewed = look(at).reviewed
    assert reviewed is not None
    assert reviewed.weighed is not None
    del at
    gc.collect()
    assert pool() is None
    assert before() is None


def test_a_day_that_is_not_measured_holds() -> None:
    found = look(replace(situation(reading()), day=Day()))
    assert isinstance(found.verdict, Hold)
    assert found.verdict.reason == "LessThanADay"


def test_within_a_pool_both_sides_of_a_move_need_room() -> None:
    """What it holds on its one node is no room for what it would move to there."""
    at = replace(situation(reading()), supplies={"h100": supply("h100", count=1)})
    whole = HERE.model_copy(update={"tensor_parallel": 8, "groups": 1})
    (node,) = at.supplies["h100"].nodes or ()
    verdict = look(replace(at, in_force=whole, nodes=(node.name,))).verdict
    assert isinstance(verdict, Hold), verdict
    assert verdict.reason == "NoCapacity"


# --- what groups cannot cure -----------------------------------------------------------------------------------------
def tight(share: float, **given: Any) -> Situation:
    """With an objective of which one request alone takes `share`."""
    at = situation(reading(0.5, **given))
    alone = Estimates(at.asked, at.supplies, MEMORY).latency(Layout.of(HERE), 0.001, "screen")
    objectives = Objectives(1.5, alone.tpot_p95 / share)
    return replace(at, asked=replace(at.asked, objectives=objectives), groups_for_traffic=1, in_force=ALONE)


ALONE = HERE.model_copy(update={"groups": 1})


@pytest.mark.parametrize("share", [0.97, 1.3])
def test_where_one_request_alone_misses_the_objective_no_groups_are_added_for_it(share: float) -> None:
    found = look(tight(share, misses=0.9))
    assert found.sized.groups == 1
    assert "more groups do not help" in found.out_of_reach
    assert "objectives.timePerOutputToken.p95" in found.out_of_reach


def test_there_too_groups_come_for_more_traffic_than_one_can_serve() -> None:
    at = tight(1.3, misses=0.9)
    assert look(replace(at, reading=reading(20.0, misses=0.9))).sized.groups > 1


def test_an_objective_with_room_is_in_reach() -> None:
    assert look(tight(0.7)).out_of_reach == ""


# --- the day ----------------------------------------------------------------------------------------------------------
def test_the_peak_is_known_after_a_day_and_forgotten_a_day_later() -> None:
    day = Day().seen(0.0, 9.0, HOUR)
    for hour in range(1, 23):
        day = day.seen(hour * HOUR, 5.0, HOUR)
        assert day.peak(hour * HOUR) is None
    day = day.seen(23 * HOUR, 5.0, HOUR)
    assert day.peak(23 * HOUR) == 9.0
    day = day.seen(24 * HOUR, 5.0, HOUR).seen(25 * HOUR, 5.0, HOUR)
    assert day.peak(25 * HOUR) == 5.0


def test_a_gap_begins_the_day_anew() -> None:
    day = a_day(5.0)
    assert day.peak(NOW) == 5.0
    assert day.peak(NOW + 2 * HOUR) is None
    assert day.seen(NOW + 2 * HOUR, 1.0, HOUR).peak(NOW + 2 * HOUR) is None


def test_half_an_hour_is_no_hour() -> None:
    assert Day().seen(0.0, 9.0, 1700.0) == Day()


# --- status -----------------------------------------------------------------------------------------------------------
def test_the_past_is_what_status_remembers() -> None:
    recent = [
        {"id": "b", "finishedAt": "2026-01-02T00:00:00Z", "result": "RolledBack", "placementHash": "abc"},
        {"id": "a", "finishedAt": "2026-01-01T00:00:00Z", "result": "Completed", "placementHash": "def"},
        {"id": "c", "finishedAt": "nonsense"},
    ]
    past = past_of({"recent": recent, "nextAllowedAt": "2026-01-03T00:00:00Z"})
    assert len(past.ended) == 2
    assert past.last == past.ended[0] < past.cost_moves_from
    assert past.taken_back == {"abc"}
    assert past_of({}) == Past()


@pytest.mark.parametrize(
    ("wanted", "without_room", "state"),
    [
        (2, 0, (False, False)),
        (3, 0, (True, False)),
        (3, 1, (False, True)),
        (2, 1, (False, False)),
        (1, 1, (True, False)),
    ],
    ids=["all there", "one to come", "no room for it", "no longer wanted", "one to leave"],
)
def test_groups_that_find_no_room_hold_no_move_back(wanted: int, without_room: int, state: tuple[bool, bool]) -> None:
    shortages = {2: Shortage("WaitingForCapacity", "needs 4 GPUs")} if without_room else {}
    found = state_of(replace(Moving().snapshot(), shortages=shortages), wanted)
    assert (found.changing, found.waiting) == state
