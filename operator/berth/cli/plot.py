"""Pictures of a plan: cost against latency of all candidates, and latency against load of the chosen one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from berth.core.placement.size import Candidate, uneven

if TYPE_CHECKING:
    from berth.cli.plan import Planned

_POINTS = 24
_SIMULATED = 7
_BEYOND = 1.15
"""Load of the right edge, against what the groups carry at the objectives."""
_FORMATS = (".png", ".svg")


def draw(planned: Planned, path: Path) -> None:
    """Write both pictures side by side to `path`."""
    if path.suffix not in _FORMATS:
        raise click.ClickException(f"--plot {path}: must end in {' or '.join(_FORMATS)}")
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError:
        raise click.ClickException("--plot needs matplotlib: pip install berth-operator[plot]") from None
    figure = matplotlib.figure.Figure(figsize=(13, 5), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _cost_against_latency(planned, left)
    _load_against_latency(planned, right)
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
    for pool in sorted({each.layout.pool for each in possible}):
        mine = [each for each in possible if each.layout.pool == pool]
        met = [points[id(each)] for each in mine if not each.rejected]
        if met:
            axes.scatter(*zip(*met, strict=True), label=pool)
    for each in possible:
        axes.annotate(f"{each.layout.variant} tp{each.layout.tensor_parallel} x{each.groups}", points[id(each)], size=7)
    front = pareto_front([points[id(each)] for each in possible if not each.rejected])
    if front:
        axes.plot(*zip(*front, strict=True), color="grey", linewidth=1, label="no candidate is better in both")
    if planned.in_force is not None and id(planned.in_force) in points:
        axes.scatter(*points[id(planned.in_force)], s=180, facecolors="none", edgecolors="black", label="chosen")
    bound = planned.question.objectives.time_per_output_token
    if bound < math.inf:
        axes.axhline(bound * 1e3, linestyle=":", color="black", linewidth=1)
    axes.set(xlabel="price of the placement per hour", ylabel="TPOT p95, ms (predicted)", title="Candidates")
    if possible:
        axes.legend(fontsize=8)


def _load_against_latency(planned: Planned, axes: Any) -> None:
    """Whole placement: the screen as lines, simulations as dots."""
    chosen, question = planned.in_force, planned.question
    unit = "clients" if question.traffic.closed else "requests per second"
    axes.set(xlabel=unit, ylabel="p95 / objective, or seconds (predicted)", title="Load of the chosen placement")
    if chosen is None or chosen.capacity is None or not chosen.capacity.load:
        return
    whole = chosen.groups / uneven(chosen.groups)
    most = chosen.capacity.load * _BEYOND
    first, token = question.objectives.time_to_first_token, question.objectives.time_per_output_token
    scale_first, scale_token = (bound if bound < math.inf else 1.0 for bound in (first, token))
    for method, count, style in (("screen", _POINTS, "-"), ("simulate", _SIMULATED, "o")):
        loads = [most * step / count for step in range(1, count + 1)]
        if question.traffic.closed:
            loads = sorted({float(max(1, round(load))) for load in loads})
        found = [planned.evaluation.latency(chosen.layout, load, method) for load in loads]  # type: ignore[arg-type]
        for name, values, colour in (
            ("TTFT", [each.ttft_p95 / scale_first for each in found], "tab:blue"),
            ("TPOT", [each.tpot_p95 / scale_token for each in found], "tab:orange"),
        ):
            label = f"{name} p95, {'screen' if method == 'screen' else 'simulated'}"
            finite = [(load * whole, value) for load, value in zip(loads, values, strict=True) if value < math.inf]
            if finite:
                axes.plot(*zip(*finite, strict=True), style, color=colour, label=label, markersize=4)
    axes.axhline(1, linestyle=":", color="black", linewidth=1)
    axes.axvline(question.traffic.load, linestyle="--", color="grey", linewidth=1, label="planned load")
    axes.set_ylim(0, 2)
    axes.legend(fontsize=8)


def _cost(candidate: Candidate) -> float | None:
    return candidate.cost.per_hour if candidate.cost else None
