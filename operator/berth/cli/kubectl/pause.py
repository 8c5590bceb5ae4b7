"""`kubectl berth pause` and `resume`: spec.pause, without an editor."""

from __future__ import annotations

from typing import Final

import click

from berth.cli.kubectl.cluster import Cluster, Where, cluster_options, deployment_argument, form_option

MEANING: Final = {
    "None": "Berth acts",
    "Changes": "failed groups are replaced, nothing else changes",
    "All": "hands off, failed groups are not replaced either",
}


@click.command()
@deployment_argument
@click.option("--all", "everything", is_flag=True, help="Replace no failed groups either.")
@form_option
@cluster_options
def pause(name: str, everything: bool, output: str, where: Where) -> None:
    """Hold changes of a deployment back: no update, no scaling, no move.

    \b
    kubectl berth pause llama-70b
    """
    _set(where, name, "All" if everything else "Changes", output)


@click.command()
@deployment_argument
@form_option
@cluster_options
def resume(name: str, output: str, where: Where) -> None:
    """Let Berth act again."""
    _set(where, name, "None", output)


def _set(where: Where, name: str, wanted: str, output: str) -> None:
    async def change(cluster: Cluster) -> str:
        from berth.kube.kinds import LLM_DEPLOYMENT

        found = await cluster.deployment(name)
        before = str(found["spec"].get("pause", "None"))
        if before != wanted:
            patch = {"spec": {"pause": wanted}}
            uid = found["metadata"]["uid"]
            await cluster.client.merge_patch(
                LLM_DEPLOYMENT, cluster.namespace, name, patch, uid=uid, manager="kubectl-berth"
            )
        return before

    before = where.run(change)
    if output != "text":
        from berth.cli.output import dump

        click.echo(dump({"name": name, "before": before, "pause": wanted}, output), nl=False)
        return
    change_told = f"pause {before} -> {wanted}" if before != wanted else f"pause is {wanted} already"
    click.echo(f"{name}: {change_told}: {MEANING[wanted]}")
