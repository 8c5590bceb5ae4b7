"""Windows over tallies: what the last minutes and the last hour say, and how much evidence that is.

Time is cut into batches of a minute at fixed moments, the same for every group, so that batches of several groups add
up to batches of their deployment or pool. A window is the running batch and the whole ones before it.

Requests that queue behind one another are no independent evidence: with real arrivals the variance of a share over
some minutes is 3 to 80 times that of as many independent requests (measured on replays of the Azure conversation
trace). How much it is for a window is estimated from its batch means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from berth.core.measurement.histogram import Attained
from berth.core.measurement.samples import Tally

BATCH_SECONDS: Final = 60
FAST_BATCHES: Final = 5
SLOW_BATCHES: Final = 60
FEW_BATCHES: Final = 8
"""With fewer batches the correlation cannot be estimated."""
PRIOR_DESIGN_EFFECT: Final = 10.0
"""Variance against independent requests that is assumed then: the middle of 3-17 measured at steady load."""
_MOST_CORRELATED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Batch:
    """One minute of one group, or of several together: the same minute, observed in part or whole."""

    index: int
    """Unix time of its beginning over BATCH_SECONDS."""
    seconds: float
    """How much of it was observed."""
    tally: Tally


@dataclass(frozen=True, slots=True)
class Window:
    """What is known of a span of time that ends now. Rates are those of everything in it together."""

    batches: tuple[Batch, ...] = ()
    """Rising by index; minutes without any reading are missing. Of their tallies only what met the objectives."""
    tally: Tally = field(default_factory=Tally)
    """All batches together."""

    @property
    def seconds(self) -> float:
        """Time observed, at most the window's length (plus the running minute)."""
        return sum(batch.seconds for batch in self.batches)

    @property
    def requests_per_second(self) -> float | None:
        """Requests accepted per second; None before anything was observed. Canaries are not counted."""
        return self._rate(self.tally.requests)

    @property
    def output_tokens_per_second(self) -> float | None:
        """Generated tokens per second."""
        return self._rate(self.tally.tokens)

    @property
    def in_flight(self) -> float | None:
        """Mean number of requests accepted and not finished, of all groups together."""
        return self._mean_gauge(self.tally.running_sum + self.tally.waiting_sum)

    @property
    def waiting(self) -> float | None:
        """Mean number of requests that wait for room, of all groups together."""
        return self._mean_gauge(self.tally.waiting_sum)

    @property
    def groups(self) -> float | None:
        """Mean number of groups that were observed."""
        return self._rate(self.tally.group_seconds)

    @property
    def kv_use(self) -> float | None:
        """Mean share of the KV cache in use per group, 0..1."""
        return self.tally.kv_use_sum / self.tally.readings if self.tally.readings else None

    @property
    def first_token_share(self) -> float | None:
        """Share of requests whose first token met the objective, 0..1."""
        return self.tally.first_token_met.share

    @property
    def per_token_share(self) -> float | None:
        """Share of requests whose time per output token met the objective, 0..1."""
        return self.tally.per_token_met.share

    def _rate(self, amount: float) -> float | None:
        seconds = self.seconds
        return amount / seconds if seconds > 0 else None

    def _mean_gauge(self, total: float) -> float | None:
        """Mean per group times the groups there are."""
        groups = self.groups
        return total / self.tally.readings * groups if self.tally.readings and groups is not None else None


@dataclass(frozen=True, slots=True)
class Windows:
    """The two windows of a group, a deployment or a pool: the fast one may add groups, only the slow one may move."""

    fast: Window = Window()
    """Five whole minutes and the running one."""
    slow: Window = Window()
    """Sixty whole minutes and the running one."""


def batch_index(at: float) -> int:
    """The minute of a moment (Unix seconds)."""
    return int(at // BATCH_SECONDS)


def windows(batches: Iterable[Batch], now: float) -> Windows:
    """The windows that end at `now`, from the batches of any number of groups."""
    last = batch_index(now)
    by_index: dict[int, list[Batch]] = {}
    for batch in batches:
        if last - SLOW_BATCHES <= batch.index <= last:
            by_index.setdefault(batch.index, []).append(batch)
    ordered = tuple(_together(by_index[index]) for index in sorted(by_index))
    recent = tuple(batch for batch in ordered if batch.index >= last - FAST_BATCHES)
    before = _tally(ordered[: len(ordered) - len(recent)])
    fast = _tally(recent)
    outlines = tuple(map(_outline, ordered))
    return Windows(Window(outlines[len(ordered) - len(recent) :], fast), Window(outlines, before + fast))


def _outline(batch: Batch) -> Batch:
    """What is asked of single minutes: windows are kept for each leader, and an hour of whole ones is large."""
    tally = batch.tally
    met = Tally(first_token_met=tally.first_token_met, per_token_met=tally.per_token_met)
    return Batch(batch.index, batch.seconds, met)


def _together(batches: Sequence[Batch]) -> Batch:
    """The same minute of several groups."""
    if len(batches) == 1:
        return batches[0]
    return Batch(batches[0].index, max(batch.seconds for batch in batches), _tally(batches))


def _tally(batches: Sequence[Batch]) -> Tally:
    return Tally.total(batch.tally for batch in batches)


# --- how much evidence -----------------------------------------------------------------------------------------------
Count = Callable[[Tally], Attained]


def first_token_met(tally: Tally) -> Attained:
    return tally.first_token_met


def per_token_met(tally: Tally) -> Attained:
    return tally.per_token_met


def design_effect(batches: Sequence[Batch], count: Count) -> float:
    """Variance of the share of requests that met an objective, against that of as many independent requests; >= 1.

    From the means of batches, and the correlation of each with the next (as of an autoregressive process). With
    batches that all say the same, nothing missed or everything, it is 1.
    """
    told = [(batch.index, count(batch.tally)) for batch in batches]
    told = [(index, each) for index, each in told if each.requests]
    if len(told) < FEW_BATCHES:
        return PRIOR_DESIGN_EFFECT
    total = sum(each.requests for _, each in told)
    share = sum(each.missed for _, each in told) / total
    if not 0 < share < 1:
        return 1.0
    deviations = {index: each.missed - share * each.requests for index, each in told}
    squares = sum(deviation**2 for deviation in deviations.values())
    neighbours = sum(deviation * deviations.get(index + 1, 0.0) for index, deviation in deviations.items())
    # The estimate of a correlation from few batches is too low by about (1 + 3 r) / n.
    correlation = neighbours / squares + (1 + 3 * neighbours / squares) / len(told) if squares else 0.0
    correlation = min(max(correlation, 0.0), _MOST_CORRELATED)
    independent = total * share * (1 - share)
    spread = squares * len(told) / (len(told) - 1)
    return max(1.0, spread / independent * (1 + correlation) / (1 - correlation))


def effective_requests(window: Window, slow: Window, count: Count) -> float:
    """Independent requests that a window's share is worth.

    The correlation is taken from `slow`, which has the batches for it, whichever window is asked about.
    """
    return count(window.tally).requests / design_effect(slow.batches, count)
