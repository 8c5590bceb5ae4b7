"""What was decided, and what clients measured and noticed, as lines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from berth.local.demo.client import Outcome


def choice(allocation: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """An allocation of a status in a line: where, how, how many GPUs, what it costs."""
    tensor, pipeline = allocation.get("tensorParallel", 1), allocation.get("pipelineParallel", 1)
    groups = allocation.get("groups", 1)
    layout = f"tp{tensor}" + (f" pp{pipeline}" if pipeline > 1 else "")
    text = f"{allocation['pool']} {allocation['precision']} {layout}, {groups} group{'s' if groups > 1 else ''}"
    text += f" on {groups * tensor * pipeline} GPUs"
    return f"{text}, {figures['costPerHour']} $/h" if "costPerHour" in figures else text


def others(candidates: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """The best placement that was not chosen, and why others were out."""
    possible = [each for each in candidates if not each.get("chosen") and not each.get("rejected")][:1]
    rejected = [each for each in candidates if not each.get("chosen") and each.get("rejected")]
    lines = [f"next best: {choice(each['allocations'][0], each)}" for each in possible]
    for each in rejected[: most - len(lines)]:
        allocation = each["allocations"][0]
        lines.append(f"not {allocation['pool']} {allocation['precision']}: {each['rejected']}")
    return lines


def latency_table(parts: Sequence[tuple[str, Sequence[Outcome]]], wanted: tuple[float, float]) -> list[str]:
    """Times to first token and per output token of each part of the replay; `wanted` are their p95 objectives."""
    rows: list[tuple[str, ...]] = [("", "REQUESTS", "TTFT P50", "TTFT P95", "TPOT P50", "TPOT P95")]
    for name, outcomes in parts:
        first = [each.time_to_first_token for each in outcomes if each.time_to_first_token is not None]
        each_token = [each.time_per_output_token for each in outcomes if each.time_per_output_token is not None]
        times = [duration(percentile(values, share)) for values in (first, each_token) for share in (50, 95)]
        rows.append((name, str(len(outcomes)), *times))
    rows.append(("objective", "", "", duration(wanted[0]), "", duration(wanted[1])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return ["  ".join(cells) for cells in padded]


def noticed(outcomes: Sequence[Outcome]) -> str:
    """One sentence about failed and repeated requests."""
    failed = [each for each in outcomes if each.error]
    again = [each for each in outcomes if each.broken_at is not None and not each.error]
    at_once = len(outcomes) - len(failed) - len(again)
    text = f"{len(outcomes)} requests: {at_once} answered at the first attempt, {len(again)} sent again and answered"
    if waits := [each.resumed_at - each.broken_at for each in again if each.resumed_at and each.broken_at]:
        text += f" (tokens came again after {duration(max(waits))} at worst)"
    return f"{text}, {len(failed)} failed"


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] if ordered else None


def duration(seconds: float | None) -> str:
    """As people read it: 24ms, 1.9s; - for unknown."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"
