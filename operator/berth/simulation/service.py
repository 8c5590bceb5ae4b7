"""One deployment as its users and its leaders see it: groups, requests, what was missed, what would be measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from berth.core.measurement.samples import StepMoments
from berth.core.measurement.windows import FAST_BATCHES, FEW_BATCHES, PRIOR_DESIGN_EFFECT, SLOW_BATCHES
from berth.core.placement.layouts import Layout
from berth.core.placement.size import CHANNELS_PER_GROUP
from berth.core.steering.reading import Reading, Span
from berth.simulation.response import STEP_SUMS, Felt, Response, felt
from berth.simulation.traffic import MINUTE, Floats, Minutes


@dataclass(eq=False)
class Group:
    """One replica group. Minutes since the beginning."""

    name: str
    layout: Layout
    nodes: tuple[str, ...]
    serves_from: int
    slow: float = 1.0
    """Its own factor on step times."""
    routed: bool = True
    """Gets requests once it serves."""
    move_id: str = ""
    role: str = ""
    """Its part in the move; see `berth.core.moves.course`."""
    move_record: str = ""
    flipped_at: float | None = None
    move_result: str = ""
    share: float = 0.0
    backlog: float = 0.0
    """Requests that could not be served in the minute they came."""
    lost_at: int | None = None


@dataclass(frozen=True)
class _Minute:
    """What leaders would report of one minute."""

    requests: float
    prompt_tokens: float
    answer_tokens: float
    in_flight: float
    missed_first: float
    missed_token: float
    steps: dict[str, Floats]


@dataclass
class Told:
    """Everything that users felt so far."""

    requests: float = 0.0
    missed_first: float = 0.0
    missed_token: float = 0.0
    failed: float = 0.0
    worst_hour: float = 0.0
    """Largest share of an hour's requests that missed an objective."""
    hours: list[tuple[float, float, float]] = field(default_factory=list)
    """(requests, missed first, missed token) of each hour."""


ResponseOf = Callable[[Layout, float], Response]
"""Of a layout, with prompts by a factor longer."""


class Service:
    """Not for several threads. `objectives` are p95 limits in seconds, infinite where there is none."""

    def __init__(
        self,
        minutes: Minutes,
        objectives: tuple[float, float],
        lengths: tuple[float, float],
        response_of: ResponseOf,
        seed: int,
    ) -> None:
        self.minutes = minutes
        self.told = Told()
        self._first, self._token = objectives
        self._prompt, self._answer = lengths
        self._response_of = response_of
        self._rng = np.random.default_rng(seed)
        self._random = Random(seed)  # noqa: S311  (a simulation)
        self._felt: dict[tuple[Layout, float, float], Felt] = {}
        self._ring: list[_Minute] = []
        self._names: frozenset[str] = frozenset()

    def response(self, layout: Layout) -> Response:
        """Raises CannotRun where the engine would not load."""
        return self._response_of(layout, 1.0)

    # --- serving ------------------------------------------------------------------------------------------------------
    def serve(self, groups: Sequence[Group], start: int, stop: int, slowness: Callable[[str], float]) -> None:
        """Minutes `start` to `stop` with these groups; what fails in between is the caller's to tell."""
        serving = [group for group in groups if group.routed and group.serves_from <= start and group.lost_at is None]
        self._shares(serving)
        span = slice(start, stop)
        rates, prompts, answers = self.minutes.rate[span], self.minutes.prompt[span], self.minutes.answer[span]
        scale = float(self.minutes.scale[start])
        count = stop - start
        late, slow, flight = np.zeros(count), np.zeros(count), np.zeros(count)
        steps: list[dict[str, Floats]] = [{} for _ in range(count)]
        if not serving:
            late[:] = slow[:] = 1.0
            self.told.failed += float(rates.sum()) * MINUTE
        for group in serving:
            table = self._table(group, scale, slowness(group.layout.pool) * group.slow)
            response = self._response_of(group.layout, scale)
            work = response.prompt_share * prompts + (1 - response.prompt_share) * answers
            load = rates * group.share * work
            wait = self._waits(group, load, table)
            missed = np.interp(load, table.loads, table.missed_first)
            if wait is not None:
                missed = np.where(wait > 0, np.maximum(missed, np.minimum(wait / max(self._first, 1e-9), 1.0)), missed)
            late += group.share * missed
            slow += group.share * np.interp(load, table.loads, table.missed_token)
            busy = np.minimum(load, table.loads[-1])
            flight += np.interp(busy, table.loads, table.in_flight) + group.backlog
            sums = np.array([np.interp(busy, table.loads, table.sums[:, place]) for place in range(STEP_SUMS)]) * MINUTE
            sums[1] *= 1 + 0.01 * self._rng.standard_normal(count)
            for minute in range(count):
                steps[minute][group.name] = sums[:, minute]
        self._record(span, rates, prompts * scale, answers, np.clip(late, 0, 1), np.clip(slow, 0, 1), flight, steps)

    def _shares(self, serving: Sequence[Group]) -> None:
        """A Service balances connections: each of the clients' channels picked its group by chance, once."""
        names = frozenset(group.name for group in serving)
        if names == self._names:
            return
        self._names = names
        if not serving:
            return
        counts = self._rng.multinomial(CHANNELS_PER_GROUP * len(serving), [1 / len(serving)] * len(serving))
        for group, channels in zip(serving, counts, strict=True):
            group.share = channels / (CHANNELS_PER_GROUP * len(serving))

    def _table(self, group: Group, scale: float, slowness: float) -> Felt:
        key = group.layout, scale, slowness
        if key not in self._felt:
            if len(self._felt) > 64:
                self._felt.clear()
            self._felt[key] = felt(self._response_of(group.layout, scale), slowness, self._first, self._token)
        return self._felt[key]

    def _waits(self, group: Group, load: Floats, table: Felt) -> Floats | None:
        """Seconds that requests of each minute wait for those of earlier minutes; None where nobody does."""
        if group.backlog <= 0 and float(load.max(initial=0.0)) <= table.saturation:
            return None
        waits = np.zeros(len(load))
        for minute, offered in enumerate(load.tolist()):
            group.backlog = max(0.0, group.backlog + (offered - table.saturation) * MINUTE)
            waits[minute] = group.backlog / table.saturation
        return waits

    def _record(
        self,
        span: slice,
        rates: Floats,
        prompts: Floats,
        answers: Floats,
        late: Floats,
        slow: Floats,
        flight: Floats,
        steps: list[dict[str, Floats]],
    ) -> None:
        """Whole requests, some of which missed an objective by chance."""
        requests = np.round(rates * MINUTE).astype(np.int64)
        missed_first = self._rng.binomial(requests, late) if self._first < math.inf else np.zeros(len(requests))
        missed_token = self._rng.binomial(requests, slow) if self._token < math.inf else np.zeros(len(requests))
        told = self.told
        told.requests += float(requests.sum())
        told.missed_first += float(missed_first.sum())
        told.missed_token += float(missed_token.sum())
        for minute in range(len(requests)):
            number = float(requests[minute])
            self._ring.append(
                _Minute(
                    number,
                    number * float(prompts[minute]) * self._prompt,
                    number * float(answers[minute]) * self._answer,
                    float(flight[minute]),
                    float(missed_first[minute]),
                    float(missed_token[minute]),
                    steps[minute],
                )
            )
            at = span.start + minute
            if at % 60 == 0 or not told.hours:
                told.hours.append((0.0, 0.0, 0.0))
            before = told.hours[-1]
            told.hours[-1] = (
                before[0] + number,
                before[1] + float(missed_first[minute]),
                before[2] + float(missed_token[minute]),
            )
        del self._ring[:-SLOW_BATCHES]

    def forget_windows(self) -> None:
        """What was measured before a cut-over says nothing about what came after."""
        self._ring.clear()

    # --- measuring ----------------------------------------------------------------------------------------------------
    def reading(self, now: float, groups: Sequence[Group], trial: Sequence[Group] = ()) -> Reading | None:
        """As the operator would have it from the leaders' pages; None before the first minute. `trial` are the groups
        that a move under way has brought."""
        if not self._ring:
            return None
        names = {group.name for group in groups if group.routed and group not in trial}
        moments: dict[str, StepMoments] = {}
        for name in names:
            rows = [minute.steps[name] for minute in self._ring if name in minute.steps]
            if rows:
                moments[name] = _moments(np.array(rows))
        recent = self._ring[-FAST_BATCHES:]
        return Reading(
            now,
            self._span(recent, self._ring),
            self._span(self._ring, self._ring),
            moments,
            _of_groups(recent, names),
            _of_groups(self._ring, {group.name for group in trial}),
        )

    def _span(self, window: Sequence[_Minute], slow: Sequence[_Minute]) -> Span:
        seconds = len(window) * MINUTE
        requests = sum(minute.requests for minute in window)
        several = max(requests, 1.0)
        shares = []
        for name in ("missed_first", "missed_token"):
            missed = sum(getattr(minute, name) for minute in window)
            counts = np.array([minute.requests for minute in slow])
            misses = np.array([getattr(minute, name) for minute in slow])
            shares.append((missed / several, requests / _design_effect(counts, misses)))
        misses_share, effective = max(shares)
        return Span(
            seconds=seconds,
            requests_per_second=requests / seconds,
            in_flight=sum(minute.in_flight for minute in window) / len(window),
            input_tokens=sum(minute.prompt_tokens for minute in window) / several if requests else None,
            output_tokens=sum(minute.answer_tokens for minute in window) / several if requests else None,
            misses=misses_share,
            effective=effective,
        )


def _of_groups(minutes: Sequence[_Minute], names: set[str]) -> StepMoments:
    rows = [minute.steps[name] for minute in minutes for name in names if name in minute.steps]
    return _moments(np.array(rows)) if rows else StepMoments()


def _moments(rows: Floats) -> StepMoments:
    """What `StepMoments.of` makes of each row, added up."""
    order = rows[:, [0, 2, 3, 4, 1]]  # iterations, decodes, context, prompt tokens, seconds
    kept = order[order[:, 0] > 0]
    if not len(kept):
        return StepMoments()
    products = (kept / kept[:, :1]).T @ kept
    return StepMoments(len(kept), tuple(tuple(float(x) for x in row) for row in products))


def _design_effect(counts: Floats, misses: Floats) -> float:
    """`measurement.windows.design_effect` over arrays: a year of minutes makes no objects."""
    some = counts > 0
    counts, misses = counts[some], misses[some]
    if len(counts) < FEW_BATCHES:
        return PRIOR_DESIGN_EFFECT
    effects = [1.0]
    for minutes in (1, 2, 4):
        starts = np.arange(0, len(counts), minutes)
        if len(starts) < FEW_BATCHES:
            continue
        n, m = np.add.reduceat(counts, starts), np.add.reduceat(misses, starts)
        total, share = float(n.sum()), float(m.sum() / n.sum())
        if 0 < share < 1:
            spread = float(((m - share * n) ** 2).sum()) * len(n) / (len(n) - 1)
            effects.append(spread / (total * share * (1 - share)))
    return max(effects)
