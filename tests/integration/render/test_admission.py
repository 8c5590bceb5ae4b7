"""Every golden manifest against the real API server: its schema, its validation, its Pod Security admission."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import ApiError, Cluster, Manifest

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


@pytest.fixture
async def restricted(cluster: Cluster) -> AsyncIterator[str]:
    """A namespace that admits restricted pods only, beside what the manifests refer to and admission looks up."""
    await cluster.install_crds()
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}}
    await cluster.apply(priority | {"value": 1000})
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
    await cluster.apply(runtime | {"handler": "nvidia"})
    async with cluster.namespace(f"rendered-{secrets.token_hex(4)}", labels=RESTRICTED) as name:
        yield name


def golden(name: str, namespace: str) -> list[Manifest]:
    manifests = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    for manifest in manifests:
        manifest["metadata"]["namespace"] = namespace
    return manifests


def golden_pod(name: str, namespace: str) -> Manifest:
    return next(manifest for manifest in golden(name, namespace) if manifest["kind"] == "Pod")


async def refusal(cluster: Cluster, manifest: Manifest) -> str:
    """The server's words against it."""
    with pytest.raises(ApiError) as refused:
        await cluster.create(manifest, dry_run=True)
    return refused.value.message


async def test_admission_is_watching(cluster: Cluster, restricted: str) -> None:
    pod = golden_pod("pytorch-claim", restricted)
    del pod["spec"]["securityContext"]
    assert "violates PodSecurity" in await refusal(cluster, pod)


async def test_the_schema_is_strict(cluster: Cluster, restricted: str) -> None:
    pod = golden_pod("pytorch-claim", restricted)
    pod["spec"]["containers"][0]["commands"] = ["typing error"]
    assert "unknown field" in await refusal(cluster, pod)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
async def test_the_server_would_store_every_golden_manifest_as_it_was_rendered(
    cluster: Cluster, restricted: str, name: str
) -> None:
    """Defaults it adds are fine; a value it changed would be repaired at every pass."""
    for wanted in golden(name, restricted):
        assert differences(wanted, await cluster.create(wanted, dry_run=True)) == []


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    if isinstance(wanted, dict):
        return [text for key, value in wanted.items() for text in differences(value, found.get(key), f"{path}.{key}")]
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return [f"{path}: {len(wanted)} became {len(found)}"]
        pairs = zip(wanted, found, strict=True)
        return [text for number, pair in enumerate(pairs) for text in differences(*pair, f"{path}[{number}]")]
    return [] if wanted == found else [f"{path}: {wanted!r} became {found!r}"]
