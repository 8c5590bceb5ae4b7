"""`berth simulate`: days of a deployment under Berth's decisions, on engines that its models do not know."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from berth.cli.manifests import documents, parsed_deployment, parsed_pool

if TYPE_CHECKING:
    from berth.api.gpupool import GPUPool
    from berth.core.placement.question import Question
    from berth.simulation.run import Simulation
    from berth.simulation.traffic import Recorded
    from berth.simulation.world import Event

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(m|h|d)")
_UNITS: Final = {"m": 1, "h": 60, "d": 1440}
_FAULT: Final = re.compile(r"(\w+)(?::([^=@+]+))?(?:=([^@+]+))?@([^+]+)(?:\+(.+))?")
_KINDS: Final = ("slow", "price", "group", "node", "pool", "metrics")
_MOST_COPIES: Final = 10_000
_SPREAD_OF_COPIES: Final = 4.0
"""Copies of a deployment have from a quarter of its load to four times as much,"""
_STEPS_OF_COPIES: Final = 12
"""in so many steps down and up."""
_SHOWN_STEPS: Final = 1000
"""Of the bar that tells how far it is."""


@click.command()
@click.option("-f", "--filename", type=click.File(encoding="utf-8"), required=True, help="LLMDeployments; - is stdin.")
@click.option(
    "--pools", "pools_file", type=click.File(encoding="utf-8"), help="GPUPools; by default those in FILENAME."
)
@click.option(
    "--trace",
    "trace",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Record of requests, as for `berth traffic profile`; repeated for as long as it takes, at the load of "
    "spec.traffic.",
)
@click.option("--days", type=click.FloatRange(0.05, 366), default=7.0, show_default=True, help="How long.")
@click.option(
    "--peak",
    type=click.FloatRange(1.0, 5.0),
    default=1.0,
    show_default=True,
    help="Busiest hour of the day against the mean one, laid over the trace.",
)
@click.option(
    "--hidden",
    type=click.FloatRange(0.0, 0.5),
    default=0.25,
    show_default=True,
    help="Error of each pool's engines that nobody knows of, drawn from 1 +- this.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of everything that is left to chance.")
@click.option(
    "--fail",
    "faults",
    multiple=True,
    metavar="FAULT@TIME",
    help="What goes wrong or changes, several times if need be: group@30h, node:h100@2d+6h, pool:h100@2d+4h (no group "
    "there serves or starts), slow:h100=1.4@3d, price:a100-40=0.79@4d, metrics@5d+2h, chance (nodes, by nodeMTBFDays).",
)
@click.option("--copies", type=click.IntRange(1, _MOST_COPIES), default=1, help="A fleet: copies with other loads.")
@click.option("--compare/--no-compare", default=None, help="With the best fixed placement and an oracle (slow fleets).")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="Picture to write: .png or .svg."
)
def simulate(
    filename: Any,
    pools_file: Any,
    trace: Path,
    days: float,
    peak: float,
    hidden: float,
    seed: int,
    faults: Sequence[str],
    copies: int,
    compare: bool | None,
    output: str,
    picture: Path | None,
) -> None:
    """Say what Berth's decisions come to over days: attainment, cost, moves, failures survived.

    Placement, scaling and moves are decided by the code that runs in the operator. Engines take their step times from
    published measurements, with an error per pool that the decisions have to find out.

    \b
    berth simulate -f llama-70b.yaml --pools pools.yaml --trace calls.csv
    berth simulate -f llama-70b.yaml --pools pools.yaml --trace calls.csv --plot week.png --fail slow:h100=1.4@3d
    """
    from berth.cli.simulate_text import document, lines
    from berth.errors import BerthError

    if picture is not None:
        from berth.cli.plot_simulation import check

        check(picture)
    try:
        found = documents(filename)
        others = documents(pools_file) if pools_file is not None else []
        pools = {
            pool.metadata.name: pool
            for pool in (parsed_pool(each) for each in [*found, *others] if each.get("kind") == "GPUPool")
        }
        if not pools:
            raise ValueError(f"{filename.name} holds no GPUPool: give --pools")
        asked = _questions([each for each in found if each.get("kind") == "LLMDeployment"], filename.name, pools)
        minutes = round(days * 1440)
        events = _events(faults, pools, minutes, seed)
        recorded = read(trace)
        simulation = _simulation(asked, pools, recorded, minutes, peak, hidden, seed, events, copies)
    except (BerthError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    whole = minutes * len(simulation.courses)
    steps = max(whole // _SHOWN_STEPS, 1)
    bar = click.progressbar(
        length=whole, label="simulating", file=sys.stderr, update_min_steps=steps, hidden=not sys.stderr.isatty()
    )
    with bar:
        simulation.run(minutes, done=bar.update)
    compared = compare if compare is not None else len(simulation.courses) == 1
    baselines = simulation.baselines() if compared else {}
    if output == "json":
        click.echo(json.dumps(document(simulation, minutes, baselines), indent=2))
    else:
        for line in lines(simulation, minutes, baselines):
            click.echo(line)
    if picture is not None:
        from berth.cli.plot_simulation import draw

        draw(simulation, picture)
        click.echo(f"wrote {picture}", err=True)


def read(path: Path) -> Recorded:
    """A trace; its requests in order. ValueError names line and field of a bad one."""
    import numpy as np

    from berth.cli.traffic import rows
    from berth.simulation.traffic import Recorded

    found = sorted(rows(path))
    if len(found) < 2:
        raise ValueError(f"{path}: holds {len(found)} requests: at least two are needed to know a rate")
    times, prompts, answers = (np.array(column) for column in zip(*found, strict=True))
    return Recorded(times - times[0], prompts, answers)


def _questions(manifests: Sequence[Mapping[str, Any]], name: str, pools: Mapping[str, GPUPool]) -> dict[str, Question]:
    from berth.core.accept import accept
    from berth.core.placement.question import question

    if not manifests:
        raise ValueError(f"{name}: holds no object of kind LLMDeployment: correct the file")
    asked = {}
    for manifest in manifests:
        deployment = parsed_deployment(dict(manifest))
        accept(deployment, pools, frozenset())
        asked[deployment.metadata.name] = question(deployment)
    return asked


def _simulation(
    asked: Mapping[str, Question],
    pools: Mapping[str, GPUPool],
    recorded: Recorded,
    minutes: int,
    peak: float,
    hidden: float,
    seed: int,
    events: Sequence[Event],
    copies: int,
) -> Simulation:
    from random import Random

    from berth.core.placement.question import with_load
    from berth.simulation.run import Simulation
    from berth.simulation.traffic import Swing, minutes_of
    from berth.simulation.world import hidden_factors

    random = Random(seed)  # noqa: S311  (a simulation)
    simulation = Simulation(pools, recorded, hidden=hidden_factors(pools, hidden, seed), events=events, seed=seed)
    for name, each in asked.items():
        if each.traffic.closed:
            raise ValueError(f"LLMDeployment {name}: a trace is open traffic: use spec.traffic.arrival Open")
        for copy in range(copies):
            # In steps, so that what was computed for one copy is known for its likes.
            factor = _SPREAD_OF_COPIES ** (random.randint(-_STEPS_OF_COPIES, _STEPS_OF_COPIES) / _STEPS_OF_COPIES)
            load = each.traffic.load * (factor if copies > 1 else 1.0)
            its = replace(each, traffic=with_load(each.traffic, load))
            at_hour = random.uniform(0, 24) if copies > 1 else 15.0
            course = minutes_of(recorded, minutes, load, Swing(peak, at_hour))
            simulation.add(name if copies == 1 else f"{name}-{copy}", its, course)
    return simulation


def _events(faults: Sequence[str], pools: Mapping[str, GPUPool], minutes: int, seed: int) -> list[Event]:
    """What `--fail` says. ValueError names what cannot be understood."""
    from berth.simulation.world import Event, chance_failures

    events: list[Event] = []
    for fault in faults:
        if fault == "chance":
            for name, pool in pools.items():
                nodes = pool.status.nodes or 1
                events += [
                    Event("node", at, pool=name, among=nodes) for at in chance_failures(pool, nodes, minutes, seed)
                ]
            continue
        found = _FAULT.fullmatch(fault)
        if found is None or found[1] not in _KINDS:
            raise ValueError(
                f"--fail {fault}: write FAULT@TIME with one of {', '.join(_KINDS)}, such as slow:h100=1.4@3d"
            )
        kind, target, value, at, lasts = found.groups()
        needs_pool = kind in ("slow", "price", "node", "pool")
        if needs_pool and target not in pools:
            names = sorted(pools)
            raise ValueError(f"--fail {fault}: name one of the pools {', '.join(names)}, such as {kind}:{names[0]}@3d")
        events.append(
            Event(
                kind,  # type: ignore[arg-type]
                _minutes(fault, at),
                pool=target if needs_pool else "",
                value=_value(fault, kind, value),
                lasts=_minutes(fault, lasts) if lasts else 1 if kind in ("group", "node") else None,
                deployment="" if needs_pool else target or "",
            )
        )
    return events


def _value(fault: str, kind: str, text: str | None) -> float:
    if text is None:
        if kind in ("slow", "price"):
            raise ValueError(f"--fail {fault}: {kind} needs a value, such as {kind}:POOL=1.4@3d")
        return 1.0
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"--fail {fault}: {text} is not a number") from None
    if not 0.01 <= value <= 100_000:
        raise ValueError(f"--fail {fault}: {text} must be from 0.01 to 100000")
    return value


def _minutes(fault: str, text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"--fail {fault}: {text} is not a time such as 90m, 30h or 2d")
    return round(float(found[1]) * _UNITS[found[2]])
