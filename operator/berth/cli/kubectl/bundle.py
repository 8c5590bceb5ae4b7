"""`kubectl berth support-bundle`: what somebody needs to help, in one archive, without anything that authorises.

Only what the person may read is in it; what could not be read is listed. Secrets are never asked for.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from berth.cli.kubectl import redact
from berth.cli.kubectl.cluster import Cluster, Object, Where, cluster_options, deployment_argument

LOG_LINES: Final = 2000
MOST_PODS: Final = 100
"""Pods whose logs are taken."""
_SAFE: Final = re.compile("[^A-Za-z0-9._-]")


@click.command("support-bundle")
@deployment_argument
@click.option(
    "-f",
    "--filename",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Archive to write; by default berth-NAME-TIME.tar.gz.",
)
@click.option("--no-logs", is_flag=True, help="Leave logs out: they may hold what clients sent.")
@click.option("--operator-namespace", default="berth-system", show_default=True, help="For the operator's own log.")
@cluster_options
def support_bundle(name: str, filename: Path | None, no_logs: bool, operator_namespace: str, where: Where) -> None:
    """Write an archive of all that explains a deployment, redacted: look through it before you send it.

    \b
    kubectl berth support-bundle llama-70b
    """
    path = filename or Path(f"berth-{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz")

    async def gather(cluster: Cluster) -> dict[str, str]:
        return await contents(cluster, name, operator_namespace, logs=not no_logs)

    files = where.run(gather)
    try:
        path.touch(mode=0o600)
        path.write_bytes(archive(path.name.removesuffix(".tar.gz"), files, time.time()))
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None
    left_out = files["missing.txt"].count("\n")
    click.echo(f"wrote {path}: {len(files)} files" + (f", {left_out} things could not be read" if left_out else ""))
    click.echo("values of environment variables and credentials are taken out; look through it before you send it")


async def contents(cluster: Cluster, name: str, operator_namespace: str, *, logs: bool) -> dict[str, str]:
    """Text by path inside the archive."""
    from berth import labels
    from berth.cli.kubectl.cluster import optional
    from berth.cli.kubectl.events import of_namespace, sorted_events
    from berth.kube import kinds

    deployment = await cluster.deployment(name)
    uid = deployment["metadata"]["uid"]
    missing: list[str] = []
    files = {"deployment.yaml": _yaml([deployment])}
    own = f"{labels.DEPLOYMENT_UID}={uid}"
    pods: Sequence[Object] = ()
    for kind in (kinds.REPLICA_GROUP, kinds.POD, kinds.SERVICE, kinds.CONFIG_MAP, kinds.POD_DISRUPTION_BUDGET):
        async with optional(missing, kind.plural):
            found = (await cluster.client.list(kind, cluster.namespace, label_selector=own)).items
            # What Berth puts into ConfigMaps is its own program: its name says which.
            shown = [{k: v for k, v in each.items() if k not in ("data", "binaryData")} for each in found]
            files[f"{kind.plural}.yaml"] = _yaml(shown)
            pods = found if kind is kinds.POD else pods
    for kind in (kinds.GPU_POOL, kinds.NODE):
        async with optional(missing, kind.plural):
            files[f"{kind.plural}.yaml"] = _yaml((await cluster.client.list(kind)).items)
    async with optional(missing, "events"):
        files["events.yaml"] = _yaml(sorted_events(await of_namespace(cluster), deployment))
    live_missing: list[str] = []
    files["live.json"] = json.dumps(await cluster.live([deployment], live_missing), indent=2) + "\n"
    missing += [f"live figures: {each}" for each in live_missing]
    if logs:
        await _logs(cluster, pods, files, missing)
        async with optional(missing, "the operator's pods"):
            selector = "app.kubernetes.io/name=berth,app.kubernetes.io/component=operator"
            listing = await cluster.client.list(kinds.POD, operator_namespace, label_selector=selector)
            await _logs(cluster, listing.items, files, missing)
    files["missing.txt"] = "".join(f"{redact.text(' '.join(line.split()))}\n" for line in missing)
    return files


async def _logs(cluster: Cluster, pods: Iterable[Object], files: dict[str, str], missing: list[str]) -> None:
    """The end of each container's log, and of the life before it, where there was one."""
    from berth.cli.kubectl.cluster import optional

    async def take(namespace: str, pod: str, container: str, *, previous: bool) -> None:
        what = f"{pod}-{container}{'-previous' if previous else ''}"
        async with optional(missing, f"log of {what}"):
            log = await cluster.client.log(namespace, pod, container, previous=previous, lines=LOG_LINES)
            files[f"logs/{_SAFE.sub('_', what)}.txt"] = redact.text(log)

    await asyncio.gather(
        *(
            take(pod["metadata"]["namespace"], pod["metadata"]["name"], container["name"], previous=previous)
            for pod in list(pods)[:MOST_PODS]
            for container in (pod.get("status") or {}).get("containerStatuses") or ()
            for previous in ((False, True) if container.get("restartCount") else (False,))
        )
    )


def _yaml(objects: Iterable[Object]) -> str:
    import yaml

    return str(yaml.safe_dump_all([redact.manifest(each) for each in objects], sort_keys=False))


def archive(folder: str, files: dict[str, str], at: float) -> bytes:
    """A .tar.gz with everything in one folder, readable by its owner alone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in sorted(files.items()):
            data = content.encode(errors="replace")
            entry: Any = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(at), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
