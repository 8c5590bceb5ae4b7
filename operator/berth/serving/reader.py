"""Reads the leaders that serve, again and again, and keeps what they said as windows.

A pass says whom it wants to hear from (`follow`); nobody else is ever read. A leader that left is kept until its hour
is over, since its requests happened, and no longer. Nothing is decided here: silence stays silence, and whoever asks
gets an account with its age. Accounts may be asked for from another thread than the one that reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from berth.core.measurement.measured import GroupMeasured, Measured, PoolMeasured
from berth.core.measurement.samples import Objectives, Sample
from berth.core.measurement.series import WARM_UP_SECONDS, Series
from berth.core.measurement.windows import (
    BATCH_SECONDS,
    FAST_BATCHES,
    SLOW_BATCHES,
    Batch,
    Windows,
    batch_index,
    windows,
)
from berth.errors import Transient
from berth.serving.sources import Leader, Source

_log = logging.getLogger(__name__)

STALE_READINGS: Final = 3
LEAST_STALE_SECONDS: Final = 30.0
"""A leader that missed so many readings, and was silent for so long, has nothing to say about now."""
HOUR: Final = 3600.0
KEPT_SECONDS: Final = float((SLOW_BATCHES + 1) * BATCH_SECONDS)
MOST_ENDED: Final = 64
"""Leaders of one deployment that left within the hour."""
ASK_AGAIN_SECONDS: Final = 60.0
"""Between two requests to count an objective exactly."""


@dataclass
class _Record:
    """One container life of one leader."""

    leader: Leader
    series: Series
    serving_since: float
    serving: bool = True
    read_at: float | None = None
    """When the newest sample came, by our own clock."""
    problem: str = ""
    asked_at: float = float("-inf")


_Life = tuple[str, int]
"""Pod and restart count."""


class Reader:
    """`clock` gives Unix seconds; `news` takes a deployment's key after each attempt to read one of its leaders.

    `hour_seconds` is how long the slow window is.
    """

    def __init__(
        self,
        source: Source,
        news: Callable[[Hashable], None],
        clock: Callable[[], float],
        interval_seconds: float = 10.0,
        warm_up_seconds: float = WARM_UP_SECONDS,
        hour_seconds: float = HOUR,
    ) -> None:
        self._source = source
        self._news = news
        self._clock = clock
        self._interval = interval_seconds
        self._warm_up = warm_up_seconds
        self._pace = HOUR / hour_seconds
        self._records: dict[Hashable, dict[_Life, _Record]] = {}
        self._wants: set[asyncio.Task[None]] = set()
        self._began = clock()
        self.stale_after = max(LEAST_STALE_SECONDS, STALE_READINGS * interval_seconds)

    def follow(self, key: Hashable, leaders: Iterable[Leader]) -> None:
        """From now on these are the leaders of `key` that serve; those who left are kept for their hour."""
        now = self._clock()
        records = self._records.setdefault(key, {})
        current = {(leader.uid, leader.restarts): leader for leader in leaders}
        for life, record in records.items():
            record.serving = life in current
        for life, leader in current.items():
            known = records.get(life)
            if known is None or known.leader.objectives != leader.objectives:
                records[life] = self._new(leader, known, now)
            else:
                known.leader = leader
        ended = [(life, record) for life, record in records.items() if not record.serving]
        ended.sort(key=lambda each: each[1].read_at or 0.0)
        for number, (life, record) in enumerate(ended):
            if (now - (record.read_at or 0.0)) * self._pace > KEPT_SECONDS or number < len(ended) - MOST_ENDED:
                del records[life]
        if not records:
            del self._records[key]

    def _new(self, leader: Leader, before: _Record | None, now: float) -> _Record:
        """A new life is warmed up first; a new objective is counted from now on."""
        counts_from = now + self._warm_up if before is None else now
        # Whoever serves when the process begins may have done so for long: there everybody is waited for.
        since = now if now - self._began > self.stale_after else 0.0
        series = Series(leader.objectives, counts_from, self._pace)
        record = _Record(leader, series, before.serving_since if before else since)
        if before is not None:
            record.read_at = before.read_at
        return record

    def forget(self, key: Hashable) -> None:
        """The deployment is gone."""
        self._records.pop(key, None)

    def measured(self, key: Hashable) -> Measured:
        """Everything known of a deployment now."""
        now, records = self._clock(), self._current(key)
        by_revision = _grouped(records, lambda record: record.leader.revision)
        revisions = {revision: self._windows(some, now) for revision, some in by_revision.items()}
        return replace(
            self._measured(records, now, self._windows),
            deployment=next(iter(revisions.values())) if len(revisions) == 1 else self._windows(records, now),
            revisions=revisions,
        )

    def fresh(self, key: Hashable) -> bool:
        """Like `measured(key).fresh`, for little."""
        return self._measured(self._current(key), self._clock(), lambda _records, _now: Windows()).fresh

    def answered_since(self, key: Hashable, at: float) -> bool:
        """Whether a reading after `at` (Unix seconds) brought a first token."""
        return any(record.series.answered_at > at for record in self._records.get(key, {}).values())

    def _current(self, key: Hashable) -> list[_Record]:
        """Records that were counted against the objectives of today: others say nothing about these."""
        records = list(self._records.get(key, {}).values())
        objectives = _objectives(records)
        return [record for record in records if record.leader.objectives == objectives]

    def _measured(
        self, records: list[_Record], now: float, windows_of: Callable[[list[_Record], float], Windows]
    ) -> Measured:
        groups = _grouped(records, lambda record: record.leader.group)
        return Measured(
            at=now,
            groups=tuple(_group(name, groups[name], windows_of(groups[name], now)) for name in sorted(groups)),
            objectives=_objectives(records),
            stale_after=self.stale_after,
            pace=self._pace,
        )

    def _windows(self, records: list[_Record], now: float) -> Windows:
        if len(records) == 1:
            return records[0].series.windows(now)
        return windows((batch for record in records for batch in record.series.batches()), now * self._pace)

    def keys(self) -> tuple[Hashable, ...]:
        """Deployments that something is known of."""
        return tuple(self._records)

    def pools(self, *, whole_hour: bool = True) -> Mapping[str, PoolMeasured]:
        """By pool: all groups of all deployments together. For thousands of groups the hour takes a second."""
        now = self._clock() * self._pace
        first = batch_index(now) - (SLOW_BATCHES if whole_hour else FAST_BATCHES)
        batches: dict[str, list[Batch]] = {}
        for records in list(self._records.values()):
            for record in list(records.values()):
                batches.setdefault(record.leader.pool, []).extend(record.series.batches(first))
        return {pool: PoolMeasured(pool, windows(some, now)) for pool, some in batches.items()}

    async def run(self) -> None:
        """Read round after round until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due = loop.time() + self._interval
                await self.round()
                await asyncio.sleep(max(0.0, due - loop.time()))
        finally:
            for task in self._wants:
                task.cancel()
            await asyncio.gather(*self._wants, return_exceptions=True)
            await self._source.close()

    async def round(self) -> None:
        """Read everybody once, and tell about every deployment that has a leader to read."""
        found = [(key, record) for key, records in self._records.items() for record in records.values()]
        reading = {id(record.leader): (key, record) for key, record in found if record.serving}

        def tell(leader: Leader, sample: Sample | str) -> None:
            key, record = reading[id(leader)]
            self._learn(record, sample)
            self._news(key)

        try:
            await self._source.read([record.leader for _, record in reading.values()], tell)
        except Exception:
            _log.exception("a round of readings ended early")

    def _learn(self, record: _Record, sample: Sample | str) -> None:
        if isinstance(sample, str):
            record.problem = sample
            return
        now = self._clock()
        record.problem = ""
        newer = record.series.last is None or sample.at > record.series.last.at
        record.series.add(sample)
        if newer:
            record.read_at = min(now, sample.at)
        if _lacks_an_edge(sample, record.leader.objectives) and now - record.asked_at >= ASK_AGAIN_SECONDS:
            record.asked_at = now
            task = asyncio.create_task(self._want(record))
            self._wants.add(task)
            task.add_done_callback(self._wants.discard)

    async def _want(self, record: _Record) -> None:
        try:
            await self._source.want(record.leader)
        except Transient as error:
            record.problem = f"does not count the objectives exactly: {error}"


def _lacks_an_edge(sample: Sample, objectives: Objectives) -> bool:
    pairs = ((sample.first_token, objectives.first_token), (sample.per_token, objectives.per_token))
    return any(
        histogram is not None and objective is not None and not histogram.has_edge(objective)
        for histogram, objective in pairs
    )


def _group(name: str, lives: list[_Record], seen: Windows) -> GroupMeasured:
    """One incarnation, over the lives of its leader's container."""
    newest = max(lives, key=lambda record: (record.serving, record.read_at or 0.0))
    last = newest.series.last
    return GroupMeasured(
        name=name,
        pool=newest.leader.pool,
        revision=newest.leader.revision,
        windows=seen,
        read_at=newest.read_at,
        serving=newest.serving,
        serving_since=newest.serving_since,
        running=last.running if last else None,
        waiting=last.waiting if last else None,
        kv_use=last.kv_use if last else None,
        problem=newest.problem,
    )


def _objectives(records: list[_Record]) -> Objectives:
    """Of those that serve; of the last that did while none does."""
    newest = max(records, key=lambda record: (record.serving, record.read_at or 0.0), default=None)
    return newest.leader.objectives if newest else Objectives()


def _grouped(records: list[_Record], name: Callable[[_Record], str]) -> dict[str, list[_Record]]:
    found: dict[str, list[_Record]] = {}
    for record in records:
        found.setdefault(name(record), []).append(record)
    return found
