"""What `berth simulate` prints: a table of what it came to, what happened when, and the same as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from berth.simulation.baseline import Baseline
    from berth.simulation.run import Course, Simulation

Baselines = Mapping[str, "tuple[Baseline, ...]"]
_TOLD: Final = 40
"""Lines of what happened, for one deployment."""
_HEADS: Final = ("", "TTFT", "TPOT", "WORST HOUR", "GPU-H", "COST", "$/1M TOK", "MOVES", "SCALED", "SURVIVED")


def lines(simulation: Simulation, minutes: int, baselines: Baselines) -> Iterator[str]:
    """Table, then what happened; of a fleet only sums."""
    courses = simulation.courses
    hidden = ", ".join(f"{pool} {factor - 1:+.0%}" for pool, factor in sorted(simulation.world.hidden.items()))
    count = f"{len(courses)} deployments" if len(courses) > 1 else courses[0].name
    yield f"{count} over {minutes / 1440:g} days; hidden error of the simulated engines: {hidden}\n"
    rows = [list(_HEADS)]
    if len(courses) == 1:
        rows.append(["Berth", *_figures(courses[0])])
        rows += [_baseline(courses[0], each) for each in baselines.get(courses[0].name, ())]
    else:
        rows.append(["all", *_sums(courses)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
    if len(courses) == 1:
        yield from _placements(baselines.get(courses[0].name, ()))
        yield from _events(courses[0])
    else:
        yield from _fleet(courses)


def document(simulation: Simulation, minutes: int, baselines: Baselines) -> dict[str, Any]:
    """Everything, with names as in status where there are such."""
    return {
        "days": minutes / 1440,
        "hidden": dict(simulation.world.hidden),
        "deployments": [_deployment(course, baselines.get(course.name, ())) for course in simulation.courses],
    }


def _deployment(course: Course, baselines: tuple[Baseline, ...]) -> dict[str, Any]:
    tally, told = course.operator.tally, course.operator.service.told
    return {
        "name": course.name,
        "requests": round(told.requests),
        "failed": round(told.failed, 1),
        "attainment": {
            "timeToFirstToken": round(course.attained[0], 5),
            "timePerOutputToken": round(course.attained[1], 5),
        },
        "worstHour": round(course.worst_hour, 5),
        "gpuHours": round(tally.gpu_minutes / 60, 2),
        "cost": round(tally.cost, 2),
        "moves": [
            {
                "at": at,
                "id": move.id,
                "cause": move.cause,
                "from": _allocation(move.start),
                "to": _allocation(move.to),
                "result": result,
                "reason": move.reason,
            }
            for at, move, result in tally.moves
        ],
        "scalings": [{"at": at, "from": before, "to": after} for at, before, after in tally.scalings],
        "failures": tally.failures,
        "survived": tally.survived,
        "events": [{"at": each.at, "what": each.what, "words": each.words} for each in tally.done],
        "holds": tally.holds,
        "baselines": [
            {
                "name": each.name,
                "placement": each.placement,
                "attainment": {
                    "timeToFirstToken": round(each.attained[0], 5),
                    "timePerOutputToken": round(each.attained[1], 5),
                },
                "worstHour": round(each.worst_hour, 5),
                "gpuHours": round(each.gpu_hours, 2),
                "cost": round(each.cost, 2),
            }
            for each in baselines
        ],
    }


def _allocation(allocation: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = allocation.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def _figures(course: Course) -> list[str]:
    tally = course.operator.tally
    first, token = course.attained
    return [
        f"{first:.2%}",
        f"{token:.2%}",
        f"{course.worst_hour:.1%}",
        f"{tally.gpu_minutes / 60:.0f}",
        f"{tally.cost:.2f}",
        _per_million(course, tally.cost),
        str(len(tally.moves)),
        str(len(tally.scalings)),
        f"{tally.survived} of {tally.failures}" if tally.failures else "-",
    ]


def _baseline(course: Course, found: Baseline) -> list[str]:
    first, token = found.attained
    figures = [f"{first:.2%}", f"{token:.2%}", f"{found.worst_hour:.1%}", f"{found.gpu_hours:.0f}", f"{found.cost:.2f}"]
    return [found.name, *figures, _per_million(course, found.cost), "-", "-", "-"]


def _per_million(course: Course, cost: float) -> str:
    tokens = course.operator.service.told.requests * course.asked.traffic.output_tokens.mean
    return f"{cost / tokens * 1e6:.2f}" if tokens and cost else "-"


def _sums(courses: list[Course]) -> list[str]:
    tallies = [course.operator.tally for course in courses]
    told = [course.operator.service.told for course in courses]
    requests = max(sum(each.requests for each in told), 1.0)
    failures = sum(each.failures for each in tallies)
    return [
        f"{1 - sum(each.missed_first for each in told) / requests:.2%}",
        f"{1 - sum(each.missed_token for each in told) / requests:.2%}",
        f"{min(course.worst_hour for course in courses):.1%}",
        f"{sum(each.gpu_minutes for each in tallies) / 60:.0f}",
        f"{sum(each.cost for each in tallies):.2f}",
        "-",
        str(sum(len(each.moves) for each in tallies)),
        str(sum(len(each.scalings) for each in tallies)),
        f"{sum(each.survived for each in tallies)} of {failures}" if failures else "-",
    ]


def _placements(baselines: tuple[Baseline, ...]) -> Iterator[str]:
    for each in baselines:
        if each.placement:
            yield f"  {each.name}: {each.placement}"


def _events(course: Course) -> Iterator[str]:
    yield ""
    done = course.operator.tally.done
    for each in done[:_TOLD]:
        yield f"  {_moment(each.at):>9}  {each.what:<10}  {each.words}"
    if len(done) > _TOLD:
        yield f"  and {len(done) - _TOLD} more: -o json has them all"


def _fleet(courses: list[Course]) -> Iterator[str]:
    """How many met their objectives, where they ended, and how moves ended."""
    met = sum(min(course.attained) >= 0.95 for course in courses)
    yield f"\n  {met} of {len(courses)} met their objectives over the whole time"
    pools = Counter(c.operator.allocation.pool if c.operator.allocation else "nowhere" for c in courses)
    yield "  at the end: " + ", ".join(f"{count} on {pool}" for pool, count in sorted(pools.items()))
    results = Counter(result for course in courses for _, _, result in course.operator.tally.moves)
    if results:
        yield "  moves: " + ", ".join(f"{count} {result}" for result, count in sorted(results.items()))


def _moment(minute: int) -> str:
    return f"{minute // 1440}d {minute % 1440 // 60:02}:{minute % 60:02}"
