"""Pictures of a plan: cost against latency of all candidates, and latency against load of the chosen one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from berth.cli.plan_text import headline
from berth.core.placement.size import Candidate, uneven

if TYPE_CHECKING:
    from berth.cli.plan import Planned

_POINTS = 24
_SIMULATED = 7
_BEYOND = 1.15
"""Load of the right edge, against what the groups carry at the objectives."""
_CLEAR = 2.0
"""Top edge of latency against load, as a multiple of the objective."""
_NEAR = 0.03
"""Points closer than this share of both axes share one label."""
_FORMATS = (".png", ".svg")


def check_name(path: Path) -> None:
    """Refuses a file that is no picture, before anything is computed for it."""
    if path.suffix not in _FORMATS:
        raise click.ClickException(f"--plot {path}: must end in {' or '.join(_FORMATS)}")


def draw(planned: Planned, path: Path) -> None:
    """Write both pictures side by side to `path`, whose name was checked."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError:
        raise click.ClickException("--plot needs matplotlib: pip install berth-operator[plot]") from None
    figure = matplotlib.figure.Figure(figsize=(13, 6), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    axes: dict[str, Any] = figure.subplot_mosaic([["cost", "first"], ["cost", "token"]], width_ratios=[1.2, 1])
    figure.suptitle(headline(planned), fontsize=10)
    _cost_against_latency(planned, axes["cost"])
    _load_against_latency(planned, axes["first"], axes["token"])
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise click.ClickException(f"--plot {path}: {error.strerror or error}") from None


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is better than in both coordinates, by rising first coordinate."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _cost_against_latency(planned: Planned, axes: Any) -> None:
    possible = [each for each in planned.candidates if _cost(each) is not None and each.latency is not None]
    points = {id(each): (_cost(each) or 0.0, each.latency.tpot_p95 * 1e3) for each in possible if each.latency}
    for number, pool in enumerate(sorted({each.layout.pool for each in possible})):
        mine = [each for each in possible if each.layout.pool == pool]
        for marker, name, chosen in (
            ("o", pool, [each for each in mine if not each.rejected]),
            ("x", f"{pool}, out", [each for each in mine if each.rejected]),
        ):
            if chosen:
                axes.scatter(
                    *zip(*(points[id(each)] for each in chosen), strict=True),
                    marker=marker,
                    color=f"C{number}",
                    label=name,
                )
    front = pareto_front([points[id(each)] for each in possible if not each.rejected])
    if front:
        axes.plot(*zip(*front, strict=True), color="grey", linewidth=1, label="Pareto front: none better in both")
    if planned.in_force is not None and id(planned.in_force) in points:
        axes.scatter(*points[id(planned.in_force)], s=180, facecolors="none", edgecolors="black", label="chosen")
    bound = planned.question.objectives.time_per_output_token
    if bound < math.inf:
        axes.axhline(bound * 1e3, linestyle=":", color="black", linewidth=1, label="objective")
    currency = next((s.pool.spec.currency for s in planned.supplies.values() if s.price is not None), "USD")
    axes.set(
        xlabel=f"cost of the placement, {currency} per hour", ylabel="TPOT p95, ms (predicted)", title="Candidates"
    )
    axes.margins(x=0.15, y=0.1)
    axes.set_ylim(bottom=0)
    for place, names in _labels(possible, points):
        axes.annotate("\n".join(names), place, xytext=(7, 0), textcoords="offset points", size=7, va="center")
    if possible:
        axes.legend(fontsize=8)


def _labels(
    candidates: Sequence[Candidate], points: Mapping[int, tuple[float, float]]
) -> list[tuple[tuple[float, float], list[str]]]:
    """Where to write which names: neighbours share a label, so that none covers another."""
    width, height = (
        (max((max(c) - min(c)) * _NEAR, 1e-9) for c in zip(*points.values(), strict=True)) if points else (1, 1)
    )
    labels: list[tuple[tuple[float, float], list[str]]] = []
    for each in sorted(candidates, key=lambda each: points[id(each)]):
        layout, (x, y) = each.layout, points[id(each)]
        pipeline = f" pp{layout.pipeline_parallel}" if layout.pipeline_parallel > 1 else ""
        name = f"{layout.variant} tp{layout.tensor_parallel}{pipeline} x{each.groups}"
        near = next((names for (a, b), names in labels if abs(a - x) <= width and abs(b - y) <= height), None)
        if near is None:
            labels.append(((x, y), [name]))
        else:
            near.append(name)
    return labels


def _load_against_latency(planned: Planned, first: Any, token: Any) -> None:
    """Whole placement: the screen as a line, simulations as dots."""
    chosen, question = planned.in_force, planned.question
    unit = "clients" if question.traffic.closed else "requests per second"
    first.set(ylabel="TTFT p95, ms (predicted)", title="Load of the chosen placement")
    token.set(xlabel=unit, ylabel="TPOT p95, ms (predicted)")
    if chosen is None or chosen.capacity is None or not chosen.capacity.load:
        return
    whole = chosen.groups / uneven(chosen.groups)
    most = chosen.capacity.load * _BEYOND
    wanted = question.objectives
    for method, count, style, label in (("screen", _POINTS, "-", "screen"), ("simulate", _SIMULATED, "o", "simulated")):
        loads = [most * step / count for step in range(1, count + 1)]
        if question.traffic.closed:
            loads = sorted({float(max(1, round(load))) for load in loads})
        found = [planned.evaluation.latency(chosen.layout, load, method) for load in loads]  # type: ignore[arg-type]
        for axes, values in ((first, [each.ttft_p95 for each in found]), (token, [each.tpot_p95 for each in found])):
            finite = [(load * whole, v * 1e3) for load, v in zip(loads, values, strict=True) if v < math.inf]
            if finite:
                axes.plot(*zip(*finite, strict=True), style, color="C0", label=label, markersize=4)
    for axes, bound in ((first, wanted.time_to_first_token), (token, wanted.time_per_output_token)):
        axes.axvline(question.traffic.load, linestyle="--", color="grey", linewidth=1, label="planned load")
        if bound < math.inf:
            axes.axhline(bound * 1e3, linestyle=":", color="black", linewidth=1, label="objective")
        axes.set_ylim(0, bound * 1e3 * _CLEAR if bound < math.inf else None)
        axes.legend(fontsize=8)


def _cost(candidate: Candidate) -> float | None:
    return candidate.cost.per_hour if candidate.cost else None
