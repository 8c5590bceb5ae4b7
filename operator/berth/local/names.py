"""Names on loopback: what DNS answers in a cluster, as one hosts file per namespace.

Containers get the path of their namespace's file in BERTH_HOSTS_FILE (docs/designs/006-launcher.md). It holds the
members of groups (`hostname.subdomain`, before they are ready, as headless Services with `publishNotReadyAddresses`
have it) and the Services. Files are replaced whole, so a reader never sees half of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

CLUSTER_DOMAIN = "svc.cluster.local"


def hosts(
    pods: Iterable[Mapping[str, Any]],
    services: Iterable[Mapping[str, Any]],
    address: Callable[[str, str], str | None],
) -> dict[str, str]:
    """Content of the hosts file by namespace; `address(namespace, name)` is that of a Service."""
    lines: dict[str, list[str]] = {}
    for pod in pods:
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        at = pod.get("status", {}).get("podIP")
        alive = pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        if at and alive and spec.get("hostname") and spec.get("subdomain"):
            name = f"{spec['hostname']}.{spec['subdomain']}"
            lines.setdefault(namespace, []).append(_line(at, name, namespace))
    for service in services:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        if at := address(namespace, name):
            lines.setdefault(namespace, []).append(_line(at, name, namespace))
    return {namespace: "".join(sorted(each)) for namespace, each in lines.items()}


def write_hosts(folder: Path, files: Mapping[str, str]) -> None:
    """Makes the files of `folder` be exactly these."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_text() != content:
            partial = folder / f".{name}.new"
            partial.write_text(content)
            partial.replace(path)


def _line(address: str, name: str, namespace: str) -> str:
    return f"{address} {name} {name}.{namespace} {name}.{namespace}.{CLUSTER_DOMAIN}\n"
