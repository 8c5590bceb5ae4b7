"""One deployment as its users and its leaders see it: groups, requests, what was missed, what would be measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from berth.core.measurement.samples import StepMoments
from berth.core.measurement.windows import FAST_BATCHES, FEW_BATCHES, PRIOR_DESIGN_EFFECT, SLOW_BATCHES
from berth.core.placement.layouts import Layout
from berth.core.placement.size import CHANNELS_PER_GROUP
from berth.core.steering.reading import Reading, Span
from berth.simulation.lazy import Lazy
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


REQUESTS, PROMPT, ANSWER, IN_FLIGHT, MISSED_FIRST, MISSED_TOKEN = range(6)
"""Columns of what leaders would report of a minute: requests, their tokens, those in flight, those that missed."""


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
        self._felt: dict[tuple[Layout, float, float], Felt] = {}
        self._ring: Floats = np.zeros((0, 6))
        """Of the last hour, a row per minute."""
        self._steps: dict[str, Floats] = {}
        """By group, rows as in the ring; zeros where it did not serve."""
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
        steps: dict[str, Floats] = {}
        if not serving:
            late[:] = slow[:] = 1.0
            self.told.failed += float(rates.sum()) * MINUTE
        noise = 1 + 0.01 * self._rng.standard_normal((len(serving), count))
        for (layout, slowed), places in _alike(serving, slowness).items():
            table, response = self._table(layout, scale, slowed), self._response_of(layout, scale)
            groups_here = [serving[place] for place in places]
            shares = np.array([[group.share] for group in groups_here])
            work = response.prompt_share * prompts + (1 - response.prompt_share) * answers
            loads = rates * shares * work
            curves = table.at(loads.ravel()).reshape(len(places), count, -1)
            missed = curves[:, :, 0]
            for place, (group, load) in enumerate(zip(groups_here, loads, strict=True)):
                wait = self._waits(group, load, table)
                if wait is not None:
                    unserved = np.minimum(wait / max(self._first, 1e-9), 1.0)
                    missed[place] = np.where(wait > 0, np.maximum(missed[place], unserved), missed[place])
            late += (shares * missed).sum(axis=0)
            slow += (shares * curves[:, :, 1]).sum(axis=0)
            flight += (curves[:, :, 2] + np.array([[group.backlog] for group in groups_here])).sum(axis=0)
            sums = curves[:, :, 3:] * MINUTE
            sums[:, :, 1] *= noise[places]
            steps |= {group.name: each for group, each in zip(groups_here, sums, strict=True)}
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

    def _table(self, layout: Layout, scale: float, slowness: float) -> Felt:
        key = layout, scale, slowness
        if key not in self._felt:
            if len(self._felt) > 64:
                self._felt.clear()
            self._felt[key] = felt(self._response_of(layout, scale), slowness, self._first, self._token)
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
        steps: dict[str, Floats],
    ) -> None:
        """Whole requests, some of which missed an objective by chance."""
        requests = np.round(rates * MINUTE).astype(np.int64)
        missed_first = self._rng.binomial(requests, late) if self._first < math.inf else np.zeros(len(requests))
        missed_token = self._rng.binomial(requests, slow) if self._token < math.inf else np.zeros(len(requests))
        told = self.told
        told.requests += float(requests.sum())
        told.missed_first += float(missed_first.sum())
        told.missed_token += float(missed_token.sum())
        sent = requests.astype(float)
        tokens = sent * prompts * self._prompt, sent * answers * self._answer
        rows = np.column_stack([sent, *tokens, flight, missed_first, missed_token])
        for name in self._steps.keys() | steps.keys():
            before = self._steps.get(name, np.zeros((len(self._ring), STEP_SUMS)))
            after = steps.get(name, np.zeros((len(rows), STEP_SUMS)))
            self._steps[name] = np.concatenate([before, after])[-SLOW_BATCHES:]
        self._steps = {name: found for name, found in self._steps.items() if found[:, 0].any()}
        self._ring = np.concatenate([self._ring, rows])[-SLOW_BATCHES:]
        self._hours(span.start, rows[:, [REQUESTS, MISSED_FIRST, MISSED_TOKEN]])

    def _hours(self, start: int, rows: Floats) -> None:
        """Adds minutes from `start` on to the hours they belong to."""
        hours = self.told.hours
        begins = [0, *range(60 - start % 60, len(rows), 60)]
        parts = np.add.reduceat(rows, begins, axis=0)
        if start % 60 and hours:
            parts[0] += hours.pop()
        hours += map(tuple, parts.tolist())

    def forget_windows(self) -> None:
        """What was measured before a cut-over says nothing about what came after."""
        self._ring, self._steps = self._ring[:0], {}

    # --- measuring ----------------------------------------------------------------------------------------------------
    def reading(self, now: float, groups: Sequence[Group], trial: Sequence[Group] = ()) -> Reading | None:
        """As the operator would have it from the leaders' pages; None before the first minute. `trial` are the groups
        that a move under way has brought."""
        if not len(self._ring):
            return None
        names = {group.name for group in groups if group.routed and group not in trial}
        mine = {name: rows for name, rows in self._steps.items() if name in names}
        tried = [self._steps[group.name] for group in trial if group.name in self._steps]
        effects = tuple(
            (missed, _design_effect(self._ring[:, REQUESTS], self._ring[:, missed]))
            for missed in (MISSED_FIRST, MISSED_TOKEN)
        )
        return Reading(
            now,
            _span(self._ring[-FAST_BATCHES:], effects),
            _span(self._ring, effects),
            Lazy(tuple(mine), lambda name: _moments(mine[name])),
            _moments(np.concatenate([rows[-FAST_BATCHES:] for rows in mine.values()])) if mine else StepMoments(),
            _moments(np.concatenate(tried)) if tried else StepMoments(),
        )

    def misses(self) -> float:
        """Share of the last hour's requests that missed an objective; the worse of the two."""
        sums = self._ring.sum(axis=0)
        return float(max(sums[MISSED_FIRST], sums[MISSED_TOKEN]) / max(sums[REQUESTS], 1.0))


def _span(window: Floats, effects: Sequence[tuple[int, float]]) -> Span:
    """Of a window; `effects`: what its requests are worth, by column of those that missed, known from the hour."""
    seconds = len(window) * MINUTE
    sums = window.sum(axis=0)
    requests = float(sums[REQUESTS])
    several = max(requests, 1.0)
    misses, effective = max((float(sums[missed]) / several, requests / effect) for missed, effect in effects)
    return Span(
        seconds=seconds,
        requests_per_second=requests / seconds,
        in_flight=float(sums[IN_FLIGHT]) / len(window),
        input_tokens=float(sums[PROMPT]) / several if requests else None,
        output_tokens=float(sums[ANSWER]) / several if requests else None,
        misses=misses,
        effective=effective,
    )


def _alike(serving: Sequence[Group], slowness: Callable[[str], float]) -> dict[tuple[Layout, float], list[int]]:
    """Positions of groups whose engines are the same, by layout and slowness."""
    found: dict[tuple[Layout, float], list[int]] = {}
    for place, group in enumerate(serving):
        found.setdefault((group.layout, slowness(group.layout.pool) * group.slow), []).append(place)
    return found


def _moments(rows: Floats) -> StepMoments:
    """What `StepMoments.of` makes of each row, added up."""
    order = rows[:, [0, 2, 3, 4, 1]]  # iterations, decodes, context, prompt tokens, seconds
    kept = order[order[:, 0] > 0]
    if not len(kept):
        return StepMoments()
    products = (kept / kept[:, :1]).T @ kept
    return StepMoments(len(kept), tuple(map(tuple, products.tolist())))


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
