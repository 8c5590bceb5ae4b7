"""A picture of a simulation: load, groups and pools, what was missed, what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from berth.core.moves.rules import ALLOWED_MISSES

if TYPE_CHECKING:
    from berth.simulation.run import Course, Sample, Simulation

_FORMATS: Final = (".png", ".svg")
_COLOURS: Final = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:olive")


def check(path: Path) -> None:
    """Before minutes are spent."""
    if path.suffix not in _FORMATS:
        raise click.ClickException(f"--plot {path}: must end in {' or '.join(_FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.ClickException("--plot needs matplotlib: pip install berth-operator[plot]") from None


def draw(simulation: Simulation, path: Path) -> None:
    """Write it to `path`; of a fleet the sums."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 8), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=[1.2, 1.2, 1, 1])
    courses = simulation.courses
    days = [sample.minute / 1440 for sample in courses[0].samples]
    _load(axes[0], courses, days)
    _groups(axes[1], courses, days, sorted(simulation.world.pools))
    _missed(axes[2], courses, days)
    _cost(axes[3], courses, days)
    if len(courses) == 1:
        _marks(axes, courses[0])
    for event in simulation.world.events[:12]:
        words = f"{event.kind} {event.pool or event.deployment}".strip()
        axes[0].axvline(event.at / 1440, color="black", linestyle=":", linewidth=1)
        axes[0].annotate(words, (event.at / 1440, 1.02), xycoords=("data", "axes fraction"), size=7, rotation=20)
    axes[3].set_xlabel("days")
    figure.suptitle("Simulated engines, decisions of the operator", size=10)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise click.ClickException(f"--plot {path}: {error.strerror or error}") from None


def _total(courses: list[Course], value: Any) -> list[float]:
    return [sum(value(sample) for sample in samples) for samples in zip(*(c.samples for c in courses), strict=True)]


def _load(axes: Any, courses: list[Course], days: list[float]) -> None:
    axes.plot(days, _total(courses, lambda sample: sample.requests_per_second), linewidth=0.6, color="grey")
    axes.set(ylabel="requests per second", ylim=(0, None))


def _groups(axes: Any, courses: list[Course], days: list[float], pools: list[str]) -> None:
    """GPUs by the pool that serves; what a move or a start holds beside it in grey."""
    bottom = [0.0] * len(days)
    for pool, colour in zip(pools, _COLOURS * (len(pools) // len(_COLOURS) + 1), strict=False):
        held = _total(courses, lambda sample, pool=pool: sample.gpus if sample.pool == pool else 0)
        if any(held):
            top = [low + each for low, each in zip(bottom, held, strict=True)]
            axes.fill_between(days, bottom, top, step="post", color=colour, alpha=0.6, label=pool)
            bottom = top
    axes.set(ylabel="GPUs", ylim=(0, None))
    axes.legend(fontsize=8, loc="upper left")


def _missed(axes: Any, courses: list[Course], days: list[float]) -> None:
    def share(samples: tuple[Sample, ...]) -> float:
        weights = sum(sample.requests_per_second for sample in samples)
        return sum(sample.misses * sample.requests_per_second for sample in samples) / max(weights, 1e-9)

    missed = [100 * share(samples) for samples in zip(*(course.samples for course in courses), strict=True)]
    axes.plot(days, missed, linewidth=0.8, color="tab:red")
    axes.axhline(100 * ALLOWED_MISSES, linestyle="--", linewidth=1, color="black")
    axes.set(
        ylabel="% of the hour's requests\nthat missed an objective", ylim=(0, max(10.0, 1.1 * max(missed, default=0)))
    )


def _cost(axes: Any, courses: list[Course], days: list[float]) -> None:
    axes.plot(days, _total(courses, lambda sample: sample.cost_per_hour), drawstyle="steps-post", color="tab:green")
    axes.set(ylabel="price per hour", ylim=(0, None))


def _marks(axes: Any, course: Course) -> None:
    for at, move, result in course.operator.tally.moves:
        for each in axes:
            each.axvline(at / 1440, color="tab:blue", linewidth=1)
        axes[1].annotate(f"{move.cause}: {result}", (at / 1440, 0.05), xycoords=("data", "axes fraction"), size=7)
