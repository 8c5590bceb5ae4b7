from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.kube.limits import TokenBucket


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.5, 100),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_no_window_holds_more_than_burst_plus_rate_times_its_length(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    moments = []
    for pause in pauses:
        clock.now += pause
        moments.append(clock.now + bucket.reserve())
    assert moments == sorted(moments)
    for first, start in enumerate(moments):
        for last in range(first, len(moments)):
            assert last - first + 1 <= burst + rate * (moments[last] - start) + 1e-6


def test_a_burst_is_free_and_then_the_rate_rules() -> None:
    bucket = TokenBucket(10, 3, Clock())
    assert [round(bucket.reserve(), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]


def test_a_hold_delays_everybody_after_it_and_spaces_them_out() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 100, clock)
    bucket.hold(5)
    assert [round(bucket.reserve(), 3) for _ in range(3)] == [5.1, 5.2, 5.3]
    clock.now = 60
    assert bucket.reserve() == 0


def test_trying_takes_nothing_when_there_is_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(1, 1, clock)
    assert [bucket.try_take() for _ in range(3)] == [True, False, False]
    clock.now = 1.0
    assert bucket.try_take()


def test_waiting_keys_do_not_gain_credit_beyond_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(10, 2, clock)
    clock.now = 1000
    assert [bucket.reserve() for _ in range(3)] == pytest.approx([0, 0, 0.1])
