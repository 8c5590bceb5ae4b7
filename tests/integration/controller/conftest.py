"""Two pools of simulated GPU nodes, and an LLMDeployment to vary."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from berth.local.kwok import Kwok, gpu_node
from tests.support.berth import RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import Cluster, eventually

POOL_LABEL = "tests.berth.dev/pool"
PRODUCTS = {"H100-SXM-80": "NVIDIA-H100-80GB-HBM3", "A100-SXM-40": "NVIDIA-A100-SXM4-40GB"}


@dataclass
class Site:
    """A namespace, pools and nodes of a test's own, and helpers that speak of deployments."""

    cluster: Cluster
    namespace: str
    tag: str

    async def pool(self, gpu: str = "H100-SXM-80", nodes: int = 2, gpus: int = 8, **spec: Any) -> str:
        """A pool of new nodes, alternating over zones a and b; returns its name."""
        name = f"{'h100' if 'H100' in gpu else 'a100'}-{self.tag}-{secrets.token_hex(2)}"
        for index in range(nodes):
            zone = "ab"[index % 2]
            await self.cluster.create(
                gpu_node(f"{name}-{index}", product=PRODUCTS[gpu], gpus=gpus, zone=zone, labels={POOL_LABEL: name})
            )
        await self.cluster.create(
            {
                "apiVersion": "berth.dev/v1alpha1",
                "kind": "GPUPool",
                "metadata": {"name": name},
                "spec": {
                    "gpu": gpu,
                    "nodeSelector": {POOL_LABEL: name},
                    "resourceName": "nvidia.com/gpu",
                    "gpusPerNode": gpus,
                    "pricePerGPUHour": "2.99",
                    **spec,
                },
            }
        )
        return name

    def deployment(
        self, pool: str, name: str = "llama", *, tp: int = 2, pp: int = 1, groups: int = 2
    ) -> dict[str, Any]:
        allocation = {"pool": pool, "variant": "bf16", "tensorParallel": tp, "pipelineParallel": pp, "groups": groups}
        source = {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}}
        return {
            "apiVersion": "berth.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {
                    "name": "llama-3.1-8b-instruct",
                    "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
                },
                "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
                "engine": {"backend": "simulated"},
            },
        }

    async def get(self, name: str = "llama") -> dict[str, Any]:
        return await self.cluster.get("llmdeployments", name, self.namespace)

    async def pods(self) -> list[dict[str, Any]]:
        return await self.cluster.list("pods", self.namespace)

    async def groups(self) -> list[dict[str, Any]]:
        return await self.cluster.list("replicagroups", self.namespace)

    async def patch(self, body: dict[str, Any], name: str = "llama") -> dict[str, Any]:
        return await self.cluster.patch("llmdeployments", name, self.namespace, body)

    async def until(
        self, condition: str, status: str = "True", name: str = "llama", timeout: float = 30
    ) -> dict[str, Any]:
        """The deployment, once its condition of this generation has the status."""

        async def check() -> dict[str, Any] | None:
            found = await self.get(name)
            for each in found.get("status", {}).get("conditions", ()):
                current = each["observedGeneration"] == found["metadata"]["generation"]
                if each["type"] == condition and each["status"] == status and current:
                    return found
            raise AssertionError(f"{condition} is not {status}: {found.get('status')}")

        return await eventually(check, timeout=timeout)

    async def settled(self, name: str = "llama", timeout: float = 40) -> dict[str, Any]:
        """The deployment, once all wanted groups serve and nothing is on its way in or out."""
        await self.until("Ready", name=name, timeout=timeout)
        return await self.until("Progressing", "False", name=name, timeout=timeout)


@pytest.fixture(scope="session")
def leaders() -> ScriptedLeaders:
    return ScriptedLeaders()


@pytest.fixture
async def site(cluster: Cluster, kwok: Kwok, namespace: str) -> AsyncIterator[Site]:
    await cluster.install_crds()
    tag = secrets.token_hex(3)
    yield Site(cluster, namespace, tag)
    for kind in ("gpupools", "nodes"):
        for each in await cluster.list(kind):
            if f"-{tag}-" in each["metadata"]["name"]:
                await cluster.delete(kind, each["metadata"]["name"])


@pytest.fixture
async def berth(kubeconfig: Path, site: Site) -> AsyncIterator[RunningBerth]:
    """An operator for the test's namespace."""
    async with running_berth(kubeconfig, site.namespace) as running:
        yield running
