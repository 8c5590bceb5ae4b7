"""The running account of one leader's life: samples come in, batches of a minute come out.

A life is one container life of one leader under one set of objectives; anything else is another series. The first
samples are warm-up and count for nothing. Bounded: an hour of batches, whatever comes in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from berth.core.measurement.packed import Packed, pack, unpack
from berth.core.measurement.samples import Objectives, Sample, between
from berth.core.measurement.windows import SLOW_BATCHES, Batch, Windows, batch_index, windows

WARM_UP_SECONDS: Final = 30.0
"""After a group began to serve: caches fill, clients connect."""


class Series:
    """`counts_from`, Unix seconds: what happened before is left out. `pace`: how many times faster windows pass."""

    def __init__(self, objectives: Objectives, counts_from: float, pace: float = 1.0) -> None:
        self.objectives = objectives
        self.last: Sample | None = None
        self.answered_at = 0.0
        """When the last sample was taken that brought a first token."""
        self._counts_from = counts_from
        self._pace = pace
        self._over: deque[Batch | Packed] = deque(maxlen=SLOW_BATCHES)
        self._running: Batch | None = None
        self._known: tuple[tuple[int, float], Windows] | None = None

    def add(self, sample: Sample) -> None:
        """The next sample; one that is not later than the last is ignored."""
        before = self.last
        if before is not None and sample.at <= before.at:
            return
        self.last = sample
        if before is None or before.at < self._counts_from:
            return
        tally = between(before, sample, self.objectives)
        if tally is None:
            return
        if tally.first_token is not None and tally.first_token.count:
            self.answered_at = sample.at
        index = batch_index(sample.at * self._pace)
        running = self._running
        if running is not None and running.index >= index:
            self._running = Batch(index, running.seconds + tally.group_seconds, running.tally + tally)
            return
        if running is not None:
            self._over.append(pack(running))
        self._running = Batch(index, tally.group_seconds, tally)

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """From the minute of index `first` on, the oldest first."""
        for each in self._over:
            if each.index >= first:
                yield unpack(each) if isinstance(each, Packed) else each
        if self._running is not None and self._running.index >= first:
            yield self._running

    def windows(self, now: float) -> Windows:
        """As they are at `now`."""
        key = batch_index(now * self._pace), self.last.at if self.last else 0.0
        known = self._known
        if known is None or known[0] != key:
            known = self._known = key, windows(self.batches(), now * self._pace)
        return known[1]
