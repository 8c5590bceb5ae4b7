"""How many groups in `scaling.mode: Auto`: as many as the measured traffic takes at the objectives.

    up     at once, to what the traffic of now takes: before an objective breaks
    up     by one, where an objective breaks fast all the same and more groups would help
    down   by one, when those that are left would have met the objectives at the day's peak

The number follows from the same models as the placement, with measured lengths and calibrated step times. Going up is
cheap to regret, going down is not: it waits for a whole day without a higher peak, and one step for the last one.
Without fresh measurements nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FAST_BURN: Final = 4.0
"""Misses of the objective against those it allows, in the fast window, at which groups are added without a model."""
FEWEST_FAST: Final = 46.0
"""Independent requests that tell 20 % misses from the allowed 5 % (alpha 0.01, power 0.9)."""
SETTLE_SECONDS: Final = 600.0
"""After a change the fast window is not yet that of the new number."""
STEP_DOWN_SECONDS: Final = 3600.0
"""Between two steps down."""
_WAVERS: Final = 0.1


@dataclass(frozen=True)
class Sized:
    """Groups for a load: that carry it, and that there should be (availability, bounds and minAvailable included)."""

    for_traffic: int
    groups: int


@dataclass(frozen=True)
class Demand:
    """What was measured. Loads are requests per second, for closed traffic clients."""

    slow: float
    """Mean of the hour."""
    fast: float
    """Mean of the last five minutes."""
    peak: float | None
    """Of the day's busiest hour; None before a day was measured."""
    burn: float = 0.0
    """Misses in the fast window over those that the objective allows; the worse of the objectives."""
    effective: float = 0.0
    """Independent requests behind it."""


@dataclass(frozen=True)
class Scaling:
    """The number of groups, and why it is another than before; `reason` is empty where it is not."""

    sized: Sized
    reason: str = ""


@dataclass(frozen=True)
class Bounds:
    """What groups are counted by; the first is cheap to ask, the second is not."""

    for_traffic: Callable[[float], int]
    """Groups that carry a load."""
    wanted: Callable[[int], int]
    """Groups that there should be where so many carry the traffic."""
    most: int


def scale(
    current: Sized,
    demand: Demand,
    bounds: Bounds,
    *,
    busy: float,
    settled_for: float,
    helps: bool,
) -> Scaling:
    """`busy`: what a busy minute has against the mean (peakToMean), which every plan allows for. `settled_for`: seconds
    since the number changed and all groups served. `helps`: whether more groups can cure what is wrong."""
    load = max(demand.slow, demand.fast / busy)
    needed = min(bounds.for_traffic(load), bounds.most)
    if needed < current.for_traffic:  # a load that wavers around a number of groups does not make it waver
        needed = min(bounds.for_traffic(load * (1 + _WAVERS)), bounds.most, current.for_traffic)
    if needed > current.for_traffic or needed > current.groups:
        groups = min(bounds.wanted(needed), bounds.most)
        if groups > current.groups:
            return Scaling(Sized(needed, groups), f"{load:.2f} per second take {needed} groups")
    breaking = demand.burn >= FAST_BURN and demand.effective >= FEWEST_FAST
    if breaking and helps and settled_for >= SETTLE_SECONDS and current.groups < bounds.most:
        words = f"an objective is missed {demand.burn:.1f} times as often as it allows"
        return Scaling(Sized(needed, current.groups + 1), words)
    kept = Scaling(Sized(needed, current.groups))
    if demand.peak is None or settled_for < STEP_DOWN_SECONDS or breaking:
        return kept
    at_peak = max(needed, bounds.for_traffic(max(demand.peak, load)))  # or the next look would bring it back
    if at_peak >= current.groups or bounds.wanted(at_peak) >= current.groups:
        return kept
    words = f"{current.groups - 1} groups carry the day's peak of {demand.peak:.2f} per second"
    return Scaling(Sized(needed, current.groups - 1), words)
