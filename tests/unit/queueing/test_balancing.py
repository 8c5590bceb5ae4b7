import math
from itertools import product

import pytest

from berth.estimator.balancing import imbalance, usable_capacity


@pytest.mark.parametrize(("groups", "channels"), [(2, 4), (2, 8), (3, 5), (4, 4), (5, 1)])
def test_imbalance_is_the_mean_over_all_ways_to_connect(groups: int, channels: int) -> None:
    ways = list(product(range(groups), repeat=channels))
    largest = sum(max(way.count(group) for group in range(groups)) for way in ways) / len(ways)

    assert imbalance(groups, channels) == pytest.approx(largest * groups / channels)


@pytest.mark.parametrize(
    ("groups", "expected"), [(2, (1.37, 1.27, 1.20, 1.10)), (4, (2.12, 1.77, 1.53, 1.26))], ids=["2", "4"]
)
def test_imbalance_of_a_service(groups: int, expected: tuple[float, ...]) -> None:
    assert [imbalance(groups, channels) for channels in (4, 8, 16, 64)] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("groups", [2, 7, 40])
def test_the_approximation_for_many_channels_continues_the_exact_one(groups: int) -> None:
    assert imbalance(groups, 513) == pytest.approx(imbalance(groups, 512), rel=0.05)


def test_requests_that_are_balanced_one_by_one_have_no_imbalance() -> None:
    assert imbalance(8, None) == 1
    assert imbalance(1, 3) == 1


@pytest.mark.parametrize(("groups", "channels"), [(0, 4), (2, 0), (-1, None)])
def test_nothing_to_balance_is_refused(groups: int, channels: int | None) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        imbalance(groups, channels)


def test_unequal_groups_under_equal_shares_carry_what_the_weakest_allows() -> None:
    assert usable_capacity([9.5, 2.0]) == pytest.approx(4.0)


def test_shares_by_capacity_use_all_of_it() -> None:
    assert usable_capacity([9.5, 2.0], [9.5, 2.0]) == pytest.approx(11.5)


def test_a_group_without_share_limits_nothing() -> None:
    assert usable_capacity([9.5, 0.0], [1.0, 0.0]) == pytest.approx(9.5)


def test_no_groups_carry_nothing() -> None:
    assert usable_capacity([]) == 0


@pytest.mark.parametrize("shares", [[1.0], [1.0, -1.0], [1.0, math.nan]])
def test_shares_that_do_not_fit_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares: "):
        usable_capacity([1.0, 2.0], shares)
