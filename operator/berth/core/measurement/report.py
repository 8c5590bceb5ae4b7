"""What is worth saying of a measurement: figures for people, and whether the objectives are met.

Figures are of the last five minutes, or of the hour where those saw too few requests. A figure that changed by a tenth
or less has not changed; what is said is rewritten at most once a minute, so that a deployment under steady load writes
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from berth.core.measurement.histogram import Attained, Histogram
from berth.core.measurement.measured import Measured
from berth.core.measurement.windows import (
    Count,
    Window,
    Windows,
    effective_requests,
    first_token_met,
    per_token_met,
)

ENOUGH_REQUESTS: Final = 20
"""Below so many a p95 is the largest value but one."""
WORTH_SAYING: Final = 0.1
"""Relative change of a figure."""
SAY_SECONDS: Final = 60.0
_QUANTILE: Final = 0.95
_ALLOWED: Final = 0.05
"""Share of requests that may miss a p95 objective."""
_ONE_SIDED: Final = 1.64
"""Standard errors that leave one in twenty."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, and tokens per second of all groups together; None is unknown, infinite is above the last edge."""

    ttft_p95: float | None = None
    tpot_p95: float | None = None
    output_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of a deployment until something worth saying changes."""

    fresh: bool
    serves: bool
    """Whether any group serves."""
    problem: str
    """Why it is not fresh."""
    felt: Figures
    """What users feel: of everything that served them."""
    placement: Figures
    """Of the groups of the wanted revision."""
    met: bool | None
    """Whether the latency objectives are met; None while there are too few requests to tell."""
    first_token_share: float | None = None
    """Share of requests within the objective, 0..1."""
    per_token_share: float | None = None


def report(measured: Measured, revision: str | None, before: bool | None = None) -> Report:
    """What to say now of a deployment whose wanted groups are of `revision`; `before` is what `met` was."""
    windows = measured.deployment
    own = measured.revisions.get(revision or "", Windows())
    shares = {count: _telling(windows, count) for count in (first_token_met, per_token_met)}
    verdicts = [
        _met(windows, window, count, before) for count, window in shares.items() if count(window.tally).requests
    ]
    met = False if False in verdicts else (None if None in verdicts or not verdicts else True)
    return Report(
        fresh=measured.fresh,
        serves=any(group.serving for group in measured.groups),
        problem=problem(measured),
        felt=figures(windows),
        placement=figures(own),
        met=met,
        first_token_share=first_token_met(shares[first_token_met].tally).share,
        per_token_share=per_token_met(shares[per_token_met].tally).share,
    )


def problem(measured: Measured) -> str:
    """Why nothing may be decided on it; empty while it is fresh."""
    if measured.fresh:
        return ""
    if not measured.missing:
        return "no group serves"
    group = measured.missing[0]
    silent = f"no fresh figures of {group.name}"
    return f"{silent}: {group.problem}" if group.problem else f"{silent} yet" if group.read_at is None else silent


def figures(windows: Windows) -> Figures:
    """For people."""
    return Figures(
        ttft_p95=_p95(windows, "first_token"),
        tpot_p95=_p95(windows, "per_token"),
        output_tokens_per_second=windows.fast.output_tokens_per_second,
    )


def _p95(windows: Windows, name: str) -> float | None:
    recent: Histogram | None = getattr(windows.fast.tally, name)
    if recent is None or recent.count < ENOUGH_REQUESTS:
        recent = getattr(windows.slow.tally, name)
    return recent.quantile(_QUANTILE) if recent is not None else None


def _telling(windows: Windows, count: Count) -> Window:
    """The fast window if it saw enough requests."""
    return windows.fast if count(windows.fast.tally).requests >= ENOUGH_REQUESTS else windows.slow


def _met(windows: Windows, window: Window, count: Count, before: bool | None) -> bool | None:
    """Missed once the misses cannot be chance, met again once the share is there; in between it stays as it was."""
    attained: Attained = count(window.tally)
    missed = 1 - (attained.share or 0.0)
    if attained.requests < ENOUGH_REQUESTS:
        return before
    if missed <= _ALLOWED:
        return True
    error = math.sqrt(_ALLOWED * (1 - _ALLOWED) / effective_requests(window, windows.slow, count))
    return False if missed - _ALLOWED > _ONE_SIDED * error else before


def settled(said: Report | None, now: Report, said_at: float, at: float) -> Report:
    """What to say at `at` (Unix seconds), given what was `said` at `said_at`: the same object if nothing is news.

    That figures can be relied on or not, and the first latencies, are said at once; everything else at most once a
    minute.
    """
    if said is None or said.fresh != now.fresh or (said.problem and said.problem != now.problem):
        return now
    first = said.felt.ttft_p95 is None and now.felt.ttft_p95 is not None
    if not first and at - said_at < SAY_SECONDS:
        return said
    changed = said.met != now.met or _differ(said.felt, now.felt) or _differ(said.placement, now.placement)
    return now if changed else said


def _differ(said: Figures, now: Figures) -> bool:
    pairs = (
        (said.ttft_p95, now.ttft_p95),
        (said.tpot_p95, now.tpot_p95),
        (said.output_tokens_per_second, now.output_tokens_per_second),
    )
    return any(_apart(old, new) for old, new in pairs)


def _apart(old: float | None, new: float | None) -> bool:
    if old is None or new is None or math.isinf(old) or math.isinf(new):
        return old != new
    return abs(new - old) > WORTH_SAYING * max(old, _NOTHING)


_NOTHING: Final = 1e-6
