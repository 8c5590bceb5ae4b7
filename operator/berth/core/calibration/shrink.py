"""How far a measured level holds elsewhere: the same model elsewhere, the same GPU type elsewhere, the same pool.

A level is the sum of what the model, the GPU type, the pool and the layout have of their own, each normal around 0
(`SPREADS`). Measured levels split over them in proportion; a layout that was never measured inherits the parts it
shares. So a measured incumbent that is 20 % slower than predicted makes challengers slower too, and only the part that
is the pool's own speaks for leaving it. What *changed* after a pool had been measured is neither the model's fault nor
the GPU type's: it is the pool's alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

SPREADS: Final = {"model": 0.10, "gpu": 0.06, "pool": 0.08, "layout": 0.05}
"""Standard deviations of the parts. Together 0.15: published step times differ by that much from the predicted ones of
sources that were held out (`docs/designs/008-estimator.md`)."""
MEASURED: Final = 0.02
"""Standard deviation of a level that was measured for an hour."""
FORGETS: Final = 0.03
"""By which a level may drift in a day in which it is not measured."""
HALF_LIFE_DAYS: Final = 30.0
"""After which half of a change is taken to be over, where nobody measures."""
SHORTEST, LONGEST = math.log(0.5), math.log(2.5)
"""Bounds of what calibration may make of a step time."""


class Place(NamedTuple):
    """What decides which parts two levels share."""

    pool: str
    gpu: str
    layout: str
    """Variant and split, such as `fp8 tp2 pp1`."""


@dataclass(frozen=True)
class Level:
    """What was learned of one place."""

    place: Place
    settled: float
    """As it was found first."""
    change: float
    """What came later."""
    age_days: float = 0.0
    """Since it was measured last."""

    @property
    def total(self) -> float:
        return self.settled + self.change


@dataclass(frozen=True)
class Belief:
    """Of the step time of a place: logarithm against the prediction, and its standard deviation."""

    mean: float
    spread: float

    def factor(self, deviations: float = 0.0) -> float:
        """On step times; positive `deviations` are slower than expected."""
        return math.exp(min(max(self.mean + deviations * self.spread, SHORTEST), LONGEST))


def believe(levels: Sequence[Level], place: Place) -> Belief:
    """What is believed of `place`, measured or not."""
    change = _changed(levels, place.pool)
    if not levels:
        return Belief(0.0, math.sqrt(_shared(place, place)))
    known = np.array([[_shared(a.place, b.place) for b in levels] for a in levels])
    known += np.diag([MEASURED**2 + FORGETS**2 * each.age_days for each in levels])
    towards = np.array([_shared(each.place, place) for each in levels])
    weights = np.linalg.solve(known, towards)
    mean = float(weights @ np.array([each.settled for each in levels]))
    variance = _shared(place, place) - float(weights @ towards)
    return Belief(mean + change, math.sqrt(max(variance, MEASURED**2)))


def part(levels: Sequence[Level], scope: str, name: str) -> float:
    """What of the measured levels is the model's, the GPU type's or the pool's own (`scope`: a key of SPREADS)."""
    if not levels:
        return 0.0
    known = np.array([[_shared(a.place, b.place) for b in levels] for a in levels])
    known += np.diag([MEASURED**2 + FORGETS**2 * each.age_days for each in levels])
    weights = np.linalg.solve(known, np.array([each.settled for each in levels]))
    own = sum(w for w, each in zip(weights, levels, strict=True) if scope == "model" or _named(each, scope) == name)
    return SPREADS[scope] ** 2 * float(own) + (_changed(levels, name) if scope == "pool" else 0.0)


def _named(level: Level, scope: str) -> str:
    return {"gpu": level.place.gpu, "pool": level.place.pool, "layout": level.place.layout}[scope]


def _shared(one: Place, other: Place) -> float:
    """Covariance of two levels."""
    same = {
        "model": True,
        "gpu": one.gpu == other.gpu,
        "pool": one.pool == other.pool,
        "layout": (one.gpu, one.layout) == (other.gpu, other.layout),
    }
    return sum(SPREADS[scope] ** 2 for scope, is_same in same.items() if is_same)


def _changed(levels: Sequence[Level], pool: str) -> float:
    """Of what was measured last on the pool; half forgotten after a month without measurement."""
    here = [each for each in levels if each.place.pool == pool]
    if not here:
        return 0.0
    last = min(here, key=lambda each: each.age_days)
    return float(last.change * 0.5 ** (last.age_days / HALF_LIFE_DAYS))
