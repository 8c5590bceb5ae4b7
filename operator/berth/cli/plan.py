"""`berth plan`: where a deployment would run and why, without a cluster or against one; nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from berth.cli.manifests import documents, parsed_deployment, parsed_pool, the_deployment
from berth.cli.output import dump

if TYPE_CHECKING:
    from berth.api.gpupool import GPUPool
    from berth.api.llmdeployment import LLMDeployment
    from berth.core.placement.choose import Answer
    from berth.core.placement.evaluate import Estimates
    from berth.core.placement.question import Question
    from berth.core.placement.size import Candidate
    from berth.core.placement.supply import Supply


@dataclass(frozen=True)
class Planned:
    """A question, the pools it was put to, and the answer."""

    question: Question
    supplies: Mapping[str, Supply]
    evaluation: Estimates
    answer: Answer
    """What the planner says."""
    candidates: Sequence[Candidate]
    in_force: Candidate | None
    """The one that would run: the planner's choice, or what spec.placement.fixed says."""


@click.command()
@click.option("-f", "--filename", type=click.File(encoding="utf-8"), required=True, help="LLMDeployment; - is stdin.")
@click.option(
    "--pools",
    "pools_file",
    type=click.File(encoding="utf-8"),
    help="GPUPools, as written by `berth pools discover -o yaml` or `kubectl get gpupools -o yaml`. "
    "By default those in FILENAME, else those of the cluster of the kubeconfig.",
)
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", show_default=True
)
@click.option("--explain", is_flag=True, help="The five factors of the chosen candidate and of the runner-up.")
@click.option(
    "--what-if",
    "changes",
    metavar="KEY=VALUE,...",
    help="Plan as if fields of spec had other values: requestsPerSecond=20, objectives.prefer=Latency; "
    "of a pool: pools.h100.pricePerGPUHour=1.99.",
)
@click.option(
    "--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="Picture to write: .png or .svg."
)
@click.option("--kubeconfig", envvar="KUBECONFIG", help="Cluster whose GPUPools are used if no file has any.")
@click.option("--context", default="", help="Context of the kubeconfig.")
def plan(
    filename: Any,
    pools_file: Any,
    output: str,
    explain: bool,
    changes: str | None,
    picture: Path | None,
    kubeconfig: str | None,
    context: str,
) -> None:
    """Say where a deployment would run, what else was considered, and why.

    \b
    berth plan -f llama-70b.yaml --pools pools.yaml
    berth plan -f llama-70b.yaml --pools pools.yaml --explain --what-if requestsPerSecond=20
    """
    from berth.cli.what_if import Change, apply_changes, parse_changes
    from berth.errors import BerthError

    wanted: list[Change] = []
    if picture is not None:
        from berth.cli.plot import check_name

        check_name(picture)
    try:
        found = documents(filename)
        pools = [*found, *documents(pools_file)] if pools_file is not None else found
        manifests = [document for document in pools if document.get("kind") == "GPUPool"]
        if not manifests:
            manifests = _pools_of_cluster(kubeconfig, context, filename.name)
        deployment = the_deployment(found, filename.name)
        if changes:
            wanted = parse_changes(changes)
            deployment, manifests = apply_changes(deployment, manifests, wanted)
        planned = _planned(parsed_deployment(deployment), [parsed_pool(manifest) for manifest in manifests])
    except (BerthError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if output in ("json", "yaml"):
        click.echo(dump(_document(planned, wanted), output), nl=False)
    else:
        from berth.cli.plan_text import lines

        for line in lines(planned, wanted, wide=output == "wide", factors=explain):
            click.echo(line)
    if picture is not None:
        from berth.cli.plot import draw

        draw(planned, picture)
        click.echo(f"wrote {picture}", err=True)
    if planned.in_force is None or planned.in_force.rejected:
        raise SystemExit(1)


# --- reading ----------------------------------------------------------------------------------------------------------
def _pools_of_cluster(kubeconfig: str | None, context: str, name: str) -> list[dict[str, Any]]:
    from kubernetes.aio.client import ApiClient

    from berth.kube import auth
    from berth.kube.client import KubeClient
    from berth.kube.kinds import GPU_POOL

    path = Path(kubeconfig) if kubeconfig else Path.home() / ".kube" / "config"
    if not path.exists():
        raise ValueError(f"{name} holds no GPUPool, and there is no kubeconfig to ask a cluster: give --pools")

    async def ask() -> list[dict[str, Any]]:
        async with ApiClient(await auth.configuration(str(path), context, plugins=True)) as api:
            listing = await KubeClient(api).list(GPU_POOL)
            return [{**item, "apiVersion": "berth.dev/v1alpha1", "kind": "GPUPool"} for item in listing.items]

    return asyncio.run(ask())


def _planned(deployment: LLMDeployment, pools: Sequence[GPUPool]) -> Planned:
    from berth.core.accept import accept, wanted_groups
    from berth.core.placement.choose import choose
    from berth.core.placement.evaluate import Estimates, Memory
    from berth.core.placement.layouts import Layout
    from berth.core.placement.question import question
    from berth.core.placement.size import size
    from berth.core.placement.supply import supply_of_object
    from berth.core.pools import overlapping

    namespace = deployment.metadata.namespace
    by_name: dict[str, GPUPool] = {}
    for pool in pools:
        if by_name.setdefault(pool.metadata.name, pool) is not pool:
            raise ValueError(f"GPUPool {pool.metadata.name}: is given twice: remove one of them or rename it")
    overlaps = overlapping(pools)
    accept(deployment, by_name, frozenset())
    asked = question(deployment)
    allowed = deployment.spec.placement.pools
    supplies = {
        name: supply_of_object(pool, namespace, overlaps.get(name))
        for name, pool in by_name.items()
        if not allowed or name in allowed
    }
    evaluation = Estimates(asked, supplies, Memory())
    answer = choose(asked, supplies.values(), evaluation)
    candidates, in_force = list(answer.candidates), answer.chosen
    for allocation in deployment.spec.fixed_allocations:
        layout = Layout.of(allocation)
        groups = wanted_groups(deployment, allocation)
        in_force = size(asked, supplies[layout.pool], layout, evaluation, "simulate", groups=groups)
        candidates = [each for each in candidates if each.layout != layout or each is answer.chosen]
        candidates.insert(1 if answer.chosen else 0, in_force)
    return Planned(asked, supplies, evaluation, answer, candidates, in_force)


# --- writing ----------------------------------------------------------------------------------------------------------
def _document(planned: Planned, changes: Sequence[Any]) -> dict[str, Any]:
    """The plan with the field names of status; every candidate."""
    from berth.core.placement import record

    question, answer, evaluation = planned.question, planned.answer, planned.evaluation
    in_force = planned.in_force
    entries = record.candidates_status(question, planned.supplies, evaluation, planned.candidates, in_force)
    document: dict[str, Any] = {"whatIf": {change.key: change.value for change in changes}} if changes else {}
    if in_force is None:
        placed = {"type": "Placed", "status": "False", "reason": answer.reason, "message": answer.words}
        document["conditions"] = [placed]
    else:
        reason = answer.words if in_force is answer.chosen else "fixed by spec.placement.fixed"
        allocation = in_force.layout.allocation(max(in_force.groups, 1))
        document["needed"] = in_force.needed
        document["placement"] = record.dump(record.placement_status(question, in_force, allocation, evaluation, reason))
        document["availability"] = record.dump(record.availability_status(question, in_force))
    return {**document, "candidates": [record.dump(entry) for entry in entries]}
