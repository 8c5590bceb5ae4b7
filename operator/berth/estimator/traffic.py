"""What a deployment's clients send: how often, how long, how unevenly over minutes and hours.

A `TrafficProfile` holds the few figures a person can give (`spec.traffic`); everything else is derived here and in
`arrivals.py`, the same way for every copy, so that capacity per group depends on the profile's shape alone.

Two shapes are derived:

- **Lengths.** On 1..p95 the exponentially tilted (maximum entropy) distribution that gives the right mean; past p95
  and past p99 exponential tails, cut at the maximum. Without a p99 the mean excess over p95 is taken as a twentieth of
  max - p95. That suits services whose context limit cuts prompts off (a fiftieth in the Azure conversation trace) and
  flatters long tails (an eighth to a third where log-normal lengths are cut at the maximum): give p99 for those.
- **Minutes.** The rate of arrivals is Poisson only within minutes. Minute levels are log-normal in 20 equally likely
  steps, scaled so that 5 % of minutes exceed `peak_to_mean`; lengths follow the level through a Gaussian copula whose
  correlation gives busy minutes the mean lengths `peak_input_to_mean` and `peak_output_to_mean`, while the
  distribution of lengths over all requests stays the given one. For the Azure conversation trace this means: variance
  of the minute rate 0.045 (a count's index of dispersion of 16 per minute), prompts 1.24 and answers 0.64 times as
  long as the mean in the busiest minutes.

Trace: Azure Public Dataset, AzureLLMInferenceTrace_conv, CC-BY; Patel et al., "Splitwise", ISCA 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import numpy as np

from berth.estimator.engine_model import Floats

LEVELS: Final = 20
"""Equally likely minute levels."""

PEAK_SCORE: Final = NormalDist().inv_cdf(0.95)
"""Normal score of a minute that is busier than 95 % of minutes."""

_TAIL_DIVISOR = 20.0
_LOG_5 = math.log(5)  # from p95 to p99 on an exponential tail
_INPUT_ELASTICITY = 0.64  # ln 1.24 / ln 1.40 of the Azure conversation trace
_LONGEST = 100_000_000.0
_MOST_REQUESTS = 1_000_000.0
_LARGEST_LEVEL = 0.95 * LEVELS  # one level is a twentieth of the time and cannot hold more than all requests
_STEEPEST = 700.0  # exp() of more overflows


@dataclass(frozen=True)
class TokenLengths:
    """Distribution of prompt or answer lengths in tokens; `field` names it in messages (`inputTokens`).

    Without `p99` the tail past p95 is assumed to be short: see above.
    """

    mean: float
    p95: float
    max: float
    p99: float | None = None
    field: str = "tokens"

    def __post_init__(self) -> None:
        names = ("mean", "p95", "max") if self.p99 is None else ("mean", "p95", "p99", "max")
        for name in names:
            _check(f"{self.field}.{name}", getattr(self, name), 1, _LONGEST)
        for lower, upper in pairwise(names):
            if getattr(self, lower) > getattr(self, upper):
                raise ValueError(
                    f"{self.field}: {lower} {getattr(self, lower):g} must not be above {upper} "
                    f"{getattr(self, upper):g}: correct them"
                )
        if self._body_mean < 1:
            raise ValueError(
                f"{self.field}: the longest 5 % of requests (p95 {self.p95:g}) alone give more than the mean "
                f"{self.mean:g}: lower p95 or raise mean"
            )

    @property
    def _excess(self) -> tuple[float, float]:
        """Exponential scales of the excess over p95 and, from p99 on, of that over p99."""
        if self.p99 is None:
            room = 20 * self.mean - 19 - self.p95  # would leave one token each for the other 95 %
            scale = min((self.max - self.p95) / _TAIL_DIVISOR, max(room, 0.0) / 2)
            return scale, scale
        scale = (self.p99 - self.p95) / _LOG_5
        return scale, max(scale, (self.max - self.p99) / _TAIL_DIVISOR)

    @property
    def _body_mean(self) -> float:
        """Mean of the 95 % up to p95."""
        near, far = self._excess
        p99 = self.p95 + near * _LOG_5
        beyond = far * -math.expm1((p99 - self.max) / far) if far > 0 else 0.0
        tail = 0.04 * (self.p95 + near * (1 - _LOG_5 / 4)) + 0.01 * (p99 + beyond)
        return min((self.mean - tail) / 0.95, self.p95)

    def quantile(self, share: Floats) -> Floats:
        """Length that `share` (inside 0..1) of requests do not exceed; broadcasts, never below 1 or above max."""
        tilt = _tilt((self._body_mean - 1) / (self.p95 - 1)) if self.p95 > 1 else 0.0
        within = np.clip(share / 0.95, 1e-12, 1 - 1e-12)
        risen = within if tilt == 0 else np.logaddexp(np.log1p(-within), np.log(within) + tilt) / tilt
        risen = np.where(share < 0.95, risen, 1.0)
        near, far = self._excess
        depth = np.maximum(-np.log(np.maximum(1 - share, 1e-12) / 0.05), 0.0)
        beyond = near * np.minimum(depth, _LOG_5) + far * np.maximum(depth - _LOG_5, 0.0)
        return np.minimum(1 + (self.p95 - 1) * risen + beyond, self.max)


@dataclass(frozen=True)
class TrafficProfile:
    """`spec.traffic` in numbers: open traffic has `requests_per_second`, closed traffic has `concurrency`.

    `output_tokens.max` is the largest answer that clients *request*; the engine reserves KV cache for it. `peak_*` are
    the busiest 5 % of minutes against the mean: requests per minute, mean prompt and mean answer in those minutes.
    A peak length that is not given is assumed so as not to flatter: prompts grow with the rate as in the Azure
    conversation trace, answers do not shrink (in that trace they do).
    """

    input_tokens: TokenLengths
    output_tokens: TokenLengths
    requests_per_second: float | None = None
    concurrency: int | None = None
    peak_to_mean: float = 1.4
    peak_input_to_mean: float | None = None
    peak_output_to_mean: float | None = None
    cached_input_fraction: float = 0.0

    def __post_init__(self) -> None:
        if (self.requests_per_second is None) == (self.concurrency is None):
            raise ValueError("traffic: give requestsPerSecond (arrival Open) or concurrency (arrival Closed), not both")
        if self.requests_per_second is not None:
            _check("requestsPerSecond", self.requests_per_second, 0, _MOST_REQUESTS)
        if self.concurrency is not None:
            _check("concurrency", self.concurrency, 1, _MOST_REQUESTS)
        _check("peakToMean", self.peak_to_mean, 1, 100)
        _check("cachedInputFraction", self.cached_input_fraction, 0, 0.99)
        for name, value in (
            ("peakInputToMean", self.peak_input_to_mean),
            ("peakOutputToMean", self.peak_output_to_mean),
        ):
            if value is not None:
                _check(name, value, 0.1, 10)

    @property
    def closed(self) -> bool:
        """Each of `concurrency` clients awaits its answer before it asks again."""
        return self.concurrency is not None

    @property
    def load(self) -> float:
        """All of the traffic: requests per second if open, clients if closed."""
        return float(self.requests_per_second if self.concurrency is None else self.concurrency)  # type: ignore[arg-type]

    @cached_property
    def shape(self) -> TrafficProfile:
        """The profile at one unit of load: what the capacity of one group depends on."""
        return replace(self, concurrency=1) if self.closed else replace(self, requests_per_second=1.0)


@dataclass(frozen=True)
class Minutes:
    """Minute levels of a profile: arrays of `LEVELS` in ascending order of rate, each an equal share of the time."""

    rate: Floats
    """Arrivals against the mean; their mean is 1."""
    score: Floats
    """Normal score, centred on the mean score of *requests*."""
    input_correlation: float
    """Of the score with the normal score of a request's prompt length."""
    output_correlation: float


@lru_cache(maxsize=256)
def minutes(profile: TrafficProfile) -> Minutes:
    """Minute levels of `profile`; closed traffic has no busy minutes."""
    scores = normal_quantile((np.arange(LEVELS) + 0.5) / LEVELS)
    peak = 1.0 if profile.closed else profile.peak_to_mean
    top = min(peak ** (scores[-1] / PEAK_SCORE), _LARGEST_LEVEL)
    spread = _solve(lambda s: float(np.exp(s * scores[-1]) / np.exp(s * scores).mean()), top, 0.0, 30.0)
    rate = np.exp(spread * scores)
    rate /= rate.mean()
    centre = float((rate * scores).mean())
    inputs, outputs = profile.peak_input_to_mean, profile.peak_output_to_mean
    return Minutes(
        rate=rate,
        score=scores - centre,
        input_correlation=_correlation(
            profile.input_tokens, peak**_INPUT_ELASTICITY if inputs is None else inputs, PEAK_SCORE - centre
        ),
        output_correlation=_correlation(
            profile.output_tokens, 1.0 if outputs is None else outputs, PEAK_SCORE - centre
        ),
    )


def lengths_at(lengths: TokenLengths, correlation: float, score: Floats, share: Floats) -> Floats:
    """Prompt or answer lengths that `share` (J,) of requests do not exceed at minute levels `score` (L,), as (L, J)."""
    key = correlation * score[:, None] + math.sqrt(1 - correlation**2) * normal_quantile(share)
    return lengths.quantile(normal_share(key))


_GRID = np.linspace(-6, 6, 2401)
_GRID_SHARE = np.array([NormalDist().cdf(x) for x in _GRID])


def normal_share(score: Floats) -> Floats:
    """Standard normal distribution function, to 1e-6."""
    return np.asarray(np.interp(score, _GRID, _GRID_SHARE))


def normal_quantile(share: Floats) -> Floats:
    """Inverse of `normal_share`."""
    return np.asarray(np.interp(share, _GRID_SHARE, _GRID))


def _correlation(lengths: TokenLengths, ratio: float, peak_score: float) -> float:
    """Correlation at which requests at `peak_score` have `ratio` times the mean length, or the closest there is."""
    if ratio == 1 or lengths.p95 == 1:
        return 0.0
    score = np.array([peak_score])
    share = (np.arange(200) + 0.5) / 200
    mean = float(lengths.quantile(share).mean())
    return _solve(lambda c: float(lengths_at(lengths, c, score, share).mean()) / mean, ratio, -0.95, 0.95)


@lru_cache(maxsize=1024)
def _tilt(mean: float) -> float:
    """Exponent of the density exp(tilt x) on 0..1 whose mean is `mean`."""

    def mean_of(tilt: float) -> float:
        return 0.5 if abs(tilt) < 1e-6 else 1 / -math.expm1(-tilt) - 1 / tilt

    tilt = _solve(mean_of, mean, -_STEEPEST, _STEEPEST)
    return 0.0 if abs(tilt) < 1e-6 else tilt


def _solve(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where the rising `function` reaches `target`, by bisection; an end of low..high if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _check(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{field}: {value!r} must be a number from {low:g} to {high:g}")
