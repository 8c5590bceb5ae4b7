"""Every sample as it is checked in, on a real control plane: applied, placed, and every group served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth

SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"
DEPLOYMENTS = sorted(path.name for path in SAMPLES.glob("*.yaml") if path.name != "pools.yaml")


def with_pools(spec: dict[str, Any], names: dict[str, str]) -> None:
    """Pools are cluster-wide: the test's own in place of those that the sample names."""
    placement = spec.setdefault("placement", {})
    if "fixed" in placement:
        for allocation in placement["fixed"]["allocations"]:
            allocation["pool"] = names[allocation["pool"]]
    else:
        placement["pools"] = [names[pool] for pool in placement.get("pools", names)]


def volume(site: Site, claim: str) -> list[dict[str, Any]]:
    """A claim that is bound: weights that somebody has put there."""
    name, size = f"{claim}-{site.tag}", {"storage": "1Gi"}
    shared = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    owner = {"namespace": site.namespace, "name": claim}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {**shared, "capacity": size, "hostPath": {"path": "/weights"}, "claimRef": owner},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": owner,
            "spec": {**shared, "resources": {"requests": size}, "volumeName": name},
        },
    ]


@pytest.fixture
async def prepared(site: Site) -> AsyncIterator[Site]:
    """What samples take as given: claims with weights, a priority class."""
    urgent = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "inference"},
        "value": 1000,
    }
    for manifest in (urgent, *volume(site, "models"), *volume(site, "engines")):
        await site.cluster.create(manifest)
    yield site
    await site.cluster.delete("priorityclasses", "inference")
    for claim in ("models", "engines"):
        await site.cluster.delete("persistentvolumes", f"{claim}-{site.tag}")


@pytest.mark.parametrize("file", DEPLOYMENTS)
async def test_a_sample_is_placed_and_serves(prepared: Site, berth: RunningBerth, file: str) -> None:
    site, pools = prepared, yaml.safe_load_all((SAMPLES / "pools.yaml").read_text())
    own = {}
    for pool in pools:
        spec = pool["spec"]
        price = spec["pricePerGPUHour"]
        own[pool["metadata"]["name"]] = await site.pool(spec["gpu"], 3, spec["gpusPerNode"], pricePerGPUHour=price)
    names = []
    for manifest in yaml.safe_load_all((SAMPLES / file).read_text()):
        manifest["metadata"]["namespace"] = site.namespace
        if manifest["kind"] == "LLMDeployment":
            with_pools(manifest["spec"], own)
            names.append(manifest["metadata"]["name"])
        await site.cluster.create(manifest)
    assert names, f"{file} holds no LLMDeployment"
    for name in names:
        status = (await site.settled(name))["status"]
        assert status["readyReplicas"] == status["replicas"] > 0
        assert status["summary"]["message"] == "Ready"
