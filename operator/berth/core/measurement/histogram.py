"""Histograms as leaders export them, and the exact count of requests within an objective."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub
from typing import Final

_SAME: Final = 1e-5
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
        return Attained.total((self, other))

    @classmethod
    def total(cls, counts: Iterable[Attained]) -> Attained:
        """All of them together."""
        parts = [part for part in counts if part.requests]
        requests, low, high = (sum(getattr(part, name) for part in parts) for name in ("requests", "low", "high"))
        return cls(requests, low, high)


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

    def has_edge(self, value: float) -> bool:
        """Whether `within(value)` is always exact."""
        return any(abs(edge - value) <= _SAME * value for edge in self.edges)

    def since(self, earlier: Histogram) -> Histogram | None:
        """What was added after `earlier`; None if that cannot be told: it was reset, or has other edges."""
        if self.edges != earlier.edges:
            return None
        counts = tuple(map(sub, self.counts, earlier.counts))
        total = self.total - earlier.total
        return None if min(counts) < 0 or total < 0 else Histogram(self.edges, counts, total)

    def __add__(self, other: Histogram) -> Histogram:
        return _together((self, other))

    def _on(self, edges: tuple[float, ...]) -> Histogram:
        """The same values on fewer edges."""
        counts = [0] * (len(edges) + 1)
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            counts[bisect_left(edges, edge)] += count
        return Histogram(edges, tuple(counts), self.total)


def merged(histograms: Iterable[Histogram | None]) -> Histogram | None:
    """All of them together, on the edges that all have; None if there is none."""
    parts = [each for each in histograms if each is not None]
    return _together(parts) if parts else None


def _together(parts: Sequence[Histogram]) -> Histogram:
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.edges != first.edges for part in parts):
        common = tuple(sorted(set(first.edges).intersection(*(part.edges for part in parts))))
        parts = [part._on(common) for part in parts]
    counts = tuple(map(sum, zip(*(part.counts for part in parts), strict=True)))
    return Histogram(parts[0].edges, counts, sum(part.total for part in parts))
