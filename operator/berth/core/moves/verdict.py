"""Whether the new placement is kept: attainment since the flip against the objective and against what was left.

A move for money may be slower than before as long as it meets the objectives; a move because of a breach is kept if it
is better than the breach. "Worse than before" alone is no verdict, since moves begin at bad moments. Where there was
more to do than before, or nothing was measured, there is none; then the deadline decides for what serves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from berth.core.measurement.measured import Measured
from berth.core.measurement.windows import Count, Window, effective_requests, first_token_met, per_token_met
from berth.core.moves.course import Course

ALLOWED_MISSES: Final = 0.05
"""Objectives are 95th percentiles."""
SURE: Final = 2.33
"""Standard deviations of chance: one in a hundred."""
FEWEST_REQUESTS: Final = 30.0
"""Independent requests below which there is no verdict."""
SETTLING_SECONDS: Final = 120.0
"""After the flip: caches are cold, and connections still come over."""
COMPARABLE: Final = 1.25
"""Load since the flip against the load before, up to which worse means worse placed."""


@dataclass(frozen=True)
class Verdict:
    """At most one of `kept` and `worse`; neither: not yet."""

    kept: bool = False
    worse: bool = False
    words: str = "nothing is measured yet"


def verdict(course: Course, flipped_at: float, measured: Measured | None, revision: str, now: float) -> Verdict:
    """The verdict on the groups whose template hash is `revision`, which got requests at `flipped_at`."""
    if measured is None or not measured.fresh:
        return Verdict(words="metrics are missing or stale")
    if (now - flipped_at) * measured.pace < SETTLING_SECONDS:
        return Verdict(words="the new groups have just got requests")
    windows = measured.revisions.get(revision)
    rate = windows.slow.requests_per_second if windows else None
    if windows is None or not rate:
        return Verdict(words="the new groups have had no requests")
    judged = [_missed(windows.slow, count) for count in (first_token_met, per_token_met)]
    known = [each for each in judged if each is not None]
    if not known:
        return Verdict(kept=True, words="no objective to judge by; the new groups answer")
    return weighed(course, rate, *max(known))


def weighed(course: Course, rate: float, misses: float, effective: float) -> Verdict:
    """By the new groups' requests per second, the share that missed an objective, and how many that is worth."""
    if effective < FEWEST_REQUESTS:
        return Verdict(words=f"{effective:.0f} of {FEWEST_REQUESTS:.0f} independent requests since the flip")
    doubt = SURE * math.sqrt(ALLOWED_MISSES * (1 - ALLOWED_MISSES) / effective)
    before = f", {course.misses:.1%} before" if course.misses is not None else ""
    words = f"{misses:.1%} of requests miss an objective{before}"
    if misses <= ALLOWED_MISSES or (course.misses is not None and misses < course.misses - doubt):
        return Verdict(kept=True, words=words)
    if misses > max(ALLOWED_MISSES, course.misses or 0.0) + doubt:
        if course.load and rate > COMPARABLE * course.load:
            return Verdict(words=f"{words}, at {rate / course.load:.1f} times the load")
        return Verdict(worse=True, words=words)
    return Verdict(words=f"{words}: too close to tell")


def _missed(window: Window, count: Count) -> tuple[float, float] | None:
    """(share that missed the objective, independent requests behind it); None where there is no such objective."""
    share = count(window.tally).share
    return None if share is None else (1 - share, effective_requests(window, window, count))
