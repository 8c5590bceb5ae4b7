"""Windows over groups add up, forget in time, and say how much evidence they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.measurement.histogram import Attained, Histogram
from berth.core.measurement.measured import GroupMeasured, Measured
from berth.core.measurement.samples import Tally
from berth.core.measurement.windows import (
    BATCH_SECONDS,
    FAST_BATCHES,
    PRIOR_DESIGN_EFFECT,
    SLOW_BATCHES,
    Batch,
    Windows,
    batch_index,
    design_effect,
    effective_requests,
    first_token_met,
    windows,
)

NOW = 1_000_000_020.0
LAST = batch_index(NOW)


def batch(
    index: int, requests: int = 10, met: int | None = None, seconds: float = 60.0, running: float = 12.0
) -> Batch:
    met = requests if met is None else met
    tally = Tally(
        group_seconds=seconds,
        readings=6,
        requests=requests,
        running_sum=running,
        first_token_met=Attained(requests, met, met),
    )
    return Batch(index, seconds, tally)


def test_the_fast_window_has_five_whole_minutes_and_the_slow_one_an_hour() -> None:
    found = windows([batch(LAST - age) for age in range(200)], NOW)
    assert len(found.fast.batches) == FAST_BATCHES + 1
    assert len(found.slow.batches) == SLOW_BATCHES + 1
    assert found.fast.tally.requests == 10 * (FAST_BATCHES + 1)
    assert found.slow.tally.requests == 10 * (SLOW_BATCHES + 1)


def test_batches_of_the_future_count_for_nothing() -> None:
    assert windows([batch(LAST + 1)], NOW) == Windows()


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 50)), max_size=60))
def test_groups_add_up_to_their_deployment(entries: list[tuple[int, int]]) -> None:
    found = windows([batch(LAST - age, requests) for age, requests in entries], NOW)
    assert found.slow.tally.requests == sum(requests for age, requests in entries if age <= SLOW_BATCHES)
    assert found.fast.tally.requests == sum(requests for age, requests in entries if age <= FAST_BATCHES)


def test_rates_of_two_groups_are_over_the_time_and_not_over_twice_the_time() -> None:
    found = windows([batch(LAST - age) for age in (1, 2) for _ in range(2)], NOW).fast
    assert found.requests_per_second == pytest.approx(40 / 120)
    assert found.groups == pytest.approx(2)
    assert found.in_flight == pytest.approx(2 * 12 / 6)


def test_queue_kv_tokens_and_lengths_of_two_groups_are_those_of_both() -> None:
    def one(kv: float, prompt: float) -> Batch:
        tally = Tally(
            group_seconds=60.0,
            readings=6,
            tokens=1200,
            running_sum=24,
            waiting_sum=6,
            kv_use_sum=6 * kv,
            queue=Histogram((0.1, 1.0), (8, 1, 1), 3.0),
            input=Histogram((1000.0,), (10, 0), 10 * prompt),
        )
        return Batch(LAST - 1, 60.0, tally)

    found = windows([one(0.2, 400), one(0.6, 800)], NOW).fast
    assert found.output_tokens_per_second == pytest.approx(2 * 1200 / 60)
    assert (found.in_flight, found.waiting, found.kv_use) == pytest.approx((10, 2, 0.4))
    assert found.tally.queue is not None
    assert (found.tally.queue.count, found.tally.queue.mean) == (20, pytest.approx(0.3))
    assert found.tally.input is not None
    assert found.tally.input.mean == pytest.approx(600)


def test_a_window_that_saw_nothing_knows_nothing() -> None:
    empty = windows([], NOW).fast
    assert (empty.requests_per_second, empty.in_flight, empty.kv_use, empty.first_token_share) == (None,) * 4


def test_independent_requests_are_worth_what_they_are() -> None:
    random = np.random.default_rng(3)
    batches = [batch(LAST - age, 300, int(random.binomial(300, 0.93))) for age in range(SLOW_BATCHES)]
    assert 1.0 <= design_effect(batches, first_token_met) < 2.0


def test_minutes_of_trouble_are_worth_less_than_as_many_scattered_misses() -> None:
    batches = [batch(LAST - age, 300, 100 if age // 4 % 5 == 0 else 298) for age in range(SLOW_BATCHES)]
    assert design_effect(batches, first_token_met) > 100  # four bad minutes in a row are about one observation
    whole = windows(batches, NOW)
    assert effective_requests(whole.fast, whole.slow, first_token_met) < whole.fast.tally.requests / 100


def test_with_few_minutes_the_correlation_is_assumed() -> None:
    assert design_effect([batch(LAST), batch(LAST - 1)], first_token_met) == PRIOR_DESIGN_EFFECT


def test_the_true_share_lies_within_the_error_that_effective_requests_tell() -> None:
    """Coverage on minutes whose trouble lasts for several: two standard errors hold in about nine of ten hours."""
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        level, batches = 0.0, []
        for age in range(SLOW_BATCHES):
            level = 0.5 * level + random.normal() * 0.7
            missing = 1 / (1 + np.exp(3 - level))
            batches.append(batch(LAST - age, 300, 300 - int(random.binomial(300, missing))))
        window = windows(batches, NOW).slow
        share = 1 - (window.first_token_share or 0.0)
        worth = effective_requests(window, window, first_token_met)
        covered += abs(share - _LONG_RUN) <= 2 * np.sqrt(share * (1 - share) / worth)
    assert covered >= 170


def _long_run() -> float:
    level = np.random.default_rng(11).normal(scale=0.7 / np.sqrt(1 - 0.25), size=400_000)
    return float(np.mean(1 / (1 + np.exp(3 - level))))


_LONG_RUN = _long_run()


def group(name: str, *, read_at: float | None, serving: bool = True) -> GroupMeasured:
    return GroupMeasured(name, "h100", "r1", Windows(), read_at, serving, running=2, waiting=1)


def test_measurements_are_fresh_while_every_serving_group_was_heard_of() -> None:
    assert not Measured(NOW).fresh, "nothing serves"
    fresh = Measured(NOW, (group("a", read_at=NOW - 5), group("gone", read_at=None, serving=False)))
    assert fresh.fresh
    assert fresh.in_flight == 3
    stale = Measured(NOW, (group("a", read_at=NOW - 5), group("b", read_at=NOW - 3600)))
    assert [each.name for each in stale.missing] == ["b"]
    assert (stale.fresh, stale.in_flight) == (False, None)
    assert not Measured(NOW, (group("a", read_at=None),)).fresh


def test_a_minute_is_a_minute() -> None:
    assert batch_index(120.0) == 2
    assert batch_index(120.0 + BATCH_SECONDS - 0.001) == 2
