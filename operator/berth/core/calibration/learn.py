"""What is remembered of measurements: a level per place, learned hour by hour, kept in `status.calibration`.

The first hours settle a level; from then on a departure of more than `TOLERANCE` is a change, which the pool answers
for (`shrink`), and anything less moves the settled level slowly. Entries are few and bounded, and hold only for the
model, variants, backend and image they were measured with: others begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from berth.api.llmdeployment import LLMDeploymentSpec
from berth.core.calibration.shrink import HALF_LIFE_DAYS, LONGEST, SHORTEST, Belief, Level, Place, believe, part
from berth.core.render.names import digest
from berth.core.timestamps import timestamp, unix_seconds

TOLERANCE: Final = 0.10
"""Departure from the settled level that says nothing: the prediction's shape over load is off by as much."""
MOST_PLACES: Final = 6
SETTLING_HOURS: Final = 6.0
"""Hours over which a settled level is the plain mean."""
_MEMORY_HOURS: Final = 24.0 * 7
"""Afterwards it follows with this memory."""
_HOUR: Final = 3600.0
_SECONDS_PER_DAY: Final = 86400.0
_ROUNDING: Final = 0.01
"""Of levels as status has them."""
_SETTLED, _CHANGE = "stepTime", "stepTimeChange"


@dataclass(frozen=True)
class Remembered:
    """What was learned of one place."""

    place: Place
    settled: float
    change: float
    hours: float
    """Measured so far."""
    at: float
    """Unix seconds of the last measurement."""

    def level(self, now: float) -> Level:
        return Level(self.place, self.settled, self.change, max(0.0, now - self.at) / _SECONDS_PER_DAY)


@dataclass(frozen=True)
class Calibration:
    """All of it, for one deployment."""

    made_with: str = ""
    """Hash of what of the spec it holds for."""
    places: tuple[Remembered, ...] = field(default_factory=tuple)
    """What was measured last comes first."""

    def belief(self, place: Place, now: float) -> Belief:
        return believe([each.level(now) for each in self.places], place)

    def of(self, place: Place) -> Remembered | None:
        return next((each for each in self.places if each.place == place), None)

    def beyond_belief(self, now: float) -> frozenset[str]:
        """Pools on which steps took as long as is ever believed of a place, or longer: how much longer nobody knows, so
        no layout there can be judged. Forgotten after a while without measurement, as changes are."""
        return frozenset(
            each.place.pool
            for each in self.places
            if each.settled + each.change > LONGEST - _ROUNDING and now - each.at < HALF_LIFE_DAYS * _SECONDS_PER_DAY
        )

    def learned(self, place: Place, measured: float, now: float) -> Calibration:
        """With the level of the hour before `now`. Call it as often as you like: time counts, not calls."""
        measured = min(max(measured, SHORTEST), LONGEST)
        known = self.of(place)
        others = tuple(each for each in self.places if each.place != place)
        if known is None:
            return replace(self, places=(Remembered(place, measured, 0.0, 0.0, now), *others)[:MOST_PLACES])
        hours = min(max(now - known.at, 0.0) / _HOUR, 1.0)
        away = measured - known.settled
        settled, change = known.settled, away
        if abs(away) <= TOLERANCE:
            share = hours / (min(known.hours, _MEMORY_HOURS) + hours) if hours else 0.0
            settled, change = known.settled + share * away, 0.0
        new = Remembered(place, settled, change, known.hours + hours, now)
        return replace(self, places=(new, *others))


def made_with(spec: LLMDeploymentSpec, image: str | None) -> str:
    """Hash of what a measured step time depends on beyond the place: model, variants, backend, image."""
    variants = {
        variant.name: [variant.precision, variant.effective_kv_precision, variant.backend]
        for variant in spec.model.variants
    }
    architecture = spec.model.architecture
    given = architecture.model_dump(mode="json", exclude_none=True) if architecture else None
    return digest([spec.model.name, given, variants, spec.engine.backend, image], 8)


# --- as status has it -------------------------------------------------------------------------------------------------
def stored(calibration: Calibration, model: str) -> list[dict[str, Any]]:
    """`status.calibration`: what was measured by place, and what that says of model, GPU types and pools."""
    entries: list[dict[str, Any]] = []
    for each in calibration.places:
        common = {"scope": " ".join(each.place), "samples": round(each.hours), "updatedAt": timestamp(each.at)}
        entries.append({**common, "metric": _SETTLED, "factor": _shown(each.settled)})
        if each.change:
            entries.append({**common, "metric": _CHANGE, "factor": _shown(each.change)})
    levels = [each.level(each.at) for each in calibration.places]
    scopes = [("model", model)] if levels else []
    scopes += [("gpu", name) for name in sorted({each.place.gpu for each in levels})]
    scopes += [("pool", name) for name in sorted({each.place.pool for each in levels})]
    entries += [
        {"scope": f"{scope} {name}", "metric": "share", "factor": _shown(part(levels, scope, name))}
        for scope, name in scopes
    ]
    return [{**entry, "specHash": calibration.made_with} for entry in entries]


def recalled(entries: Iterable[Mapping[str, Any]], hash_now: str) -> Calibration:
    """From `status.calibration`; what was measured with another spec, or cannot be read, is left out."""
    settled: dict[Place, tuple[float, float, float]] = {}
    changes: dict[Place, float] = {}
    for entry in entries:
        place, factor, at = _place(entry), _read(entry.get("factor")), unix_seconds(entry.get("updatedAt"))
        if place is None or factor is None or at is None or entry.get("specHash") != hash_now:
            continue
        if entry.get("metric") == _SETTLED:
            samples = entry.get("samples")
            settled[place] = (factor, float(samples) if isinstance(samples, int) else 0.0, at)
        elif entry.get("metric") == _CHANGE:
            changes[place] = factor
    places = [
        Remembered(place, level, changes.get(place, 0.0), hours, at) for place, (level, hours, at) in settled.items()
    ]
    return Calibration(hash_now, tuple(places[:MOST_PLACES]))


def worth_writing(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a factor moved by two per cent, an entry came or went, or a day has passed."""

    def keyed(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        return {(e.get("scope"), e.get("metric"), e.get("specHash")): e for e in entries}

    old, new = keyed(before), keyed(after)
    if old.keys() != new.keys():
        return True
    for key, entry in new.items():
        was, now = _read(old[key].get("factor")), _read(entry.get("factor"))
        if was is None or now is None or abs(was - now) > 0.02:
            return True
        then, at = unix_seconds(old[key].get("updatedAt")), unix_seconds(entry.get("updatedAt"))
        if at is not None and (then is None or at - then > _SECONDS_PER_DAY):
            return True
    return False


def _shown(level: float) -> str:
    return f"{math.exp(level):.3f}"


def _read(factor: object) -> float | None:
    """Logarithm of a stored factor, bounded; None if it is none."""
    try:
        value = float(str(factor))
    except ValueError:
        return None
    most = LONGEST - SHORTEST  # of a change
    return min(max(math.log(value), -most), most) if 0 < value < math.inf else None


def _place(entry: Mapping[str, Any]) -> Place | None:
    pool, gpu, layout = (*str(entry.get("scope", "")).split(" ", 2), "", "", "")[:3]
    return Place(pool, gpu, layout) if pool and gpu and layout else None
