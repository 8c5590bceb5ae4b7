"""Requests drawn from a traffic profile, for simulation.

One cycle walks once through all minute levels: from quiet to busy and back, as a day or an hour does. The same seed
draws the same requests at every rate: only the clock runs faster, so two rates or two engines differ by what is
compared and not by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berth.estimator.engine_model import Floats
from berth.estimator.traffic import LEVELS, TokenLengths, TrafficProfile, minutes

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival: seconds, prompt tokens, of these already cached, answer tokens, KV to reserve."""

    arrival: Floats
    prompt: Ints
    cached: Ints
    output: Ints
    reserved: Ints
    """Prompt and largest requested answer, in tokens."""


def open_requests(profile: TrafficProfile, rate: float, count: int, seed: int) -> Requests:
    """About `count` requests at a mean of `rate` per second, over one cycle of equally long levels.

    Within a level arrivals are Poisson. Lengths are ranks, so that all requests together have the profile's
    distribution exactly.
    """
    rng = np.random.default_rng(seed)
    levels = minutes(profile)
    climb = np.arange(0, LEVELS, 2)
    path = np.concatenate([climb, climb[::-1] + 1])
    ends = np.concatenate([[0.0], np.cumsum(levels.rate[path])]) * count / LEVELS  # expected arrivals so far
    due = np.cumsum(rng.exponential(size=count))
    due = due[due < count]
    level = path[np.searchsorted(ends[1:-1], due, side="right")]
    arrival = np.interp(due, ends, np.arange(LEVELS + 1) * (count / rate / LEVELS))
    return _requests(profile, arrival, levels.score[level], rng)


def closed_requests(profile: TrafficProfile, clients: int, count: int, seed: int) -> Requests:
    """`count` requests of which `clients` arrive at once and every other one when an earlier one has finished."""
    arrival = np.where(np.arange(count) < clients, 0.0, math.inf)
    return _requests(profile, arrival, np.zeros(count), np.random.default_rng(seed))


def _requests(profile: TrafficProfile, arrival: Floats, score: Floats, rng: np.random.Generator) -> Requests:
    levels = minutes(profile)
    prompt = _lengths(profile.input_tokens, levels.input_correlation, score, rng)
    output = _lengths(profile.output_tokens, levels.output_correlation, score, rng)
    return Requests(
        arrival=arrival,
        prompt=prompt,
        cached=np.minimum((prompt * profile.cached_input_fraction).astype(np.int64), prompt - 1),
        output=output,
        reserved=prompt + math.ceil(profile.output_tokens.max),
    )


def _lengths(lengths: TokenLengths, correlation: float, score: Floats, rng: np.random.Generator) -> Ints:
    key = correlation * score + math.sqrt(1 - correlation**2) * rng.standard_normal(score.size)
    rank = np.empty(score.size)
    rank[np.argsort(key, kind="stable")] = np.arange(score.size)
    drawn: Ints = np.maximum(np.rint(lengths.quantile((rank + 0.5) / score.size)), 1).astype(np.int64)
    return drawn
