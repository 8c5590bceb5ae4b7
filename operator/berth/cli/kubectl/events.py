"""`kubectl berth events NAME`: what happened to a deployment, its groups and its pods, in order of time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from berth.cli.kubectl.cluster import Cluster, Object, Where, cluster_options, deployment_argument, form_option


@click.command()
@deployment_argument
@click.option("--warnings", is_flag=True, help="Leave out what is normal.")
@form_option
@cluster_options
def events(name: str, warnings: bool, output: str, where: Where) -> None:
    """List what happened to a deployment, its groups and its pods, oldest first.

    \b
    kubectl berth events llama-70b
    """

    async def look(cluster: Cluster) -> list[Object]:
        deployment = await cluster.deployment(name)
        return [_slim(each) for each in sorted_events(await of_namespace(cluster), deployment)]

    found = [each for each in where.run(look) if not warnings or each.get("type") == "Warning"]
    from berth.cli.output import dump, printable

    if output == "text":
        for line in lines(found, time.time()):
            click.echo(printable(line))
        return
    click.echo(dump({"apiVersion": "v1", "kind": "List", "items": found}, output), nl=False)


async def of_namespace(cluster: Cluster) -> list[Object]:
    """As the core API shows them, which is what the role view lets people read."""
    from berth.kube.kinds import Kind

    listing = await cluster.client.list(Kind("", "v1", "Event", "events"), cluster.namespace)
    return list(listing.items)


def sorted_events(found: Iterable[Object], deployment: Mapping[str, Any]) -> list[Object]:
    """Those of the deployment, its groups and its pods; what was told of two objects at once, once."""
    from berth.core.render.names import DeploymentRef, replica_group_name

    metadata = deployment["metadata"]
    reference = DeploymentRef(metadata["name"], metadata["namespace"], metadata["uid"])
    group = re.compile(re.escape(replica_group_name(reference, 0, 0).removesuffix("0-0")) + "[0-9]+-.*")

    def ours(event: Mapping[str, Any]) -> bool:
        about = event.get("involvedObject") or {}
        if about.get("kind") == "LLMDeployment":
            return bool(about.get("uid", metadata["uid"]) == metadata["uid"] and about.get("name") == metadata["name"])
        return about.get("kind") in ("ReplicaGroup", "Pod") and group.fullmatch(about.get("name", "")) is not None

    told: set[tuple[Any, ...]] = set()
    kept = []
    # What a deployment and its group both tell stands with the deployment.
    for event in sorted(filter(ours, found), key=lambda each: (_at(each)[:19], _rank(each), _at(each))):
        key = (event.get("reason"), event.get("message"), _at(event)[:19])
        if key not in told:
            told.add(key)
            kept.append(event)
    return kept


def lines(found: Iterable[Object], now: float) -> Iterator[str]:
    """A table, oldest first."""
    from berth.cli.output import age, table
    from berth.core.timestamps import unix_seconds

    rows = [["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]]
    for event in found:
        at = unix_seconds(_last(event))
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        times = f" (x{count})" if count > 1 else ""
        message = " ".join(str(event.get("message", "")).split())
        since = age(None if at is None else now - at)
        about = event["involvedObject"]["name"]
        rows.append([since, event.get("type", "-"), event.get("reason", "-"), about, message + times])
    if len(rows) == 1:
        yield "nothing happened lately (the API server forgets events, usually after an hour)"
    else:
        yield from table(rows, gap="   ")


def _slim(event: Object) -> Object:
    """Without managedFields, as kubectl shows it."""
    metadata = {name: value for name, value in event["metadata"].items() if name != "managedFields"}
    return {**event, "metadata": metadata}


def _at(event: Mapping[str, Any]) -> str:
    """When it was first told."""
    return str(event.get("eventTime") or event.get("firstTimestamp") or event["metadata"].get("creationTimestamp"))


def _last(event: Mapping[str, Any]) -> str:
    return str((event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp") or _at(event))


def _rank(event: Mapping[str, Any]) -> int:
    return 0 if event["involvedObject"]["kind"] == "LLMDeployment" else 1
