"""Days under Berth's decisions on engines that its models do not know: no false moves, no oscillation, no breach."""

from __future__ import annotations

from itertools import pairwise

import pytest

from berth.simulation.run import Course
from berth.simulation.world import Event, hidden_factors
from tests.unit.simulation.cases import DAY, HOUR, pool, simulated, simulated_together

pytestmark = pytest.mark.slow

TWO = (pool("a"), pool("b"))


def moves(course: Course) -> list[tuple[str, str]]:
    return [(move.to.pool, result) for _, move, result in course.operator.tally.moves]


def pools_over_time(course: Course) -> list[str]:
    found: list[str] = []
    for sample in course.samples:
        if sample.pool and (not found or found[-1] != sample.pool):
            found.append(sample.pool)
    return found


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.25])
def test_thirty_days_on_equal_pools_bring_no_more_than_one_move(factor: float) -> None:
    """However wrong the models are about all of them."""
    pools = [pool(name) for name in "abcd"]
    course = simulated(pools, 30, hidden=dict.fromkeys("abcd", factor), swing=1.3)
    assert len(moves(course)) <= 1
    assert min(course.attained) >= 0.95
    assert len(course.operator.tally.scalings) <= 6


@pytest.mark.parametrize("seed", range(4))
def test_pools_that_differ_by_chance_are_left_only_for_money_that_is_earned(seed: int) -> None:
    pools = [pool(name) for name in "abc"]
    course = simulated(pools, 14, hidden=hidden_factors("abc", 0.25, seed), swing=1.3, seed=seed)
    assert len(moves(course)) <= 2
    assert min(course.attained) >= 0.95


def test_a_pool_that_becomes_slow_is_left_once() -> None:
    slow = Event("slow", 2 * DAY, pool="a", value=1.6)
    course = simulated(TWO, 6, events=[slow], placement={"pools": ["a", "b"]})
    first = pools_over_time(course)[0]
    if first != "a":
        slow = Event("slow", 2 * DAY, pool="b", value=1.6)
        course = simulated(TWO, 6, events=[slow])
    other = {"a": "b", "b": "a"}[first]
    assert moves(course) == [(other, "Completed")]
    at = course.operator.tally.moves[0][0]
    assert 2 * DAY < at < 2 * DAY + 6 * HOUR
    assert min(course.attained) >= 0.95


def test_two_slow_pools_are_no_ping_pong() -> None:
    events = [Event("slow", 2 * DAY, pool=name, value=2.2) for name in "ab"]
    course = simulated(TWO, 10, events=events)
    assert len(moves(course)) <= 2
    assert len(pools_over_time(course)) <= 3


def test_a_price_that_drops_pays_for_one_move() -> None:
    pools = (pool("a"), pool("b", price="3.49"))
    course = simulated(pools, 6, events=[Event("price", 2 * DAY, pool="b", value=1.2)])
    assert moves(course) == [("b", "Completed")]
    _, move, _ = course.operator.tally.moves[0]
    assert move.cause == "Cost"
    assert move.saving is not None
    assert move.saving_at_worst is not None
    assert move.saving >= move.saving_at_worst > 0
    assert move.pay_back is not None
    assert move.cooldown >= 3 * move.pay_back


def test_without_surge_groups_change_places_for_it_and_hold_no_more_than_before() -> None:
    pools = (pool("a"), pool("b", price="3.49"))
    drop = [Event("price", 1.5 * DAY, pool="b", value=1.2)]
    one_less = {"surge": "Never", "maxUnavailable": 1}
    course = simulated(pools, 2.5, load=1.0, events=drop, update=one_less, scaling={"min": 3})
    assert moves(course) == [("b", "Completed")]
    assert {sample.groups for sample in course.samples[1:]} <= {2, 3}
    assert min(course.attained) >= 0.95


def test_a_price_that_swings_every_day_does_not_swing_the_placement() -> None:
    """Cool-down and pay-back: at most the moves that each pay three times for themselves."""
    pools = (pool("a"), pool("b"))
    events = [Event("price", day * DAY, pool="b", value=2.2 if day % 2 else 3.9, lasts=DAY) for day in range(1, 14)]
    course = simulated(pools, 14, events=events)
    times = [at for at, _, _ in course.operator.tally.moves]
    assert all(later - earlier >= 6 * HOUR for earlier, later in pairwise(times))
    assert len(times) <= 14
    stayed = simulated(pools, 14, events=events, placement={"moves": {"mode": "Off"}})
    assert course.operator.tally.cost <= 1.02 * stayed.operator.tally.cost


def test_advise_and_off_do_nothing() -> None:
    pools = (pool("a"), pool("b", price="3.49"))
    drop = [Event("price", 2 * DAY, pool="b", value=1.2)]
    advised = simulated(pools, 4, events=drop, placement={"moves": {"mode": "Advise"}})
    off = simulated(pools, 4, events=drop, placement={"moves": {"mode": "Off"}})
    assert moves(advised) == moves(off) == []
    assert advised.operator.tally.advised > 0
    assert off.operator.tally.advised == 0


def test_without_metrics_nothing_happens() -> None:
    """A pool becomes slow and a price drops while nobody can see it."""
    events = [
        Event("metrics", 2 * DAY, lasts=DAY),
        Event("slow", 2 * DAY + 5, pool="a", value=1.6, lasts=DAY - 10),
        Event("price", 2 * DAY + 5, pool="b", value=0.9, lasts=DAY - 10),
    ]
    course = simulated(TWO, 4, events=events)
    done = [each for each in course.operator.tally.done if 2 * DAY < each.at < 3 * DAY and each.what != "placed"]
    assert done == []
    assert course.operator.tally.holds["NoMetrics"] > 200


def test_limits_hold_both_sides_of_a_move_at_every_moment() -> None:
    pools = (pool("a"), pool("b", price="3.49"))
    drop = [Event("price", 2 * DAY, pool="b", value=1.2)]
    free = simulated(pools, 4, events=drop)
    most = max(sample.gpus for sample in free.samples)
    assert moves(free)
    course = simulated(pools, 4, events=drop, objectives={"limits": {"gpus": most - 1}})
    assert moves(course) == []
    assert max(sample.gpus for sample in course.samples) <= most - 1
    assert course.operator.tally.holds["LimitReached"] > 0


def test_a_place_that_is_worse_is_left_again_once_and_remembered() -> None:
    """The other pool is far slower than its published times: cheap, but no bargain, in no other layout either."""
    pools = (pool("a"), pool("b", price="3.49"))
    course = simulated(
        pools, 6, hidden={"b": 3.5}, events=[Event("price", 2 * DAY, pool="b", value=0.9)], scaling={"max": 4}
    )
    results = [result for _, result in moves(course)]
    assert results.count("RolledBack") <= 1
    assert len(results) <= 2
    assert course.samples[-1].pool == "a"


def test_groups_follow_a_load_that_doubles_and_leave_after_a_day_of_less() -> None:
    day = simulated((pool("a"),), 6, swing=1.6, load=8.0)
    tally = day.operator.tally
    assert min(day.attained) >= 0.95
    assert len(tally.scalings) <= 8
    for (at, before, after), (later, _, then) in pairwise(tally.scalings):
        assert not (after > before and then < after and later - at < DAY), "what was added stays for a day"


def test_of_three_that_want_to_leave_a_slow_pool_two_move_at_a_time() -> None:
    slow = Event("slow", 0.5 * DAY, pool="a", value=2.2)
    courses = simulated_together(["one", "two", "three"], TWO, 0.75, events=[slow])
    spans = []
    for course in courses:
        (begun,) = [each.at for each in course.operator.tally.done if each.what == "move"]
        (ended,) = [at for at, _, _ in course.operator.tally.moves]
        spans.append((begun, ended))
    assert max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans) == 2
    assert sum(course.operator.tally.holds.get("PoolBusy", 0) for course in courses) >= 1
