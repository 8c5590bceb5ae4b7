"""What is remembered: bounded, the same after a restart, forgotten with the spec, shrunk to what is shared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.api.status import Calibration as Entry
from berth.core.calibration.learn import MOST_PLACES, TOLERANCE, Calibration, made_with, recalled, stored, worth_writing
from berth.core.calibration.residuals import LARGEST, Floats, OperatingPoint, level
from berth.core.calibration.shrink import Level, Place, believe
from berth.core.measurement.samples import StepMoments
from tests.unit.placement.cases import BF16, deployment

HOUR = 3600.0
HERE = Place("h100", "H100-SXM-80", "fp8 tp2 pp1")
levels = st.floats(-1.0, 1.0)


def learned(*hours: float, place: Place = HERE, made_with: str = "x") -> Calibration:
    calibration = Calibration(made_with)
    for number, each in enumerate(hours):
        calibration = calibration.learned(place, each, number * HOUR)
    return calibration


# --- what is remembered -----------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), levels), max_size=30))
def test_it_is_bounded_and_survives_a_restart(hours: list[tuple[str, float]]) -> None:
    calibration = Calibration("x")
    for number, (pool, each) in enumerate(hours):
        calibration = calibration.learned(HERE._replace(pool=pool), each, number * HOUR)
    assert len(calibration.places) <= MOST_PLACES
    entries = stored(calibration, "llama")
    assert len(entries) <= 32
    again = recalled([Entry.model_validate(each).model_dump(by_alias=True) for each in entries], "x")
    now = len(hours) * HOUR
    for place in [each.place for each in calibration.places] or [HERE]:
        before, after = calibration.belief(place, now), again.belief(place, now)
        assert after.mean == pytest.approx(before.mean, abs=0.02)
        assert after.spread == pytest.approx(before.spread, abs=0.02)
    assert not worth_writing(entries, stored(again, "llama"))


def test_a_pool_slower_than_is_ever_believed_is_known_as_such_for_a_month() -> None:
    found = learned(1.3).learned(HERE._replace(pool="fine"), 0.3, 0.0)
    found = found.learned(HERE._replace(pool="later"), 0.1, 0.0).learned(HERE._replace(pool="later"), 1.2, HOUR)
    again = recalled(stored(found, "llama"), "x")
    for calibration in (found, again):
        assert calibration.beyond_belief(2 * HOUR) == {"h100", "later"}
        assert calibration.beyond_belief(31 * 24 * HOUR) == frozenset()
    assert found.learned(HERE._replace(pool="later"), 0.1, 2 * HOUR).beyond_belief(2 * HOUR) == {"h100"}


def test_another_spec_begins_anew() -> None:
    entries = stored(learned(0.3), "llama")
    assert recalled(entries, "y").places == ()
    one, other = deployment().spec, deployment(variants=(BF16,)).spec
    assert len({made_with(one, None), made_with(other, None), made_with(one, "triton:2")}) == 3
    assert made_with(one, None) == made_with(deployment(scaling={"min": 2}).spec, None)


@pytest.mark.parametrize(
    "broken", [{}, {"scope": 3}, {"scope": "a b c", "factor": "x"}, {"factor": "-1"}, {"scope": "a"}]
)
def test_what_cannot_be_read_is_left_out(broken: dict[str, Any]) -> None:
    whole = {
        "scope": "a b c",
        "metric": "stepTime",
        "factor": "1.2",
        "updatedAt": "2026-01-01T00:00:00Z",
        "specHash": "x",
    }
    assert recalled([{**whole, **broken}] if broken else [broken], "x").places == ()
    assert recalled([whole], "x").places[0].settled == pytest.approx(math.log(1.2))


def test_looking_twice_teaches_nothing_new() -> None:
    once = learned(0.1, 0.15)
    assert once.learned(HERE, 0.15, HOUR).belief(HERE, HOUR) == once.belief(HERE, HOUR)


def test_a_small_departure_moves_the_settled_level_slowly_a_large_one_is_a_change() -> None:
    calm = learned(*[0.1] * 48, 0.15).places[0]
    assert 0.1 < calm.settled < 0.105
    assert calm.change == 0
    jumped = learned(*[0.1] * 48, 0.1 + 2 * TOLERANCE).places[0]
    assert (jumped.settled, jumped.change) == pytest.approx((0.1, 2 * TOLERANCE))


def test_a_change_that_is_over_is_forgotten() -> None:
    assert learned(0.1, 0.5, 0.5, 0.1).places[0].change == 0


# --- how far it holds -------------------------------------------------------------------------------------------------
@given(levels)
def test_a_level_counts_fully_where_it_was_measured_and_less_the_less_is_shared(found: float) -> None:
    known = [Level(HERE, found, 0.0)]
    here = believe(known, HERE)
    same_gpu = believe(known, HERE._replace(pool="other"))
    other_gpu = believe(known, Place("a100", "A100-SXM-80", "bf16 tp4 pp1"))
    assert abs(here.mean - found) <= 0.05 * abs(found)
    assert abs(here.mean) >= abs(same_gpu.mean) >= abs(other_gpu.mean)
    assert here.spread < same_gpu.spread < other_gpu.spread < believe([], HERE).spread


def test_what_nobody_measures_for_days_is_doubted() -> None:
    fresh, old = (believe([Level(HERE, 0.2, 0.3, age)], HERE) for age in (0.0, 30.0))
    assert old.mean < fresh.mean
    assert old.spread > fresh.spread


def test_two_pools_that_disagree_leave_the_model_its_mean() -> None:
    known = [Level(HERE, 0.2, 0.0), Level(HERE._replace(pool="q"), -0.2, 0.0)]
    assert believe(known, HERE._replace(pool="third")).mean == pytest.approx(0.0, abs=1e-9)


# --- from steps -------------------------------------------------------------------------------------------------------
def predicted(iterations: Floats) -> Floats:
    return np.asarray(0.01 + iterations @ np.array([1e-4, 1e-8, 2e-5]))


POINT = OperatingPoint.of(8, 1000, 200)


def moments(slope: float, factor: float, count: int = 60) -> StepMoments:
    """Load wavers from 4 to 20 in flight; the engine's own slope over requests is another than predicted."""
    total = StepMoments()
    for number in range(count):
        decodes = 4 + 16 * (number % 10) / 9
        context, prefill = decodes * 1100, decodes * 5
        usual = float(predicted(np.array([decodes, context, prefill])))
        seconds = factor * (usual + slope * (decodes - 8))
        total += StepMoments.of(500, 500 * decodes, 500 * context, 500 * prefill, 500 * seconds)
    return total


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.25])
@pytest.mark.parametrize("slope", [-5e-5, 0.0, 1e-4])
def test_the_level_is_that_at_the_operating_point_whatever_the_slope(factor: float, slope: float) -> None:
    assert level(moments(slope, factor), predicted, POINT) == pytest.approx(math.log(factor), abs=0.03)


def test_too_few_steps_say_nothing_and_absurd_ones_no_more_than_a_bound() -> None:
    assert level(StepMoments(), predicted, POINT) is None
    assert level(StepMoments.of(100, 400, 1e5, 1e3, 1.0), predicted, POINT) is None
    assert level(moments(0.0, 1e6), predicted, POINT) == LARGEST
