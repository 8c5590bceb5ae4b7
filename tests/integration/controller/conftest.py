"""Two pools of simulated GPU nodes, and an LLMDeployment to vary."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from berth.local.kwok import Kwok, gpu_node
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import PATIENCE, Cluster, eventually
from tests.support.manifests import fixed_deployment
from tests.support.rights import nothing_is_refused

POOL_LABEL = "tests.berth.dev/pool"
QUICK = {"node_late": 5.0, "node_silent": 8.0, "gpu_fault_hold": 1.0, "node_stable": 600.0}
"""Settings of a Berth that believes in the death of a node sooner: simulated nodes renew their Leases every 2 s."""
PRODUCTS = {"H100-SXM-80": "NVIDIA-H100-80GB-HBM3", "A100-SXM-40": "NVIDIA-A100-SXM4-40GB"}


@dataclass
class Change:
    """One event of a watch."""

    type: str
    object: dict[str, Any]

    @property
    def version(self) -> int:
        """One counter for all kinds: the order in which the server took the writes."""
        return int(self.object["metadata"]["resourceVersion"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


@dataclass
class Site:
    """A namespace, pools and nodes of a test's own, and helpers that speak of deployments."""

    cluster: Cluster
    namespace: str
    tag: str
    leaders: ScriptedLeaders = field(default_factory=ScriptedLeaders)
    """What the leaders say to an operator that is started with them."""
    clock: Clock = field(default_factory=Clock)
    """The time of day of an operator that is started with it."""

    async def pool(self, gpu: str = "H100-SXM-80", nodes: int = 2, gpus: int = 8, **spec: Any) -> str:
        """A pool of new nodes, alternating over zones a and b; returns its name."""
        name = f"{'h100' if 'H100' in gpu else 'a100'}-{self.tag}-{secrets.token_hex(2)}"
        await asyncio.gather(*(self.node(name, index, gpu, gpus) for index in range(nodes)))
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

    async def node(self, pool: str, index: int, gpu: str = "H100-SXM-80", gpus: int = 8) -> str:
        """Another node of the pool, ready; returns its name."""
        name, zone = f"{pool}-{index}", "ab"[index % 2]
        manifest = gpu_node(name, product=PRODUCTS[gpu], gpus=gpus, zone=zone, labels={POOL_LABEL: pool})
        await self.cluster.create(manifest)

        async def ready() -> bool:
            node = await self.cluster.get("nodes", name)
            conditions = {each["type"]: each["status"] for each in node["status"].get("conditions", ())}
            return conditions.get("Ready") == "True" and not node["spec"].get("taints")

        await eventually(ready)
        return name

    async def revive(self, *nodes: str) -> None:
        """Silent nodes come back; as kubelets do, they say again that their pods are ready, which was denied."""
        for node in nodes:
            await self.cluster.revive_node(node)

        async def nodes_ready() -> bool:
            for node in nodes:
                conditions = (await self.cluster.get("nodes", node))["status"]["conditions"]
                assert ("Ready", "True") in {(each["type"], each["status"]) for each in conditions}, conditions
            return True

        await eventually(nodes_ready)
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        for pod in await self.pods():
            if pod["spec"].get("nodeName") in nodes:
                name = pod["metadata"]["name"]
                await self.cluster.patch("pods", name, self.namespace, ready, subresource="status", strategic=True)

    def deployment(
        self, pool: str, name: str = "llama", *, tp: int = 2, pp: int = 1, groups: int = 2
    ) -> dict[str, Any]:
        return fixed_deployment(name, self.namespace, pool, tp=tp, pp=pp, groups=groups)

    async def get(self, name: str = "llama") -> dict[str, Any]:
        return await self.cluster.get("llmdeployments", name, self.namespace)

    async def pods(self, name: str = "") -> list[dict[str, Any]]:
        """All pods, or those made for one deployment, by name and not by labels."""
        return [each for each in await self.cluster.list("pods", self.namespace) if _made_for(name, each)]

    async def groups(self, name: str = "") -> list[dict[str, Any]]:
        return [each for each in await self.cluster.list("replicagroups", self.namespace) if _made_for(name, each)]

    async def create(self, manifest: dict[str, Any], **spec: Any) -> dict[str, Any]:
        """Create a deployment with these top-level fields of its spec changed."""
        manifest["spec"] |= spec
        return await self.cluster.create(manifest)

    async def scale(self, groups: int, name: str = "llama") -> None:
        found = await self.get(name)
        placement = found["spec"]["placement"]
        placement["fixed"]["allocations"][0]["groups"] = groups
        await self.patch({"spec": {"placement": placement}}, name)

    async def new_revision(self, value: str = "two", name: str = "llama", **spec: Any) -> dict[str, Any]:
        """Edit the spec so that pods have to be replaced."""
        return await self.patch({"spec": {"pod": {"env": [{"name": "REVISION", "value": value}]}, **spec}}, name)

    async def serving(self, name: str = "llama") -> set[str]:
        """Names of the pods of one deployment that may get requests."""
        pods = await self.pods(name)
        return {pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"].get("berth.dev/serving") == "true"}

    async def condition(self, kind: str, name: str = "llama") -> dict[str, Any]:
        """One condition of a deployment, empty if it has none such."""
        conditions = (await self.get(name)).get("status", {}).get("conditions", ())
        return next((each for each in conditions if each["type"] == kind), {})

    async def events(self, name: str = "llama") -> list[dict[str, Any]]:
        """What was told about a deployment, oldest first."""
        events = await self.cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        told: list[dict[str, Any]] = [each for each in events["items"] if each["regarding"].get("name") == name]
        return sorted(told, key=lambda event: str(event["eventTime"]))

    @asynccontextmanager
    async def recording(self, *kinds: str) -> AsyncIterator[list[Change]]:
        """Every change of these kinds in the namespace; complete and in the server's order when the block has ended."""
        changes: list[Change] = []
        last: dict[tuple[str, str], Change] = {}
        listed = await self.cluster.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")
        start = listed["metadata"]["resourceVersion"]
        known = {
            (kind, each["metadata"]["name"]) for kind in kinds for each in await self.cluster.list(kind, self.namespace)
        }

        async def record(kind: str) -> None:
            async with self.cluster.watch(kind, self.namespace, resource_version=start) as events:
                async for event in events:
                    change = Change(event["type"], event["object"])
                    changes.append(change)
                    last[kind, change.name] = change

        async def all_seen() -> bool:
            for kind in kinds:
                there = {
                    (kind, each["metadata"]["name"]): each for each in await self.cluster.list(kind, self.namespace)
                }
                for key, each in there.items():
                    version = int(each["metadata"]["resourceVersion"])
                    assert version <= int(start) or (key in last and last[key].version >= version), key
                for key in {key for key in known | last.keys() if key[0] == kind} - there.keys():
                    assert key in last, key
                    assert last[key].type == "DELETED", key
            return True

        tasks = [asyncio.create_task(record(kind)) for kind in kinds]
        try:
            yield changes
            await eventually(all_seen)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results), results
            changes.sort(key=lambda change: change.version)

    async def wipe_status(self) -> None:
        """As a restore from a backup without status would."""
        for kind in ("llmdeployments", "replicagroups"):
            for each in await self.cluster.list(kind, self.namespace):
                name = each["metadata"]["name"]
                await self.cluster.patch(kind, name, self.namespace, {"status": None}, subresource="status")

    async def patch(self, body: dict[str, Any], name: str = "llama") -> dict[str, Any]:
        return await self.cluster.patch("llmdeployments", name, self.namespace, body)

    async def until(
        self, condition: str, status: str = "True", name: str = "llama", timeout: float = PATIENCE
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

    async def settled(self, name: str = "llama", timeout: float = PATIENCE) -> dict[str, Any]:
        """The deployment, once all wanted groups serve and nothing is on its way in or out."""
        await self.until("Ready", name=name, timeout=timeout)
        return await self.until("Progressing", "False", name=name, timeout=timeout)


def _made_for(name: str, found: dict[str, Any]) -> bool:
    """Names are `<deployment>-<5 hexadecimal digits>-g<group>-...`."""
    return not name or re.fullmatch(f"{name}-[0-9a-f]{{5}}-g[0-9]+-.*", found["metadata"]["name"]) is not None


@pytest.fixture
def leaders() -> ScriptedLeaders:
    return ScriptedLeaders()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def own_site(cluster: Cluster, kind: str = "test") -> AsyncIterator[Site]:
    """A namespace; at the end the nodes and pools made through it are taken away. Berth lacks no right meanwhile."""
    await cluster.install_crds()
    tag = secrets.token_hex(4)
    async with cluster.namespace(f"{kind}-{tag}") as namespace:
        with nothing_is_refused():
            yield Site(cluster, namespace, tag)
    for resource in ("gpupools", "nodes"):
        for each in await cluster.list(resource):
            if f"-{tag}-" in each["metadata"]["name"]:
                await cluster.delete(resource, each["metadata"]["name"])


@pytest.fixture
async def site(cluster: Cluster, kwok: Kwok) -> AsyncIterator[Site]:
    async with own_site(cluster) as mine:
        yield mine


@pytest.fixture
async def berth(
    operator_kubeconfig: Path, site: Site, leaders: ScriptedLeaders, clock: Clock
) -> AsyncIterator[RunningBerth]:
    """An operator for the test's namespace; its leaders say what `leaders` says, its time of day is `clock`."""
    async with running_berth(operator_kubeconfig, site.namespace, leaders, clock) as running:
        yield running


@pytest.fixture
async def quick(
    operator_kubeconfig: Path, site: Site, leaders: ScriptedLeaders, clock: Clock
) -> AsyncIterator[RunningBerth]:
    """Like `berth`, with the settings QUICK."""
    async with running_berth(operator_kubeconfig, site.namespace, leaders, clock, **QUICK) as running:
        yield running
