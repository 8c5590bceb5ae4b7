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
    return TrafficProfile(
        input_tokens=_lengths(prompt, int(prompt.max()), "inputTokens"),
        output_tokens=_lengths(output, max_requested or 2 ** math.ceil(math.log2(longest)), "outputTokens"),
        requests_per_second=len(seconds) / float(seconds[-1] - seconds[0]),
        **_busy_minutes(seconds - seconds[0], prompt, output),
    )


def _lengths(tokens: Ints, largest: int, field: str) -> TokenLengths:
    mean = float(tokens.mean())
    p95, p99 = (max(float(np.percentile(tokens, share)), mean) for share in (95, 99))
    return TokenLengths(mean, p95, largest, p99, field)


def _busy_minutes(seconds: Floats, prompt: Ints, output: Ints) -> dict[str, float]:
    """95th percentile of the minute rate against its mean without the part that Poisson arrivals alone would show, and
    mean lengths in minutes at or above it against the mean; nothing if the record has too few whole minutes."""
    whole = int(seconds[-1] // 60)
    if whole < _FEWEST_MINUTES:
        return {}
    minute = (seconds // 60).astype(np.int64)
    counts = np.bincount(minute, minlength=whole)[:whole]
    mean, variance = float(counts.mean()), float(counts.var())
    real = math.sqrt(max(1 - mean / variance, 0.0)) if variance > 0 else 0.0
    peak = float(np.percentile(counts, 95))
    busy = (minute < whole) & (counts[np.minimum(minute, whole - 1)] >= peak)
    return {
        "peak_to_mean": 1 + max(peak / mean - 1, 0.0) * real,
        "peak_input_to_mean": _bounded(float(prompt[busy].mean() / prompt.mean())),
        "peak_output_to_mean": _bounded(float(output[busy].mean() / output.mean())),
    }


def _bounded(ratio: float) -> float:
    return min(max(ratio, 0.1), 10.0)
