"""A difference of two samples is taken only where it means something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.measurement.histogram import Histogram
from berth.core.measurement.samples import (
    LONGEST_INTERVAL,
    Objectives,
    Sample,
    StepMoments,
    Steps,
    Tally,
    between,
)

EDGES = (0.1, 0.5, 1.5)
WANTED = Objectives(first_token=1.5)
EARLIER = Sample(
    at=100.0,
    first_token=Histogram(EDGES, (1, 2, 3, 4), 20.0),
    counters={"requests": 10.0, "tokens": 500.0},
    steps=Steps(100, 2.0, 400, 40_000, 9_000),
    running=3,
    waiting=1,
    kv_use=0.5,
)
LATER = Sample(
    at=110.0,
    first_token=Histogram(EDGES, (3, 2, 6, 5), 29.0),
    counters={"requests": 16.0, "tokens": 800.0},
    steps=Steps(200, 5.0, 900, 90_000, 9_500),
    running=5,
    waiting=0,
    kv_use=0.6,
)


def test_what_happened_between_two_samples() -> None:
    tally = between(EARLIER, LATER, WANTED)
    assert tally is not None
    assert tally.first_token == Histogram(EDGES, (2, 0, 3, 1), 9.0)
    assert (tally.first_token_met.requests, tally.first_token_met.low) == (6, 5)
    assert (tally.requests, tally.tokens, tally.group_seconds, tally.readings) == (6, 300, 10, 1)
    assert tally.steps.means == (5, 500, 5, 0.03)
    assert (tally.running_sum, tally.waiting_sum, tally.kv_use_max) == (5, 0, 0.6)
    assert tally.per_token is None
    assert tally.per_token_met.share is None


@pytest.mark.parametrize(
    "later",
    [
        replace(LATER, at=100.0),
        replace(LATER, at=90.0),
        replace(LATER, at=100.0 + LONGEST_INTERVAL + 1),
        replace(LATER, counters={"requests": 9.0, "tokens": 800.0}),
        replace(LATER, counters={"requests": 16.0}),
        replace(LATER, first_token=Histogram(EDGES, (0, 0, 0, 30), 99.0)),
        replace(LATER, first_token=Histogram((0.1, 0.5, 1.0), (3, 2, 6, 5), 29.0)),
        replace(LATER, first_token=None),
        replace(LATER, steps=Steps(3, 5.0, 900, 90_000, 9_500)),
    ],
    ids=["same moment", "clock back", "long ago", "reset", "less told", "reset histogram", "new edge", "lost", "steps"],
)
def test_no_difference_where_it_would_be_a_lie(later: Sample) -> None:
    assert between(EARLIER, later, WANTED) is None


def tallies() -> st.SearchStrategy[Tally]:
    counts = st.tuples(*[st.integers(0, 50)] * 4)
    return st.builds(
        lambda counts, requests, kv, steps: Tally(
            group_seconds=10,
            readings=1,
            first_token=Histogram(EDGES, counts, float(sum(counts))),
            first_token_met=Histogram(EDGES, counts, 1.0).within(1.5),
            requests=requests,
            kv_use_max=kv,
            steps=StepMoments.of(*steps),
        ),
        counts,
        st.integers(0, 100).map(float),
        st.floats(0, 1),
        st.tuples(*[st.integers(0, 1000).map(float)] * 5),
    )


@given(tallies(), tallies(), tallies())
def test_tallies_add_up_in_any_order(a: Tally, b: Tally, c: Tally) -> None:
    left, right = (a + b) + c, c + (b + a)
    assert left.first_token == right.first_token
    assert left.first_token_met == right.first_token_met
    assert (left.requests, left.kv_use_max, left.readings) == (right.requests, right.kv_use_max, 3)
    assert np.allclose(left.steps.products, right.steps.products)
    assert (Tally() + a).first_token == a.first_token


def test_step_times_can_be_regressed_from_the_moments_alone() -> None:
    random = np.random.default_rng(1)
    truth = np.array([0.012, 1e-4, 2e-8, 3e-6])  # seconds: base, per request, per context token, per prefill token
    moments = StepMoments()
    for _ in range(40):
        count = float(random.integers(50, 500))
        means = np.array([1.0, random.uniform(1, 60), random.uniform(1e3, 1e5), random.uniform(0, 800)])
        sums = means * count
        moments += StepMoments.of(count, sums[1], sums[2], sums[3], float(sums @ truth))
    products = np.array(moments.products)
    assert np.allclose(np.linalg.solve(products[:4, :4], products[:4, 4]), truth, rtol=1e-6)
    assert moments.observations == 40
