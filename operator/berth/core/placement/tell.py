"""What a decision means for conditions and events, told from its record alone: kept decisions speak like new ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from berth.core import conditions as c
from berth.core.conditions import Condition


def conditions(record: Mapping[str, Any], hold: Mapping[str, Any] | None = None) -> Iterator[Condition]:
    """AvailabilityTargetMet, where there is a target, and PlacementOutdated.

    `record` is Decision.status, `hold` is `status.moves.hold`.
    """
    availability = record.get("availability") or {}
    target, predicted = availability.get("target"), availability.get("predicted")
    if target is not None and predicted is not None:
        met = float(predicted) >= float(target)
        message = f"{predicted} predicted, {target} wanted; limited by {availability.get('limitedBy')}"
        yield Condition(c.AVAILABILITY_TARGET_MET, met, "TargetReached" if met else "TargetMissed", message)
    if hold is not None and hold.get("reason") == "NoSurgePossible":
        yield Condition(c.PLACEMENT_OUTDATED, True, "NoSurgePossible", str(hold.get("message", "")))
    else:
        yield _outdated(record)


def describe(allocation: Mapping[str, Any]) -> str:
    """`h100 fp8 tp2 pp1 x 3`: pool, variant, split, groups."""
    split = f"tp{allocation.get('tensorParallel', 1)} pp{allocation.get('pipelineParallel', 1)}"
    return f"{allocation['pool']} {allocation['variant']} {split} x {allocation.get('groups', 1)}"


def _outdated(record: Mapping[str, Any]) -> Condition:
    candidates = record.get("candidates") or ()
    chosen = next((candidate for candidate in candidates if candidate.get("chosen")), None)
    best = next((candidate for candidate in candidates if not candidate.get("rejected")), None)
    if chosen is None or chosen is best:
        return Condition(c.PLACEMENT_OUTDATED, False, "PlacementCurrent", "the placement is what the spec asks for")
    if best is None:
        reason = (record.get("placement") or {}).get("reason", "")
        return Condition(c.PLACEMENT_OUTDATED, True, "SLOInfeasible", reason)
    message = f"{describe(best['allocations'][0])} would be better"
    if "costPerHour" in best and "costPerHour" in chosen:
        message += f": {best['costPerHour']} instead of {chosen['costPerHour']} per hour"
    if chosen.get("rejected"):
        message += f"; the present one: {chosen['rejected']}"
    message += "; placement.moves.mode Auto would move there"
    return Condition(c.PLACEMENT_OUTDATED, True, "BetterPlacement", message)
