"""Counting within an objective is exact where the objective is an edge, and honest where it is not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.measurement.histogram import Attained, Histogram

EDGES = (0.1, 0.2, 0.4, 0.8, 1.5)
values = st.lists(st.floats(0.001, 5), max_size=200)


def histogram(observed: list[float], edges: tuple[float, ...] = EDGES) -> Histogram:
    counts = [0] * (len(edges) + 1)
    for value in observed:
        counts[next((index for index, edge in enumerate(edges) if value <= edge), len(edges))] += 1
    return Histogram(edges, tuple(counts), sum(observed))


@given(values)
def test_attainment_is_exact_when_the_objective_is_an_edge(observed: list[float]) -> None:
    met = histogram(observed).within(1.5)
    assert met.exact
    assert (met.requests, met.low) == (len(observed), sum(value <= 1.5 for value in observed))


@given(values, st.floats(0.01, 6))
def test_bounds_hold_for_any_objective(observed: list[float], objective: float) -> None:
    met = histogram(observed).within(objective)
    assert met.low <= sum(value <= objective for value in observed) <= met.high <= len(observed)


@given(values.filter(bool), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_of_the_true_one(observed: list[float], share: float) -> None:
    true = sorted(observed)[math.ceil(share * len(observed) - 1e-9) - 1]
    found = histogram(observed).quantile(share)
    upper = next((edge for edge in EDGES if true <= edge), math.inf)
    lower = max((edge for edge in (0.0, *EDGES) if edge < true), default=0.0)
    assert found is not None
    assert lower <= found <= upper


def test_nothing_observed_has_no_quantile_no_mean_and_no_share() -> None:
    empty = histogram([])
    assert (empty.quantile(0.95), empty.mean, empty.within(1.5).share) == (None, None, None)


def test_what_is_above_the_last_edge_is_not_called_a_number() -> None:
    assert histogram([0.1, 9.0]).quantile(0.95) == math.inf
    assert histogram([0.1, 9.0]).within(7.0) == Attained(2, 1, 2)


@given(values, values)
def test_the_difference_of_two_readings_is_what_came_between(before: list[float], after: list[float]) -> None:
    found = histogram(before + after).since(histogram(before))
    assert found is not None
    assert found.counts == histogram(after).counts


def test_a_reset_or_other_edges_give_no_difference() -> None:
    assert histogram([0.3]).since(histogram([0.3, 0.3])) is None
    assert histogram([0.3, 0.05]).since(histogram([0.05, 0.05])) is None
    assert histogram([0.3]).since(histogram([], (0.1, 0.2))) is None


@given(values, values)
def test_histograms_with_different_objectives_add_up_on_common_edges(first: list[float], second: list[float]) -> None:
    both = histogram(first, (0.1, 0.25, 0.4, 0.8)) + histogram(second, (0.1, 0.4, 0.5, 0.8))
    expected = histogram(first + second, (0.1, 0.4, 0.8))
    assert (both.edges, both.counts) == (expected.edges, expected.counts)
    assert both.total == pytest.approx(expected.total)
