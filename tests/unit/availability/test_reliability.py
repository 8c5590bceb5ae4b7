"""Prediction for a layout of groups on nodes, and failure rates learnt from a pool."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from berth.core.availability import WorstLoss, fewer_than, unavailability, up_distribution
from berth.core.reliability import (
    DAY,
    REPAIR_TIME,
    FailureModel,
    gamma_cdf,
    gamma_quantile,
    mtbf_band,
    predict,
    worst_losses,
)

IDEAL = FailureModel(common_cause=0, domain_unavailability=0, detect_seconds=10)


def test_a_whole_node_fails_as_often_as_the_pool_says() -> None:
    down = predict([["a"]], 1, 8, IDEAL, spares=1000).unavailability
    assert down == pytest.approx(unavailability(47 * DAY, 195), rel=1e-3)


def test_fewer_gpus_fail_less_often() -> None:
    downs = [predict([["a"]], 1, gpus, IDEAL, spares=1000).unavailability for gpus in (1, 2, 4, 8)]
    assert downs == sorted(downs)
    # Software and the host do not shrink with the number of GPUs.
    assert downs[0] > downs[-1] * 0.36


def test_two_groups_on_one_node_die_together() -> None:
    apart = predict([["a"], ["b"]], 1, 4, IDEAL, spares=9)
    together = predict([["a"], ["a"]], 1, 4, IDEAL, spares=9)
    assert together.unavailability > 2 * apart.unavailability
    assert together.limited_by == "loss of a node"


def test_without_spare_capacity_the_repair_of_a_node_binds() -> None:
    none = predict([["a"], ["b"]], 1, 8, IDEAL, spares=0)
    assert none.limited_by == REPAIR_TIME
    one = predict([["a"], ["b"]], 1, 8, IDEAL, spares=1)
    assert one.unavailability < none.unavailability / 50


def test_a_group_over_two_nodes_fails_with_either() -> None:
    one = predict([["a"]], 1, 8, IDEAL, spares=1000).unavailability
    two = predict([["a", "b"]], 1, 8, IDEAL, spares=1000).unavailability
    # Everything but the software is there twice.
    assert two == pytest.approx((2 - 61 / 419) * one, rel=1e-3)


def test_zones_limit_groups_that_share_one() -> None:
    rates = FailureModel()
    shared = predict([["a"], ["b"]], 1, 2, rates, domain_of={"a": "z", "b": "z"}, spares=9)
    assert shared.limited_by == "loss of a zone"
    assert shared.unavailability == pytest.approx(1e-4, rel=0.02)
    apart = predict([["a"], ["b"]], 1, 2, rates, domain_of={"a": "z", "b": "y"}, spares=9)
    assert apart.unavailability < 2e-6


def test_nodes_and_zones_may_share_a_name() -> None:
    answer = predict([["a"]], 1, 8, FailureModel(), domain_of={"a": "a"}, spares=9)
    assert answer.limited_by == "loss of a zone"


def test_worst_losses_say_what_a_node_and_a_zone_take() -> None:
    layout = [["a", "b"], ["b"], ["c"]]
    losses = worst_losses(layout, {"a": "x", "b": "x", "c": "b"})
    assert losses == {"node": WorstLoss("b", 1), "zone": WorstLoss("x", 1)}
    assert worst_losses(layout, {}) == {"node": WorstLoss("b", 1)}
    assert worst_losses([], {}) == {}


def test_without_common_cause_and_domains_it_is_k_of_n() -> None:
    own_only = replace(IDEAL, detect_seconds=0, load_seconds=190)
    one = predict([["a"]], 1, 8, own_only, spares=1000).unavailability
    three = predict([["a"], ["b"], ["c"]], 2, 8, own_only, spares=1000).unavailability
    assert three == pytest.approx(fewer_than(2, up_distribution([one] * 3)), rel=1e-3)


def test_evidence_moves_the_rate_from_the_prior() -> None:
    assert mtbf_band(0, 0).days == 47
    assert mtbf_band(0, 1000).days == 1047
    band = mtbf_band(20, 1000)
    assert band.low_days < band.days < band.high_days
    assert band.days == pytest.approx(1047 / 21)
    assert mtbf_band(200, 10_000).high_days / mtbf_band(200, 10_000).low_days < band.high_days / band.low_days
    with pytest.raises(ValueError, match="must not be negative"):
        mtbf_band(-1, 10)


@given(st.floats(0.1, 500), st.floats(0.01, 0.99))
def test_quantiles_agree_with_an_independent_implementation(shape: float, probability: float) -> None:
    x = gamma_quantile(shape, probability)
    assert x == pytest.approx(stats.gamma.ppf(probability, shape), rel=1e-8)
    assert gamma_cdf(shape, x) == pytest.approx(probability, rel=1e-8)
