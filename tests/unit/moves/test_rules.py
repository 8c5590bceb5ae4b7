"""Gates and reasons of a move, one by one, on figures made up for the purpose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from berth.api.placement import Allocation
from berth.core.calibration.diagnose import Diagnosis
from berth.core.moves.decision import HOLDS, Hold
from berth.core.moves.identity import placement_hash
from berth.core.moves.rules import Past, Policy, State, best, gate
from berth.core.moves.weigh import Option, Weighed
from berth.core.placement.choose import Answer
from berth.core.placement.cost import Cost
from berth.core.placement.layouts import Layout
from berth.core.placement.size import Candidate, Rejection, Stage

HOUR, DAY = 3600.0, 86400.0
NOW = 100 * DAY
HERE = Allocation(pool="h100", variant="fp8", tensor_parallel=2, groups=3)
THERE = Layout("a100", "bf16", 4)
POLICY = Policy("Auto", minimum_gain=0.15, pay_back_within=6 * HOUR, cooldown=6 * HOUR, max_per_day=4)
WELL = State(effective=400.0, misses=0.02)
BREACHED = replace(WELL, misses=0.20)
SLOW_POOL = Diagnosis("SlowPool", "h100", 1.4, "steps on pool h100 take 1.40 times as long as before at like load")


def candidate(per_hour: float, *, groups: int = 2, **given: Any) -> Candidate:
    return Candidate(THERE, groups=groups, cost=Cost(per_hour, per_hour, None), **given)


def option(saving: float, at_worst: float, *, per_hour: float = 10.0, **given: Any) -> Option:
    return Option(candidate(per_hour, **given), candidate(per_hour), saving, at_worst, price=per_hour / 3)


def weighed(*options: Option, stay: Candidate | None = None, per_hour: float = 18.0) -> Weighed:
    here = stay or Candidate(Layout.of(HERE), groups=3, cost=Cost(per_hour, per_hour, None))
    return Weighed(None, here, per_hour, per_hour, options, Answer((), None, ""), None)  # type: ignore[arg-type]


def decide(
    found: Weighed, state: State = WELL, policy: Policy = POLICY, past: Past | None = None, why: Any = None
) -> Any:
    return best(NOW, policy, past or Past(), state, found, HERE, why or Diagnosis("None"))


def reason(verdict: Any) -> str:
    assert isinstance(verdict, Hold), verdict
    assert verdict.reason in HOLDS
    return verdict.reason


# --- gates ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "past", "state", "expected"),
    [
        ({"fixed": True}, Past(), {}, "FixedPlacement"),
        ({"mode": "Off"}, Past(), {}, "MovesOff"),
        ({"changes_allowed": False}, Past(), {}, "Paused"),
        ({}, Past(), {"moving": True}, "Moving"),
        ({}, Past(), {"measured": False}, "NoMetrics"),
        ({}, Past(), {"failing_over": True}, "FailingOver"),
        ({}, Past(), {"changing": True}, "Changing"),
        ({}, Past(), {"settled": False}, "Unsettled"),
        ({}, Past(), {"effective": 20.0}, "TooFewSamples"),
        ({}, Past(ended=tuple(NOW - h * HOUR for h in (8, 12, 16, 20))), {}, "MovesOfTheDaySpent"),
        ({}, Past(ended=(NOW - 5 * HOUR,)), {}, "CoolingDown"),
        ({}, Past(), {"day_known": False}, "LessThanADay"),
        ({"prefers_cost": False}, Past(), {}, "NothingBetter"),
    ],
)
def test_a_gate_holds(policy: Any, past: Past, state: Any, expected: str) -> None:
    assert reason(gate(NOW, replace(POLICY, **policy), past, replace(WELL, **state))) == expected


def test_nothing_holds_a_deployment_that_is_well_and_measured() -> None:
    past = Past(ended=tuple(NOW - h * HOUR for h in (7, 12, 16, 25)))
    assert gate(NOW, POLICY, past, WELL) is None


def test_a_breach_does_not_wait_for_a_day_of_measurements() -> None:
    assert gate(NOW, POLICY, Past(), replace(BREACHED, day_known=False)) is None


@pytest.mark.parametrize(
    ("state", "breached"),
    [
        ({"misses": 0.20}, True),
        ({"misses": 0.07, "effective": 400.0}, False),  # one hour in a hundred by chance
        ({"misses": 0.09, "effective": 400.0}, True),
        ({"misses": 0.50, "effective": 40.0}, False),
        ({"misses": 0.50, "lasted": 600.0}, False),  # the fast window never moves anything
        ({"misses": 0.50, "measured": False}, False),
    ],
)
def test_what_is_a_lasting_breach(state: Any, breached: bool) -> None:
    assert replace(WELL, **state).breached is breached


# --- for money --------------------------------------------------------------------------------------------------------
def test_a_saving_that_is_sure_large_and_quick_is_a_move() -> None:
    found = decide(weighed(option(8.0, 2.0)))
    assert found == (option(8.0, 2.0), "Cost")


@pytest.mark.parametrize(
    ("saving", "at_worst", "expected"),
    [(8.0, -0.1, "NothingBetter"), (2.6, 1.0, "NothingBetter"), (0.0, 0.0, "NothingBetter")],
    ids=["may cost money", "less than minimumGain of 18", "nothing"],
)
def test_a_saving_that_is_not(saving: float, at_worst: float, expected: str) -> None:
    assert reason(decide(weighed(option(saving, at_worst)))) == expected


def test_a_saving_that_pays_back_too_late() -> None:
    slow = replace(option(3.0, 1.0), price=30.0)
    verdict = decide(weighed(slow))
    assert reason(verdict) == "PaysBackTooLate"
    assert "10.0 h" in verdict.message


def test_without_prices_nobody_moves_for_money() -> None:
    unknown = Option(candidate(0.0), candidate(0.0), None, None, None)
    assert reason(decide(weighed(unknown))) == "NothingBetter"


def test_a_cost_move_waits_until_the_last_has_paid_three_times() -> None:
    past = Past(ended=(NOW - 8 * HOUR,), cost_moves_from=NOW + HOUR)
    assert reason(decide(weighed(option(8.0, 2.0)), past=past)) == "CoolingDown"
    assert gate(NOW, POLICY, past, BREACHED) is None  # a breach does not


# --- for objectives ---------------------------------------------------------------------------------------------------
OUT = Candidate(Layout.of(HERE), groups=0, rejected=Rejection(Stage.OBJECTIVE, "TPOT p95 61ms > 50ms"))


def test_a_breach_that_only_leaving_cures() -> None:
    assert decide(weighed(option(-2.0, -4.0), stay=OUT), BREACHED, why=SLOW_POOL) == (option(-2.0, -4.0), "Objectives")


def test_a_breach_that_more_groups_cure_is_no_reason_to_leave() -> None:
    assert reason(decide(weighed(option(8.0, 2.0)), BREACHED, why=SLOW_POOL)) == "MoreGroupsHelp"


def test_one_slow_group_is_no_reason_to_leave_the_pool() -> None:
    assert (
        reason(decide(weighed(option(8.0, 2.0), stay=OUT), BREACHED, why=Diagnosis("SlowGroup", "g1"))) == "SlowGroup"
    )


def test_a_breach_that_nothing_explains_is_no_reason_to_leave() -> None:
    assert reason(decide(weighed(option(8.0, 2.0), stay=OUT), BREACHED)) == "NoCure"


def test_a_cure_must_hold_at_worst() -> None:
    doubtful = replace(option(8.0, 2.0), at_worst=candidate(9.0, rejected=Rejection(Stage.OBJECTIVE, "too slow")))
    assert reason(decide(weighed(doubtful, stay=OUT), BREACHED, why=SLOW_POOL)) == "NoCure"


# --- what forbids it --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("policy", "past", "state", "given", "expected"),
    [
        ({"gpu_limit": 13}, Past(), {}, {}, "LimitReached"),  # 6 here and 8 there
        ({"cost_limit": 27.0}, Past(), {}, {}, "LimitReached"),  # 18 here and 10 there
        ({}, Past(taken_back=frozenset({placement_hash(THERE.allocation(1))})), {}, {}, "RolledBackBefore"),
        ({}, Past(), {"too_slow": frozenset({"a100"})}, {}, "PoolTooSlow"),
        ({}, Past(), {"moves_by_pool": {"h100": 2}}, {}, "PoolBusy"),
        ({}, Past(), {"moves_by_pool": {"a100": 2}}, {}, "PoolBusy"),
        ({}, Past(), {}, {"waits": "needs 2 groups x 4 GPUs, 1 fit now"}, "NoCapacity"),
        ({}, Past(), {}, {"available": False}, "NothingBetter"),
    ],
)
@pytest.mark.parametrize("breached", [False, True])
def test_what_forbids_a_move_whatever_its_reason(
    policy: Any, past: Past, state: Any, given: Any, expected: str, breached: bool
) -> None:
    now = replace(BREACHED if breached else WELL, **state)
    found = weighed(option(8.0, 2.0, **given), stay=OUT if breached else None)
    assert reason(decide(found, now, replace(POLICY, **policy), past, SLOW_POOL)) == expected


def test_limits_that_hold_both_sides_allow_it() -> None:
    policy = replace(POLICY, gpu_limit=14, cost_limit=28.0)
    assert decide(weighed(option(8.0, 2.0)), policy=policy)[1] == "Cost"


@pytest.mark.parametrize("breached", [False, True])
def test_without_surge_a_move_is_named_and_not_begun(breached: bool) -> None:
    found = weighed(option(8.0, 2.0), stay=OUT if breached else None)
    verdict = decide(found, BREACHED if breached else WELL, replace(POLICY, surge=False), why=SLOW_POOL)
    assert reason(verdict) == "NoSurgePossible"
    assert "a100 bf16 tp4" in verdict.message
    assert "update.surge is Never" in verdict.message
    assert "2 groups of 4 GPUs there do not fit in the place of 3 of 2" in verdict.message


@pytest.mark.parametrize("breached", [False, True])
@pytest.mark.parametrize(
    ("state", "cost_limit", "expected"),
    [
        ({"needed": 2}, None, ""),
        ({"needed": 3}, None, "NoSurgePossible"),
        ({"needed": 2, "waiting": True}, None, "NoSurgePossible"),
        ({"needed": 2}, 18.0, ""),
        ({"needed": 2}, 17.0, "LimitReached"),
    ],
    ids=["one to spare", "none to spare", "no room for one", "as dear as now", "dearer than allowed"],
)
def test_without_surge_groups_change_places_where_all_but_one_are_enough(
    state: Any, cost_limit: float | None, expected: str, breached: bool
) -> None:
    found = weighed(option(8.0, 2.0), stay=OUT if breached else None)
    wide = HERE.model_copy(update={"tensor_parallel": 4})
    policy = replace(POLICY, surge=False, gpu_limit=12, cost_limit=cost_limit)
    now = replace(BREACHED if breached else WELL, **state)
    verdict = best(NOW, policy, Past(), now, found, wide, SLOW_POOL)
    if expected:
        assert reason(verdict) == expected
    else:
        assert verdict == (found.options[0], "Objectives" if breached else "Cost")


def test_a_breach_that_more_groups_cannot_cure_is_left_though_the_models_would_count_them() -> None:
    assert decide(weighed(option(-4.0, -6.0)), replace(BREACHED, out_of_reach=True), why=SLOW_POOL)[1] == "Objectives"


def test_another_layout_on_a_pool_slower_than_is_ever_believed_is_no_cure() -> None:
    same = option(-1.0, -2.0)
    same = replace(same, candidate=replace(same.candidate, layout=Layout("h100", "fp8", 4)))
    beyond = replace(BREACHED, beyond_belief=True)
    assert decide(weighed(same, option(-4.0, -6.0)), beyond, why=SLOW_POOL)[0] == option(-4.0, -6.0)
    assert reason(decide(weighed(same), beyond, why=SLOW_POOL)) == "NoCure"


def test_a_pool_slower_than_is_ever_believed_is_left_though_staying_looks_good() -> None:
    assert decide(weighed(option(-4.0, -6.0)), replace(BREACHED, beyond_belief=True), why=SLOW_POOL)[1] == "Objectives"


def test_the_second_best_is_taken_where_the_best_is_forbidden() -> None:
    full = option(9.0, 3.0, waits="no room")
    assert decide(weighed(full, option(8.0, 2.0)))[0] == option(8.0, 2.0)
