"""`kubectl berth explain NAME`: why it runs where it runs, and what else was considered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from berth.cli.kubectl.cluster import Cluster, Object, Where, cluster_options, deployment_argument, form_option, pool_of

FACTORS = ("communication", "parallelism", "batch", "bandwidth", "failure")


@click.command()
@deployment_argument
@form_option
@cluster_options
def explain(name: str, output: str, where: Where) -> None:
    """Say why a deployment runs where it runs, and why not elsewhere.

    \b
    kubectl berth explain llama-70b
    """

    async def look(cluster: Cluster) -> tuple[Object, str]:
        found = await cluster.deployment(name)
        return found, await cluster.currency(pool_of(found))

    found, currency = where.run(look)
    from berth.cli.output import dump, printable

    if output == "text":
        for line in lines(found, currency):
            click.echo(printable(line))
        return
    status = found.get("status") or {}
    parts = {key: status[key] for key in ("placement", "availability", "candidates", "calibration") if key in status}
    click.echo(dump({"name": name, **parts}, output), nl=False)


def lines(deployment: Mapping[str, Any], currency: str = "") -> Iterator[str]:
    """What was asked, the candidates, why, the five factors, what measurements corrected."""
    status, spec = deployment.get("status") or {}, deployment["spec"]
    placement = status.get("placement") or {}
    yield _asked(spec)
    yield ""
    candidates = status.get("candidates") or ()
    if candidates:
        yield from _table(candidates, currency)
        yield ""
    elif (spec.get("placement") or {}).get("mode") == "Fixed":
        yield "spec.placement.fixed decides; `berth plan` says what Berth would choose"
    if placement.get("reason"):
        limit = f"; limited by {placement['limitedBy']}" if placement.get("limitedBy") else ""
        yield f"why: {placement['reason']}{limit}"
    if not status:
        yield "nothing is decided yet: is the operator running?"
    for each in status.get("conditions") or ():
        outdated = (each["type"], each["status"]) == ("PlacementOutdated", "True")
        if outdated or (each["type"] in ("Accepted", "Placed", "AvailabilityTargetMet") and each["status"] == "False"):
            yield f"{each['type']} is {each['status']}: {each.get('message', '')}"
    for candidate in candidates:
        factors = candidate.get("factors")
        if factors:
            yield ""
            yield f"{_where(candidate)}{'' if candidate.get('chosen') else ' (runner-up)'}"
            yield from (f"  {factor:14}{factors[factor]}" for factor in FACTORS if factor in factors)
    yield from _calibration(status)


def _asked(spec: Mapping[str, Any]) -> str:
    """The question in a line, in the words of spec."""
    from berth.cli.output import duration

    model = spec["model"].get("name") or "a model of spec.model.architecture"
    traffic, objectives = spec.get("traffic") or {}, spec.get("objectives") or {}
    parts = [model]
    if "requestsPerSecond" in traffic:
        parts[0] += f", {traffic['requestsPerSecond']} req/s"
    elif "concurrency" in traffic:
        parts[0] += f", {traffic['concurrency']} clients"
    if traffic:
        parts[0] += f" of {traffic['inputTokens']['mean']} in / {traffic['outputTokens']['mean']} out"
    bounds = [
        f"{word} p95 <= {duration(objectives[field]['p95'])}"
        for field, word in (("timeToFirstToken", "TTFT"), ("timePerOutputToken", "TPOT"))
        if field in objectives
    ]
    if "availability" in objectives:
        bounds.append(f"availability {objectives['availability']}")
    prefer = objectives.get("prefer", "Cost")
    return f"{parts[0]}; {', '.join(bounds) or 'no objectives'}; prefers {prefer}"


def _table(candidates: Any, currency: str) -> list[str]:
    from berth.cli.output import table

    sign = currency or "COST"
    heads = ["#", "POOL", "PRECISION", "TP", "PP", "GROUPS", "GPUS", f"{sign}/H", f"{sign}/1M TOK"]
    rows = [[*heads, "TTFT P95", "TPOT P95", "LOAD", "AVAIL", "LIMITED BY", ""]]
    for number, each in enumerate(candidates, 1):
        (allocation, *_) = each["allocations"]
        split = [str(allocation.get(key, 1)) for key in ("tensorParallel", "pipelineParallel", "groups")]
        start = [allocation["pool"], allocation.get("precision", allocation["variant"]), *split]
        start += [str(each.get("gpus", "-")), each.get("costPerHour", "-"), each.get("costPerMillionOutputTokens", "-")]
        mark = "<- in force" if each.get("chosen") else ""
        if each.get("rejected") and not each.get("chosen"):
            rows.append(["-", *start, each["rejected"]])
            continue
        predicted = each.get("predicted") or {}
        load = f"{float(each['load']):.0%}" if "load" in each else "-"
        figures = [predicted.get("ttftP95", "-"), predicted.get("tpotP95", "-"), load]
        rows.append([str(number), *start, *figures, each.get("availability", "-"), each.get("limitedBy", "-"), mark])
    return table(rows, indent="  ")


def _where(candidate: Mapping[str, Any]) -> str:
    from berth.core.placement.tell import describe

    return describe(candidate["allocations"][0])


def _calibration(status: Mapping[str, Any]) -> Iterator[str]:
    from berth.cli.output import table

    learned = status.get("calibration") or ()
    if learned:
        yield ""
        yield "learned from measurements"
        rows = [["scope", "metric", "measured/predicted", "samples"]]
        rows += [[e["scope"], e["metric"], e["factor"], str(e.get("samples", "-"))] for e in learned]
        yield from table(rows, indent="  ")
