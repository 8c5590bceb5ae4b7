"""Worked numbers, computed independently of this code; see docs/designs/010-availability.md."""

from __future__ import annotations

import pytest

from berth.core.availability import (
    Domain,
    Group,
    availability,
    detection_loss,
    fewer_than,
    groups_for,
    spares_chain,
    unavailability,
    unavailability_at,
    up_distribution,
)

DAY = 86400.0
HOUR = 3600.0


def digits(value: float) -> float:
    return pytest.approx(value, rel=5e-4)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("mttf_days", "recovery", "one", "one_of_two", "two_of_three", "four_of_five"),
    [
        (47, 195, 4.802e-5, 2.306e-9, 6.917e-9, 2.306e-8),
        (47, 560, 1.379e-4, 1.901e-8, 5.703e-8, 1.901e-7),
        (47, DAY, 2.083e-2, 4.340e-4, 1.284e-3, 4.162e-3),
        (264, 195, 8.549e-6, 7.309e-11, 2.193e-10, 7.308e-10),
        (264, DAY, 3.774e-3, 1.424e-5, 4.261e-5, 1.413e-4),
    ],
)
def test_equal_independent_groups(
    mttf_days: float, recovery: float, one: float, one_of_two: float, two_of_three: float, four_of_five: float
) -> None:
    down = unavailability(mttf_days * DAY, recovery)
    assert down == digits(one)
    assert fewer_than(1, up_distribution([down] * 2)) == digits(one_of_two)
    assert fewer_than(2, up_distribution([down] * 3)) == digits(two_of_three)
    assert fewer_than(4, up_distribution([down] * 5)) == digits(four_of_five)


def test_unequal_groups() -> None:
    up = up_distribution([0.001, 0.001, 0.005, 0.01])
    assert [fewer_than(k, up) for k in (1, 2, 3, 4)] == [
        pytest.approx(u, rel=1e-5) for u in (5.0e-11, 1.1485e-7, 8.0770e-5, 1.69191e-2)
    ]


def spread_over(counts: tuple[int, ...], needed: int) -> float:
    zones = [Domain(f"z{i}", "zone", 5e-4) for i in range(len(counts))]
    groups = [Group(1 / (47 * DAY), 560, (f"z{i}",)) for i, count in enumerate(counts) for _ in range(count)]
    return availability(groups, needed, zones).unavailability


@pytest.mark.parametrize(
    ("counts", "need_two", "need_three"),
    [
        ((4,), 5.000e-4, 5.001e-4),
        ((3, 1), 5.000e-4, 5.003e-4),
        ((2, 2), 5.256e-7, 9.999e-4),
        ((2, 1, 1), 6.378e-7, 5.008e-4),
        ((1, 1, 1, 1), 1.037e-9, 2.439e-6),
    ],
)
def test_four_groups_over_zones(counts: tuple[int, ...], need_two: float, need_three: float) -> None:
    assert spread_over(counts, 2) == digits(need_two)
    assert spread_over(counts, 3) == digits(need_three)


def test_two_and_two_is_worse_than_one_zone_when_three_are_needed() -> None:
    assert spread_over((2, 2), 3) > 1.9 * spread_over((4,), 3)


@pytest.mark.parametrize(("spares", "short"), [(0, 0.1535), (1, 0.01275), (2, 7.158e-4)])
def test_spare_nodes(spares: int, short: float) -> None:
    chain = spares_chain(4, spares, 1 / (47 * DAY), 48 * HOUR)
    assert sum(chain[spares + 1 :]) == digits(short)
    assert sum(chain) == pytest.approx(1)


@pytest.mark.parametrize(("beta", "expected"), [(0, 5.70e-8), (0.01, 1.44e-6), (0.05, 6.95e-6), (0.1, 1.38e-5)])
def test_common_cause_rules_below_one_in_a_million(beta: float, expected: float) -> None:
    groups = [Group(1 / (47 * DAY), 560)] * 3
    # The published figures leave the independent part unscaled: 0.4 % at most.
    assert availability(groups, 2, common_cause=beta).unavailability == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("seconds", "expected"), [(350, 8.62e-5), (50, 1.23e-5), (5, 1.23e-6)])
def test_requests_lost_before_detection(seconds: float, expected: float) -> None:
    assert detection_loss(1 / (47 * DAY), seconds) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("seconds", "expected"), [(60, 1.2718e-5), (195, 3.0354e-5), (HOUR, 4.8018e-5)])
def test_finite_window(seconds: float, expected: float) -> None:
    assert unavailability_at(seconds, 1 / (47 * DAY), 195) == pytest.approx(expected, rel=5e-5)
    now = availability([Group(1 / (47 * DAY), 195)], 1, at_seconds=seconds)
    assert now.unavailability == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize(("recovery", "groups"), [(195, 2), (560, 3), (DAY, 4), (3 * DAY, 5)])
def test_smallest_number_of_groups_for_four_nines_with_two_needed(recovery: float, groups: int) -> None:
    answer = groups_for(0.9999, 2, 9, lambda n: availability([Group(1 / (47 * DAY), recovery)] * n, 2))
    assert answer.groups == groups
    if recovery == 195:
        assert answer.best.unavailability == digits(9.603e-5)
