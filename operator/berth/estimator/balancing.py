"""Several groups behind one Service: what they carry together is not the sum of what each can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_EXACT_CHANNELS = 512


def usable_capacity(capacities: Sequence[float], shares: Sequence[float] | None = None) -> float:
    """Largest total load at which no group gets more than its capacity: the smallest capacity / share.

    Without `shares` every group gets the same, as a Service gives them; shares are made to add up to 1. No groups
    carry nothing; a group without share limits nothing.
    """
    weights = [1.0] * len(capacities) if shares is None else list(shares)
    if len(weights) != len(capacities) or any(not weight >= 0 for weight in weights):
        raise ValueError(f"shares: {weights!r} must be one number of at least 0 for each of {len(capacities)} groups")
    total = math.fsum(weights)
    return min((c * total / w for c, w in zip(capacities, weights, strict=True) if w > 0), default=0.0)


@lru_cache(maxsize=4096)
def imbalance(groups: int, channels: int | None) -> float:
    """Load of the busiest of `groups` against the mean when `channels` equal long-lived connections pick by chance.

    A Service balances connections, not requests: the mean of the largest of `groups` multinomial counts over
    channels / groups. Exact up to 512 channels, above them by the normal approximation (Blom's scores). `None` is a
    client or proxy that balances requests: 1.
    """
    if groups < 1 or (channels is not None and channels < 1):
        raise ValueError(f"groups {groups} and channels {channels} must be at least 1")
    if channels is None or groups == 1:
        return 1.0
    mean = channels / groups
    if channels > _EXACT_CHANNELS:
        score = NormalDist().inv_cdf((groups - 0.375) / (groups + 0.25))
        return max(1 + score * math.sqrt((1 - 1 / groups) / mean), math.ceil(mean) / mean)
    # P(largest <= m) is the chance that `groups` Poisson counts, each at most m, add up to `channels`, given that
    # unlimited ones do; the mean of the largest adds up the chances that it exceeds m.
    counts = np.arange(channels + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    poisson = np.exp(counts * math.log(mean) - mean - log_factorial)
    total = math.exp(channels * math.log(channels) - channels - float(log_factorial[-1]))
    largest = 0.0
    for most in range(channels):
        within = 0.0 if most < mean else _power(np.where(counts <= most, poisson, 0.0), groups)[channels] / total
        if within > 1 - 1e-9:
            break
        largest += 1 - within
    return largest / mean


def _power(series: np.ndarray, exponent: int) -> np.ndarray:
    """`series` to a power, as a polynomial cut off at its own length."""
    result = np.zeros_like(series)
    result[0] = 1.0
    while exponent:
        if exponent & 1:
            result = np.convolve(result, series)[: len(series)]
        series = np.convolve(series, series)[: len(series)]
        exponent >>= 1
    return result
