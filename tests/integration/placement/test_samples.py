"""Every sample as it is checked in, on a real control plane: applied, placed, and every group served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth

SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"
DEPLOYMENTS = sorted(path.name for path in SAMPLES.glob("*.yaml") if path.name != "pools.yaml")
GPUS = {"h100": "H100-SXM-80", "a100-40": "A100-SXM-40"}


def with_pools(spec: dict[str, Any], names: dict[str, str]) -> None:
    """Pools are cluster-wide: the test's own in place of those that the sample names."""
    placement = spec.setdefault("placement", {})
    if "fixed" in placement:
        for allocation in placement["fixed"]["allocations"]:
            allocation["pool"] = names[allocation["pool"]]
    else:
        placement["pools"] = [names[pool] for pool in placement.get("pools", GPUS)]


@pytest.mark.parametrize("file", DEPLOYMENTS)
async def test_a_sample_is_placed_and_serves(site: Site, berth: RunningBerth, file: str) -> None:
    pools = {
        each["metadata"]["name"]: each["spec"] for each in yaml.safe_load_all((SAMPLES / "pools.yaml").read_text())
    }
    own = {
        name: await site.pool(
            pools[name]["gpu"], 3, pools[name]["gpusPerNode"], pricePerGPUHour=pools[name]["pricePerGPUHour"]
        )
        for name in GPUS
    }
    for claim in ("models", "engines"):
        spec = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
        await site.cluster.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": site.namespace},
                "spec": spec,
            }
        )
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
