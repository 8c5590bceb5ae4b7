"""What is wrong, told apart before anything is done about it.

    a step takes longer than it did, here only             slow group     no reason to leave the pool
    a step takes longer than it did, on the whole pool     slow pool      the one reason to leave
    a step takes as long, more requests come               overload       more groups
    a step takes as long, requests are longer              longer prompts more groups, or more memory

Levels are logarithms of measured over predicted step time at like load (`residuals`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Final, Literal

Cause = Literal["SlowGroup", "SlowPool", "Overload", "LongerPrompts", "None"]

SLOW: Final = math.log(1.2)
"""Of a group against its peers, or of a pool against what was known of it: less is noise and the prediction's shape."""
MORE: Final = math.log(1.1)
"""Requests, or work per request, beyond what the groups were planned for."""


@dataclass(frozen=True)
class Diagnosis:
    """The cause, whose it is and by how much."""

    cause: Cause
    subject: str = ""
    """The slow group or pool."""
    factor: float = 1.0
    message: str = ""


def diagnose(
    groups: Mapping[str, float], pool: str, known: float, requests: float, work: float, neighbours: float | None = None
) -> Diagnosis:
    """`groups`: level of each group on `pool`; `known`: level that is known of such groups there.

    `requests` and `work` are logarithms of what comes against what was planned for: requests per group, and engine
    time per request. `neighbours` is by how much other deployments on the pool became slower, where there are any.
    """
    if groups:
        slow = _slow(groups, pool, known, neighbours)
        if slow is not None:
            return slow
    if max(requests, work) <= MORE:
        return Diagnosis("None")
    if requests >= work:
        factor = math.exp(requests)
        return Diagnosis("Overload", pool, factor, f"{factor:.2f} times the requests that the groups are planned for")
    factor = math.exp(work)
    return Diagnosis("LongerPrompts", pool, factor, f"a request takes {factor:.2f} times the work that was planned for")


def _slow(groups: Mapping[str, float], pool: str, known: float, neighbours: float | None) -> Diagnosis | None:
    usual = median_low(groups.values())
    worst = max(groups, key=lambda name: (groups[name], name))
    alone = [name for name, found in groups.items() if found - min(groups.values()) > SLOW]
    if alone and len(alone) * 2 <= len(groups):
        factor = math.exp(groups[worst] - usual)
        words = f"steps of {worst} take {factor:.2f} times as long as those of its peers at like load"
        return Diagnosis("SlowGroup", worst, factor, words)
    if usual - known <= SLOW:
        return None
    factor = math.exp(usual - known)
    if len(groups) == 1 and neighbours is not None and neighbours < SLOW / 2:
        words = f"steps of {worst} take {factor:.2f} times as long as before; others on pool {pool} are as fast as ever"
        return Diagnosis("SlowGroup", worst, factor, words)
    words = f"steps on pool {pool} take {factor:.2f} times as long as before at like load"
    return Diagnosis("SlowPool", pool, factor, words)
