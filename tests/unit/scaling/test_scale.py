"""The number of groups follows the measured load: up at once, down only when a day says that fewer would have done."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from berth.core.placement.size import groups_for_load
from berth.core.scaling import Bounds, Demand, Scaling, Sized, scale

CAPACITY = 2.0
HOURS = 3600.0


def asked(current: Sized, demand: Demand, *, most: int = 20, spare: int = 0, **given_: Any) -> Scaling:
    bounds = Bounds(
        for_traffic=lambda load: groups_for_load(load, CAPACITY),
        wanted=lambda groups: min(groups + spare, most),
        most=most,
    )
    return scale(current, demand, bounds, **{"busy": 1.4, "settled_for": 24 * HOURS, "helps": True, **given_})


def test_the_hour_takes_more_groups_than_there_are() -> None:
    found = asked(Sized(2, 2), Demand(slow=8.0, fast=8.0, peak=None))
    assert found.sized.groups == found.sized.for_traffic == groups_for_load(8.0, CAPACITY) > 2
    assert "8.00 per second" in found.reason


def test_availability_adds_to_what_the_traffic_takes() -> None:
    found = asked(Sized(1, 2), Demand(slow=8.0, fast=8.0, peak=None), spare=1)
    assert found.sized.groups == found.sized.for_traffic + 1


def test_a_busy_minute_that_the_plan_allows_for_adds_nothing() -> None:
    """Capacity is that of a mean rate whose minutes reach 1.4 times the mean."""
    groups = groups_for_load(3.0, CAPACITY)
    assert asked(Sized(groups, groups), Demand(slow=3.0, fast=4.1, peak=None)).reason == ""


def test_a_jump_is_followed_before_the_hour_shows_it() -> None:
    assert asked(Sized(2, 2), Demand(slow=3.0, fast=11.2, peak=None)).sized.groups == groups_for_load(8.0, CAPACITY)


def test_an_objective_that_breaks_fast_adds_one_group_though_the_model_sees_no_need() -> None:
    breaking = Demand(slow=3.0, fast=3.0, peak=3.0, burn=5.0, effective=60.0)
    assert asked(Sized(2, 2), breaking).sized.groups == 3


@pytest.mark.parametrize(
    ("demand", "given_"),
    [
        (Demand(3.0, 3.0, None, burn=5.0, effective=20.0), {}),
        (Demand(3.0, 3.0, None, burn=3.0, effective=500.0), {}),
        (Demand(3.0, 3.0, None, burn=9.0, effective=500.0), {"settled_for": 120.0}),
        (Demand(3.0, 3.0, None, burn=9.0, effective=500.0), {"helps": False}),
        (Demand(3.0, 3.0, None, burn=9.0, effective=500.0), {"most": 2}),
    ],
    ids=["too few samples", "within the budget", "the last change is too young", "one slow group", "no more allowed"],
)
def test_nothing_is_added_without_cause(demand: Demand, given_: Any) -> None:
    assert asked(Sized(2, 2), demand, **given_).sized.groups == 2


def test_down_by_one_when_the_rest_would_have_met_the_objectives_at_the_days_peak() -> None:
    assert asked(Sized(2, 5), Demand(slow=1.0, fast=1.0, peak=3.0)).sized.groups == 4


@pytest.mark.parametrize(
    ("demand", "given_"),
    [
        (Demand(1.0, 1.0, None), {}),
        (Demand(1.0, 1.0, 8.9), {}),
        (Demand(1.0, 1.0, 3.0), {"settled_for": 1800.0}),
        (Demand(1.0, 1.0, 3.0, burn=5.0, effective=60.0), {"most": 5}),
    ],
    ids=["no day was measured", "the peak needs them", "a step an hour", "an objective breaks"],
)
def test_no_group_leaves_too_early(demand: Demand, given_: Any) -> None:
    assert asked(Sized(2, 5), demand, **given_).sized.groups == 5


def test_availability_keeps_groups_that_traffic_does_not_take() -> None:
    assert asked(Sized(2, 3), Demand(1.0, 1.0, 3.0), spare=1).sized.groups == 3


def test_the_needed_number_does_not_waver_with_the_load() -> None:
    edge = 0.9 * CAPACITY * 2 / 1.05
    current = Sized(groups_for_load(edge * 1.05, CAPACITY), 3)
    for load in (edge * 1.02, edge * 0.97, edge * 1.03):
        current = asked(current, Demand(load, load, None)).sized
        assert current.for_traffic == groups_for_load(edge * 1.05, CAPACITY)


@example(current=2, slow=1.5, jump=1.625, peak=1.0, burn=0.0, effective=0.0, settled=3600.0, most=2)
@given(
    current=st.integers(1, 12),
    slow=st.floats(0.01, 60),
    jump=st.floats(0.2, 6),
    peak=st.none() | st.floats(0.01, 60),
    burn=st.floats(0, 20),
    effective=st.floats(0, 1000),
    settled=st.floats(0, 1e6),
    most=st.integers(1, 12),
)
def test_laws(
    current: int, slow: float, jump: float, peak: float | None, burn: float, effective: float, settled: float, most: int
) -> None:
    """Within bounds; never below what the load of now takes; never more than one down; a second look changes nothing
    that the first did, except the next step."""
    groups = min(current, most)
    demand = Demand(slow, slow * jump, peak, burn, effective)
    found = asked(Sized(groups, groups), demand, most=most, settled_for=settled).sized
    assert 1 <= found.groups <= most
    assert found.groups >= min(groups_for_load(slow, CAPACITY), most, found.groups + (found.groups < groups))
    assert found.groups >= groups - 1
    if found.groups < groups:
        assert peak is not None
        assert groups_for_load(max(peak, slow), CAPACITY) <= found.groups
    again = asked(found, demand, most=most, settled_for=0.0).sized
    assert again.groups == found.groups
