"""A traffic profile from a record of requests."""

from __future__ import annotations

import math

import numpy as np

from berth.estimator.arrivals import Ints
from berth.estimator.engine_model import Floats
from berth.estimator.traffic import TokenLengths, TrafficProfile

_FEWEST_MINUTES = 10
"""Busy minutes are not measured in a shorter record."""


def profile_of(seconds: Floats, prompt: Ints, output: Ints, max_requested: int | None = None) -> TrafficProfile:
    """Of requests at `seconds` (ascending) with `prompt` and `output` tokens.

    `max_requested` is what clients ask for at most, which a record of answers does not tell: by default the next power
    of two. Raises `ValueError` for fewer than two requests or no time between them.
    """
    if len(seconds) < 2 or not seconds[-1] > seconds[0]:
        raise ValueError("trace: at least two requests at different times are needed to measure a rate")
    longest = int(output.max())
    if max_requested is not None and max_requested < longest:
        raise ValueError(f"max-requested: {max_requested} is less than the longest answer of the trace, {longest}")
    peak, peak_input, peak_output = _busy_minutes(seconds - seconds[0], prompt, output)
    return TrafficProfile(
        input_tokens=_lengths(prompt, int(prompt.max()), "inputTokens"),
        output_tokens=_lengths(output, max_requested or 2 ** math.ceil(math.log2(longest)), "outputTokens"),
        requests_per_second=len(seconds) / float(seconds[-1] - seconds[0]),
        peak_to_mean=peak,
        peak_input_to_mean=peak_input,
        peak_output_to_mean=peak_output,
    )


def _lengths(tokens: Ints, largest: int, field: str) -> TokenLengths:
    mean = float(tokens.mean())
    p95, p99 = (max(float(np.percentile(tokens, share)), mean) for share in (95, 99))
    return TokenLengths(mean, p95, largest, p99, field)


def _busy_minutes(seconds: Floats, prompt: Ints, output: Ints) -> tuple[float, float | None, float | None]:
    """Peaks to mean of rate, prompt and answer; those of a profile that gives none if whole minutes are too few.

    The rate's is the 95th percentile of minutes, less the part that Poisson arrivals alone would show; lengths are
    those of the minutes at or above it.
    """
    whole = int(seconds[-1] // 60)
    if whole < _FEWEST_MINUTES:
        return TrafficProfile.peak_to_mean, None, None
    minute = (seconds // 60).astype(np.int64)
    counts = np.bincount(minute, minlength=whole)[:whole]
    mean, variance = float(counts.mean()), float(counts.var())
    real = math.sqrt(max(1 - mean / variance, 0.0)) if variance > 0 else 0.0
    peak = float(np.percentile(counts, 95))
    busy = (minute < whole) & (counts[np.minimum(minute, whole - 1)] >= peak)
    return (
        min(1 + max(peak / mean - 1, 0.0) * real, 100.0),
        _bounded(float(prompt[busy].mean() / prompt.mean())),
        _bounded(float(output[busy].mean() / output.mean())),
    )


def _bounded(ratio: float) -> float:
    return min(max(ratio, 0.1), 10.0)
