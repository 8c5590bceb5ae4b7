"""`berth demo`: the whole story on this machine, in a few minutes."""

from __future__ import annotations

import click


@click.command()
@click.option("--name", default="demo", show_default=True, help="Name of its local cluster.")
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end.")
@click.option(
    "--seconds",
    type=click.FloatRange(15, 120),
    default=60,
    show_default=True,
    help="How much of the trace is replayed; the server is killed after a third.",
)
@click.option("--move/--no-move", default=True, help="Whether a pool becomes slow then, and Berth moves.")
def demo(name: str, keep: bool, seconds: float, move: bool) -> None:
    """Serve a 70B model on a local cluster, replay real traffic, kill a server, slow a pool down: what clients see."""
    from berth.cli.local import ended_by_signals, errors
    from berth.local.demo.story import run
    from berth.local.screen import Screen

    with errors(), ended_by_signals():
        run(name, Screen(), keep=keep, length=seconds, move=move)
