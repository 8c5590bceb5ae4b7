"""`kubectl berth failover` and `move`: asked of the operator by annotation, shown first, then awaited.

Nothing is decided here. What is shown is read from status; the operator sizes, refuses or does it, and its answer in
`status.request` is the answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from berth.cli.kubectl.cluster import (
    Cluster,
    Object,
    Told,
    Where,
    bundled,
    cluster_options,
    deployment_argument,
    explained,
    form_option,
)

_Status = Mapping[str, Any]
PATIENCE_SECONDS: Final = 60.0
GOING: Final = ("Failed", "Draining")
"""States of groups that are not there to be failed over."""


@dataclass(frozen=True)
class Asked:
    """How a person wants to be dealt with."""

    yes: bool
    dry_run: bool
    patience: float
    output: str


_asking = bundled(
    "asked",
    Asked,
    form_option,
    click.option(
        "--timeout",
        "patience",
        type=click.FloatRange(0, 3600),
        default=PATIENCE_SECONDS,
        show_default=True,
        help="Seconds to wait for the operator's answer.",
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be asked for, and ask for nothing."),
    click.option("-y", "--yes", is_flag=True, help="Do not ask before doing it."),
)


@click.command()
@deployment_argument
@click.argument("group")
@_asking
@cluster_options
def failover(name: str, group: str, asked: Asked, where: Where) -> None:
    """Give a group up and replace it, as if it had failed.

    \b
    kubectl berth failover llama-70b g1
    """
    found = where.run(lambda cluster: cluster.deployment(name))
    with explained():
        preview = list(failover_lines(found, group, time.time()))
    _ask(where, found, f"failover {group}", preview, asked)


@click.command()
@deployment_argument
@click.option("--to", "pool", help="Pool to move to.")
@click.option("--variant", help="By default that of the best candidate there.")
@click.option("--tp", type=click.IntRange(1, 64), help="Tensor parallelism; by default that of the best candidate.")
@click.option("--pp", type=click.IntRange(1, 64), help="Pipeline parallelism; by default that of the best candidate.")
@click.option("--groups", type=click.IntRange(1, 1000), help="By default that of the best candidate.")
@click.option("--back", is_flag=True, help="Take the move under way back.")
@_asking
@cluster_options
def move(
    name: str,
    pool: str | None,
    variant: str | None,
    tp: int | None,
    pp: int | None,
    groups: int | None,
    back: bool,
    asked: Asked,
    where: Where,
) -> None:
    """Move a deployment to another pool, or take a move back; nothing is dropped on the way.

    \b
    kubectl berth move llama-70b --to a100-40
    kubectl berth move llama-70b --to a100-40 --variant bf16 --tp 8 --groups 2
    kubectl berth move llama-70b --back
    """
    if back == (pool is not None) or (back and (variant or tp or pp or groups)):
        raise click.UsageError("give either --to POOL, or --back alone")

    async def look(cluster: Cluster) -> tuple[Object, str, int | None]:
        found = await cluster.deployment(name)
        return found, await cluster.currency(pool or ""), await cluster.free_gpus(pool or "")

    found, currency, free = where.run(look)
    with explained():
        if pool is None:
            text, preview = "rollback", list(back_lines(found))
        else:
            target = destination(found, Wanted(pool, variant, tp, pp, groups))
            text, preview = _move_text(target), list(move_lines(found, target, currency, free))
    _ask(where, found, text, preview, asked)


# --- what is shown first ----------------------------------------------------------------------------------------------
def failover_lines(deployment: Object, group: str, now: float) -> Iterator[str]:
    """Raises Told where there is no such group."""
    from berth.cli.output import age
    from berth.core.timestamps import unix_seconds

    name, status = deployment["metadata"]["name"], deployment.get("status") or {}
    there = [each for each in status.get("groups") or () if each.get("state") not in GOING]
    known = next((each for each in there if each["name"] == group), None)
    if known is None:
        names = ", ".join(sorted({each["name"] for each in there})) or "none"
        raise Told(f"{name} has no group {group} that could be replaced; there is {names}")
    since = unix_seconds(known.get("since"))
    yield f"failover {group} of {name}"
    nodes = ", ".join(known.get("nodes") or ()) or "no node yet"
    standing = f"{known.get('state', '-')} on {nodes} since {age(None if since is None else now - since)}"
    yield f"  now        {standing}, incarnation {known.get('incarnation', '-')}"
    ready, needed = status.get("readyReplicas", 0), status.get("needed", 1)
    left = max(0, ready - 1) if known.get("state") == "Serving" else ready
    yield f"  meanwhile  {left} of {status.get('replicas', '-')} groups serve, {needed} needed"
    if left < needed:
        yield "  ! fewer groups than needed serve until it is back: clients will notice"
    yield f"  then       incarnation {known.get('incarnation', 0) + 1} starts, where GPUs are free"
    last = status.get("lastFailover") or {}
    if "restoredAfter" in last:
        yield f"  last time  it took {last['restoredAfter']} until the group served again"


def back_lines(deployment: Object) -> Iterator[str]:
    """Raises Told where no move is under way."""
    from berth.core.placement.tell import describe

    name = deployment["metadata"]["name"]
    current = ((deployment.get("status") or {}).get("moves") or {}).get("current")
    if not current:
        raise Told(f"no move of {name} is under way")
    yield f"take the move of {name} back, which is {current.get('phase', '-')}"
    for word, side in (("from", "to"), ("to", "from")):
        if current.get(side):
            yield f"  {word:6}{describe(current[side][0])}"


@dataclass(frozen=True)
class Wanted:
    """Where a person wants a deployment; None leaves it to the candidates in status."""

    pool: str
    variant: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    groups: int | None = None

    def covers(self, allocation: Mapping[str, Any]) -> bool:
        pairs = (
            (self.pool, allocation["pool"]),
            (self.variant, allocation["variant"]),
            (self.tensor_parallel, allocation.get("tensorParallel", 1)),
            (self.pipeline_parallel, allocation.get("pipelineParallel", 1)),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


def destination(deployment: Object, wanted: Wanted) -> dict[str, Any]:
    """The entry of status.candidates that is meant, or one made from what was said. Raises Told."""
    status = deployment.get("status") or {}
    there = [each for each in status.get("candidates") or () if wanted.covers(each["allocations"][0])]
    possible = next((each for each in there if not each.get("rejected") and not each.get("chosen")), None)
    if possible is not None:
        groups = wanted.groups or possible["allocations"][0].get("groups", 1)
        same = groups == possible["allocations"][0].get("groups", 1)
        figures = possible if same else {}  # of another number of groups nothing is known
        split = {"tensorParallel": 1, "pipelineParallel": 1}
        return {**figures, "allocations": [{**split, **possible["allocations"][0], "groups": groups}]}
    if wanted.variant and wanted.tensor_parallel:
        split = {"tensorParallel": wanted.tensor_parallel, "pipelineParallel": wanted.pipeline_parallel or 1}
        count = {"groups": wanted.groups} if wanted.groups else {}
        return {"allocations": [{"pool": wanted.pool, "variant": wanted.variant, **split, **count}]}
    for each in there:
        if each.get("chosen"):
            raise Told(f"it runs on {wanted.pool} already: give --variant, --tp or --pp for another split")
        raise Told(f"{wanted.pool}: {each['rejected']}; to ask all the same, give --variant and --tp")
    pools = sorted({each["allocations"][0]["pool"] for each in status.get("candidates") or ()})
    names = f" (candidates are on {', '.join(pools)})" if pools else ""
    raise Told(f"no candidate is on pool {wanted.pool}{names}: give --variant and --tp, or another pool")


def move_lines(deployment: Object, target: Mapping[str, Any], currency: str, free: int | None) -> Iterator[str]:
    """What stands, what would, and what that takes."""
    from berth.cli.output import table

    status = deployment.get("status") or {}
    placement = status.get("placement") or {}
    (to, *_) = target["allocations"]
    heads = ["", "PLACEMENT", f"{currency or 'COST'}/H", "TTFT P95", "TPOT P95"]
    rows = [heads]
    if placement.get("allocations"):
        rows.append(["from", *_sketch(placement["allocations"][0], placement)])
    rows.append(["to", *_sketch(to, target)])
    yield f"move {deployment['metadata']['name']}"
    yield from table(rows, indent="  ")
    gpus = to["tensorParallel"] * to["pipelineParallel"]
    count = f"{gpus * to['groups']} GPUs" if "groups" in to else f"{gpus} GPUs per group"
    known = f"; {free} are free" if free is not None else ""
    yield f"  needs {count} of {to['pool']} while both placements stand{known}"
    if free is not None and free < gpus * to.get("groups", 1):
        yield "  ! it waits for capacity, and is refused at update.deadline"
    yield "  new groups answer first, then requests go over, then the old ones drain; if it is worse, it is taken back"


def _sketch(allocation: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    split = f"tp{allocation.get('tensorParallel', 1)} pp{allocation.get('pipelineParallel', 1)}"
    where = f"{allocation['pool']} {allocation['variant']} {split} x {allocation.get('groups', '-')}"
    predicted = figures.get("predicted") or {}
    return [where, figures.get("costPerHour", "-"), predicted.get("ttftP95", "-"), predicted.get("tpotP95", "-")]


def _move_text(target: Mapping[str, Any]) -> str:
    (to, *_) = target["allocations"]
    words = ["move", to["pool"], to["variant"], f"tp{to['tensorParallel']}", f"pp{to['pipelineParallel']}"]
    return " ".join([*words, *([f"x{to['groups']}"] if "groups" in to else [])])


# --- asking -----------------------------------------------------------------------------------------------------------
def _ask(where: Where, found: Object, text: str, preview: Iterable[str], asked: Asked) -> None:
    """Show, ask, send, and say what the operator answers; ends the command with 1 where it refuses."""
    from berth.cli.output import dump, printable
    from berth.core.requests import parse
    from berth.core.timestamps import precise
    from berth.errors import InvalidSpec

    request = f"{text} @{precise(time.time())}"
    try:
        parse(request)
    except InvalidSpec as error:
        raise click.ClickException(str(error)) from None
    for line in [*preview, *_warnings(found)]:
        click.echo(printable(line), err=asked.output != "text")
    where.run(lambda cluster: _send(cluster, found, request, dry_run=True))
    if asked.dry_run:
        click.echo("nothing was changed (dry run)", err=asked.output != "text")
        return
    if not asked.yes:
        if not sys.stdin.isatty():
            raise click.ClickException("nothing was changed: give --yes to do it")
        click.confirm("do it?", abort=True, err=True)
    reply = where.run(lambda cluster: _answer(cluster, found, request, asked.patience))
    if asked.output == "text":
        click.echo(printable(f"{reply.get('result', 'Unanswered')}: {reply['message']}"))
    else:
        click.echo(dump(reply, asked.output), nl=False)
    if reply.get("result") not in ("Done", "Waiting"):
        raise SystemExit(1)


def _warnings(found: Object) -> Iterator[str]:
    from berth.core.requests import spoken

    pause = found["spec"].get("pause", "None")
    if pause != "None":
        yield f"  ! spec.pause is {pause}: kubectl berth resume {found['metadata']['name']}"
    known = (found.get("status") or {}).get("request") or {}
    if known.get("result") == "Waiting":
        yield f"  ! this replaces a request that still waits: {spoken(known.get('text', '-'))}"


async def _send(cluster: Cluster, found: Object, request: str, *, dry_run: bool) -> Object:
    from berth.kube.kinds import LLM_DEPLOYMENT
    from berth.labels import REQUEST

    metadata = found["metadata"]
    return await cluster.client.merge_patch(
        LLM_DEPLOYMENT,
        metadata["namespace"],
        metadata["name"],
        {"metadata": {"annotations": {REQUEST: request}}},
        uid=metadata["uid"],
        manager="kubectl-berth",
        dry_run=dry_run,
    )


async def _answer(cluster: Cluster, found: Object, request: str, patience: float) -> dict[str, Any]:
    """`status.request` once it is about this request: the last of it, or what there is when patience ends."""
    from berth.kube.kinds import LLM_DEPLOYMENT

    sent = await _send(cluster, found, request, dry_run=False)
    metadata = sent["metadata"]
    reply = {"text": request, "message": f"the operator did not answer within {patience:g} s: is it running?"}
    try:
        async with asyncio.timeout(patience):
            version = metadata["resourceVersion"]
            while True:
                async for event in cluster.client.watch(
                    LLM_DEPLOYMENT,
                    metadata["namespace"],
                    resource_version=version,
                    field_selector=f"metadata.name={metadata['name']}",
                ):
                    version = event.object["metadata"]["resourceVersion"]
                    known = (event.object.get("status") or {}).get("request") or {}
                    if event.type == "DELETED":
                        raise Told(f"{metadata['name']} is gone")
                    if known.get("text") == request:
                        reply = dict(known)
                        if known["result"] != "Waiting":
                            return reply
    except TimeoutError:
        return reply
