"""The measurements decisions are made on: two windows and the steps of each group, out of everything measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

from berth.core.measurement.measured import Measured
from berth.core.measurement.samples import StepMoments
from berth.core.measurement.windows import Count, Window, effective_requests, first_token_met, per_token_met


@dataclass(frozen=True, slots=True)
class Span:
    """A window of the whole deployment."""

    seconds: float
    """Observed."""
    requests_per_second: float
    in_flight: float
    """Requests accepted and not finished."""
    input_tokens: float | None
    """Mean prompt; None where nothing finished."""
    output_tokens: float | None
    misses: float = 0.0
    """Share of requests that missed an objective; the worse of the objectives. 0 without objectives."""
    effective: float = 0.0
    """Independent requests behind that share."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Fresh measurements of one deployment."""

    at: float
    """Unix seconds."""
    fast: Span
    slow: Span
    steps: Mapping[str, StepMoments] = field(default_factory=dict)
    """Of the last hour, by name of the group; groups of the placement in force that serve."""
    recent: StepMoments = field(default_factory=StepMoments)
    """Of the last five minutes, all of them together."""
    trial: StepMoments = field(default_factory=StepMoments)
    """Of the last hour, of the groups a move under way has brought; a move that is taken back teaches that much."""


def reading_of(
    measured: Measured | None, in_force: Collection[str], trial: Collection[str] = frozenset()
) -> Reading | None:
    """None where something that serves was not heard of lately. By names of groups: those of the placement in force,
    and those of the one a move goes to."""
    if measured is None or not measured.fresh:
        return None
    windows = measured.deployment
    fast, slow = _span(windows.fast, windows.slow), _span(windows.slow, windows.slow)
    if fast is None or slow is None:
        return None
    serving = [group for group in measured.groups if group.serving]
    mine = [group for group in serving if group.name in in_force]
    tried = [group.windows.slow.tally.steps for group in serving if group.name in trial]
    recent = [group.windows.fast.tally.steps for group in mine]
    return Reading(
        measured.at * measured.pace,
        replace(fast, seconds=fast.seconds * measured.pace),
        replace(slow, seconds=slow.seconds * measured.pace),
        {group.name: group.windows.slow.tally.steps for group in mine},
        reduce(add, recent, StepMoments()),
        reduce(add, tried, StepMoments()),
    )


def _span(window: Window, slow: Window) -> Span | None:
    rate, in_flight, tally = window.requests_per_second, window.in_flight, window.tally
    if rate is None:
        return None
    misses, effective = max(_missed(window, slow, first_token_met), _missed(window, slow, per_token_met))
    return Span(
        seconds=window.seconds,
        requests_per_second=rate,
        in_flight=in_flight or 0.0,
        input_tokens=tally.input.mean if tally.input else None,
        output_tokens=tally.output.mean if tally.output else None,
        misses=misses,
        effective=effective,
    )


def _missed(window: Window, slow: Window, count: Count) -> tuple[float, float]:
    """Share that missed the objective, and the independent requests behind it."""
    share = count(window.tally).share
    return (0.0, 0.0) if share is None else (1 - share, effective_requests(window, slow, count))
