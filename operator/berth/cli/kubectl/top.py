"""`kubectl berth top`: what every deployment does now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import click

from berth.cli.kubectl.cluster import Cluster, Object, Where, cluster_options, form_option

UNKNOWN: Final = "-"
FIGURES: Final = {
    "requestsPerSecond": "REQ/S",
    "outputTokensPerSecond": "TOK/S",
    "running": "RUNNING",
    "waiting": "WAITING",
    "ttftP95": "TTFT P95",
    "tpotP95": "TPOT P95",
}
"""Field of the live figures, and head of its column."""


@click.command()
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Not only those of one namespace.")
@click.option("--groups", is_flag=True, help="A line for each group, too.")
@form_option
@cluster_options
def top(everywhere: bool, groups: bool, output: str, where: Where) -> None:
    """Show what every deployment does now: requests, tokens, latencies.

    Live figures are of the last five minutes; where the operator cannot be asked, latencies are those of status.

    \b
    kubectl berth top
    kubectl berth top -A --groups
    """

    async def look(cluster: Cluster) -> tuple[list[Object], dict[str, Object], list[str]]:
        found = await cluster.deployments(everywhere=everywhere)
        missing: list[str] = []
        return found, await cluster.live(found, missing), missing

    found, live, missing = where.run(look)
    rows = [entry(each, live.get(each["metadata"]["uid"])) for each in found]
    from berth.cli.output import dump, printable

    if output == "text":
        for line in lines(rows, namespaces=everywhere, groups=groups):
            click.echo(printable(line))
        for words in missing if found else ():
            click.echo(f"no live figures: {words}", err=True)
        return
    click.echo(dump(rows, output), nl=False)


def entry(deployment: Mapping[str, Any], live: Mapping[str, Any] | None) -> dict[str, Any]:
    """One deployment: identity, how many groups serve, and figures as far as they are known."""
    metadata, summary = deployment["metadata"], (deployment.get("status") or {}).get("summary") or {}
    told = {"namespace": metadata["namespace"], "name": metadata["name"]}
    told |= {field: summary[field] for field in ("ready", "placement") if field in summary}
    fresh = live is not None and live.get("fresh")
    figures = live if live is not None and fresh else {}
    old = {field: summary[field] for field in ("ttftP95", "tpotP95") if summary.get(field, UNKNOWN) != UNKNOWN}
    told |= {field: value for field in FIGURES if (value := {**old, **figures}.get(field)) is not None}
    told["live"] = bool(fresh)
    if live and live.get("groups"):
        told["groups"] = live["groups"]
    return told


def lines(rows: Iterable[Mapping[str, Any]], *, namespaces: bool, groups: bool) -> Iterator[str]:
    """A table."""
    from berth.cli.output import table

    heads = ["NAMESPACE"] if namespaces else []
    cells = [[*heads, "NAME", "READY", "PLACEMENT", *FIGURES.values(), *(["KV"] if groups else [])]]
    for row in rows:
        start = [row["namespace"]] if namespaces else []
        start += [row["name"], row.get("ready", UNKNOWN), row.get("placement", UNKNOWN)]
        cells.append([*start, *_figures(row), *([""] if groups else [])])
        for group in (row.get("groups") or ()) if groups else ():
            own = [""] if namespaces else []
            cells.append([*own, f"  {group['name']}", "", "", *_figures(group), group.get("kvUse", UNKNOWN)])
    yield from table(cells, gap="   ") if len(cells) > 1 else ["no deployments here: choose a namespace with -n, or -A"]


def _figures(told: Mapping[str, Any]) -> list[str]:
    return [str(told.get(field, UNKNOWN)) for field in FIGURES]
