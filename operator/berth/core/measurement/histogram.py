"""Histograms as leaders export them, and the exact count of requests within an objective."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import add, sub
from typing import Final

_SAME: Final = 1e-6
"""Edges closer than this, relatively, are one: exporters print six digits."""


@dataclass(frozen=True, slots=True)
class Attained:
    """How many of `requests` met an objective: between `low` and `high` of them, equal where the count is exact.

    The bounds differ where the objective is no edge of the histogram it was counted with. Adds up over groups with
    different objectives.
    """

    requests: int = 0
    low: int = 0
    high: int = 0

    @property
    def exact(self) -> bool:
        return self.low == self.high

    @property
    def share(self) -> float | None:
        """Share of requests that met it, 0..1 (the middle where it is not exact); None without requests."""
        return (self.low + self.high) / (2 * self.requests) if self.requests else None

    @property
    def missed(self) -> float:
        """Requests that did not meet it (the middle where it is not exact)."""
        return self.requests - (self.low + self.high) / 2

    def __add__(self, other: Attained) -> Attained:
        return Attained(self.requests + other.requests, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket, not cumulative. Bucket i holds values above edges[i - 1] up to and with edges[i]."""

    edges: tuple[float, ...]
    """Upper edges, rising, in the unit of what is counted (seconds or tokens); without the infinite one."""
    counts: tuple[int, ...]
    """One more than edges: the last counts what is above all of them."""
    total: float
    """Sum of all values."""

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """None while empty."""
        count = self.count
        return self.total / count if count else None

    def quantile(self, share: float) -> float | None:
        """Value that `share` (0..1) of all do not exceed, linear inside a bucket; infinite above the last edge."""
        count = self.count
        if not count:
            return None
        rank = share * count
        below = list(accumulate(self.counts))
        bucket = next(index for index, reached in enumerate(below) if reached >= rank and self.counts[index])
        if bucket == len(self.edges):
            return math.inf
        low = self.edges[bucket - 1] if bucket else 0.0
        within = (rank - below[bucket] + self.counts[bucket]) / self.counts[bucket]
        return low + (self.edges[bucket] - low) * within

    def within(self, objective: float) -> Attained:
        """How many values do not exceed `objective`; exact if it is an edge."""
        edges, below = self.edges, [0, *accumulate(self.counts)]
        above = bisect_left(edges, objective * (1 - _SAME))
        if above < len(edges) and edges[above] <= objective * (1 + _SAME):
            return Attained(below[-1], below[above + 1], below[above + 1])
        return Attained(below[-1], below[above], below[min(above + 1, len(edges) + 1)])

    def since(self, earlier: Histogram) -> Histogram | None:
        """What was added after `earlier`; None if that cannot be told: it was reset, or has other edges."""
        if self.edges != earlier.edges:
            return None
        counts = tuple(map(sub, self.counts, earlier.counts))
        total = self.total - earlier.total
        return None if min(counts) < 0 or total < 0 else Histogram(self.edges, counts, total)

    def __add__(self, other: Histogram) -> Histogram:
        """Both together, on the edges that both have."""
        if self.edges == other.edges:
            return Histogram(self.edges, tuple(map(add, self.counts, other.counts)), self.total + other.total)
        common = tuple(sorted(set(self.edges) & set(other.edges)))
        return self._on(common) + other._on(common)

    def _on(self, edges: tuple[float, ...]) -> Histogram:
        """The same values on fewer edges."""
        counts = [0] * (len(edges) + 1)
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            counts[bisect_left(edges, edge)] += count
        return Histogram(edges, tuple(counts), self.total)


def merged(histograms: Iterable[Histogram | None]) -> Histogram | None:
    """All of them together; None if there is none."""
    out: Histogram | None = None
    for each in histograms:
        if each is not None:
            out = each if out is None else out + each
    return out
