"""`kubectl berth status NAME`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from berth.cli.kubectl.cluster import (
    Cluster,
    Object,
    Where,
    cluster_options,
    deployment_argument,
    form_option,
    pool_of,
)

_CLEAR = "\033[H\033[2J"


@click.command()
@deployment_argument
@click.option("-w", "--watch", is_flag=True, help="Again and again, until interrupted.")
@click.option(
    "--interval", type=click.FloatRange(0.5, 3600), default=2.0, show_default=True, help="Seconds between two looks."
)
@form_option
@cluster_options
def status(name: str, watch: bool, interval: float, output: str, where: Where) -> None:
    """Say whether a deployment serves, where, how well, and what happened last.

    \b
    kubectl berth status llama-70b
    kubectl berth status llama-70b --watch
    """

    async def look(cluster: Cluster) -> tuple[Object, Object | None, str]:
        found = await cluster.deployment(name)
        live = (await cluster.live([found])).get(found["metadata"]["uid"])
        return found, live, await cluster.currency(pool_of(found))

    screen = sys.stdout.isatty()
    shown = ""
    while True:
        text = _shown(*where.run(look), output)
        if text != shown:
            click.echo((_CLEAR if watch and screen else "") + text, nl=False)
            shown = text
        if not watch:
            return
        time.sleep(interval)


def _shown(found: Object, live: Object | None, currency: str, output: str) -> str:
    from berth.cli.output import dump, printable

    if output == "text":
        from berth.cli.kubectl.status_text import lines

        return "".join(f"{printable(line)}\n" for line in lines(found, time.time(), live, currency))

    metadata = found["metadata"]
    told: dict[str, Any] = {"namespace": metadata["namespace"], "name": metadata["name"]}
    return dump({**told, "status": found.get("status") or {}, **({"live": live} if live else {})}, output)
