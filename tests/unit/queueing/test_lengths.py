import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.estimator.traffic import TokenLengths, TrafficProfile, lengths_at, minutes

SHARES = (np.arange(10_000) + 0.5) / 10_000


@st.composite
def lengths(draw: st.DrawFn) -> TokenLengths:
    p95 = draw(st.floats(2, 1e5))
    mean = min(1 + (p95 - 1) * draw(st.floats(0.1, 1)), p95)
    return TokenLengths(mean, p95, p95 * draw(st.floats(1, 20)))


@settings(max_examples=40)
@given(lengths())
def test_quantiles_keep_the_given_mean_p95_and_maximum(given_lengths: TokenLengths) -> None:
    drawn = given_lengths.quantile(SHARES)

    assert np.all(np.diff(drawn) >= 0)
    assert drawn.min() >= 1
    assert drawn.max() <= given_lengths.max
    assert drawn.mean() == pytest.approx(given_lengths.mean, rel=0.02)
    assert given_lengths.quantile(np.array([0.95]))[0] == pytest.approx(given_lengths.p95, rel=0.01)


@settings(max_examples=40)
@given(lengths(), st.floats(0, 1))
def test_a_given_p99_is_kept(given_lengths: TokenLengths, place: float) -> None:
    p99 = given_lengths.p95 + place * min(given_lengths.max - given_lengths.p95, 2 * (given_lengths.mean - 1))
    drawn = TokenLengths(given_lengths.mean, given_lengths.p95, max(given_lengths.max, p99), p99)

    assert drawn.quantile(np.array([0.95, 0.99])) == pytest.approx([drawn.p95, drawn.p99], rel=0.01)
    assert drawn.quantile(SHARES).mean() == pytest.approx(drawn.mean, rel=0.02)


def test_constant_lengths_stay_constant() -> None:
    drawn = TokenLengths(128, 128, 128).quantile(SHARES)

    assert drawn.min() > 125
    assert drawn.max() == 128


def test_requests_of_one_token_are_all_of_one_token() -> None:
    assert np.all(TokenLengths(1, 1, 1).quantile(SHARES) == 1)


@pytest.mark.parametrize("bad", [math.nan, -1, 0, math.inf, 1e12])
@pytest.mark.parametrize("field", ["mean", "p95", "max"])
def test_a_length_that_is_no_length_is_refused_by_name(field: str, bad: float) -> None:
    values = {"mean": 10.0, "p95": 20.0, "max": 30.0, field: bad}
    with pytest.raises(ValueError, match=rf"inputTokens\.{field}: .* must be a number from 1 to 1e\+08"):
        TokenLengths(**values, field="inputTokens")


def test_lengths_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="mean 30 must not be above p95 20"):
        TokenLengths(30, 20, 40)


def test_a_p95_that_contradicts_the_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p95 5000.*alone give more than the mean 100: lower p95 or raise mean"):
        TokenLengths(100, 5000, 6000)


PROMPTS, ANSWERS = TokenLengths(1155, 4083, 14050), TokenLengths(211, 451, 1024)


def profile(**changes: float) -> TrafficProfile:
    return TrafficProfile(PROMPTS, ANSWERS, **({"requests_per_second": 5.4} | changes))  # type: ignore[arg-type]


@given(st.floats(1, 100))
def test_minute_levels_have_the_given_peak_and_a_mean_of_one(peak: float) -> None:
    levels = minutes(profile(peak_to_mean=peak))

    assert levels.rate.mean() == pytest.approx(1)
    assert np.all(np.diff(levels.rate) >= -1e-12)
    assert levels.rate[-1] <= 20
    if peak < 3:  # 5 % of minutes exceed the peak: it lies between the two busiest of twenty levels
        assert levels.rate[-2] * 0.999 <= peak <= levels.rate[-1] * 1.001


def test_lengths_reach_those_of_busy_minutes_between_the_two_busiest_levels() -> None:
    levels = minutes(profile(peak_input_to_mean=1.24, peak_output_to_mean=0.64))
    nodes = (np.arange(500) + 0.5) / 500
    prompt = lengths_at(PROMPTS, levels.input_correlation, levels.score[-2:], nodes).mean(axis=1) / PROMPTS.mean
    answer = lengths_at(ANSWERS, levels.output_correlation, levels.score[-2:], nodes).mean(axis=1) / ANSWERS.mean

    assert prompt[0] < 1.24 < prompt[1]
    assert answer[0] > 0.64 > answer[1]


def test_unknown_peak_lengths_are_not_flattering() -> None:
    levels = minutes(profile())

    assert levels.input_correlation > 0
    assert levels.output_correlation == 0


def test_the_shape_of_a_profile_does_not_depend_on_how_much_traffic_there_is() -> None:
    assert profile(requests_per_second=1.0).shape == profile(requests_per_second=100.0).shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests_per_second": math.nan}, "requestsPerSecond: nan must be a number from 0 to 1e\\+06"),
        ({"requests_per_second": -1}, "requestsPerSecond: -1 must be"),
        ({"peak_to_mean": 0.9}, "peakToMean: 0.9 must be a number from 1 to 100"),
        ({"peak_to_mean": math.nan}, "peakToMean: nan"),
        ({"peak_input_to_mean": 0.01}, "peakInputToMean: 0.01 must be a number from 0.1 to 10"),
        ({"cached_input_fraction": 1.0}, "cachedInputFraction: 1.0 must be a number from 0 to 0.99"),
        ({"concurrency": 4}, "give requestsPerSecond .* or concurrency"),
    ],
)
def test_absurd_traffic_is_refused_by_name(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile(**changes)
