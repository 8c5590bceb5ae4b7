"""kwok's nodes behave like nodes: they run what is bound to them, and a dead one does nothing at all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from berth.local.kwok import Kwok, gpu_node
from berth.local.nodes import GPU_RESOURCE
from tests.support.cluster import Cluster, Manifest, eventually


@pytest.fixture
async def node(cluster: Cluster, namespace: str, kwok: Kwok) -> AsyncIterator[str]:
    """A node with 8 GPUs for this test's pods alone."""
    name = f"{namespace}-node"
    await cluster.create(gpu_node(name, product="NVIDIA-H100-80GB-HBM3", zone="b", labels={"test": namespace}))
    yield name
    await cluster.delete("nodes", name)


def pod(name: str, namespace: str, *, gpus: int) -> Manifest:
    limits = {GPU_RESOURCE: str(gpus)}
    container = {"name": "main", "image": "example.invalid/none", "resources": {"limits": limits}}
    unreachable = {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "containers": [container],
            "nodeSelector": {"test": namespace, "topology.kubernetes.io/zone": "b"},
            "tolerations": [unreachable],
        },
    }


async def condition(cluster: Cluster, resource: str, name: str, namespace: str | None, kind: str) -> str:
    conditions = (await cluster.get(resource, name, namespace))["status"].get("conditions", [])
    return next((each["status"] for each in conditions if each["type"] == kind), "")


async def test_a_pod_gets_gpus_and_becomes_ready(cluster: Cluster, namespace: str, node: str) -> None:
    await cluster.create(pod("p", namespace, gpus=8))

    async def ready() -> bool:
        return await condition(cluster, "pods", "p", namespace, "Ready") == "True"

    await eventually(ready)
    running = await cluster.get("pods", "p", namespace)
    assert running["spec"]["nodeName"] == node
    assert running["status"]["podIP"].startswith("198.19.")
    assert running["status"]["containerStatuses"][0]["ready"]


async def test_a_pod_that_wants_more_gpus_than_are_free_stays_pending(
    cluster: Cluster, namespace: str, node: str
) -> None:
    await cluster.create(pod("first", namespace, gpus=6))
    await eventually(lambda: bound(cluster, "first", namespace))
    await cluster.create(pod("second", namespace, gpus=4))

    async def refused() -> str:
        conditions = (await cluster.get("pods", "second", namespace))["status"].get("conditions", [])
        return next((each["message"] for each in conditions if each["type"] == "PodScheduled"), "")

    assert "Insufficient nvidia.com/gpu" in await eventually(refused)
    await cluster.delete("pods", "first", namespace)
    assert await eventually(lambda: bound(cluster, "second", namespace)) == node


async def bound(cluster: Cluster, name: str, namespace: str) -> str:
    return str((await cluster.get("pods", name, namespace))["spec"].get("nodeName", ""))


async def gone(cluster: Cluster, name: str, namespace: str) -> bool:
    return await cluster.find("pods", name, namespace) is None


async def test_a_dead_node_is_silent_until_it_is_revived(cluster: Cluster, namespace: str, node: str) -> None:
    await cluster.create(pod("victim", namespace, gpus=1))
    await eventually(lambda: bound(cluster, "victim", namespace))

    async def node_is(status: str) -> bool:
        return await condition(cluster, "nodes", node, None, "Ready") == status

    await eventually(lambda: node_is("True"))

    await cluster.kill_node(node)
    await cluster.delete("pods", "victim", namespace)
    await eventually(lambda: node_is("Unknown"))

    assert (await cluster.get("pods", "victim", namespace))["metadata"]["deletionTimestamp"]
    last_renewal = (await cluster.get("leases", node, "kube-node-lease"))["spec"]["renewTime"]

    await cluster.revive_node(node)
    await eventually(lambda: gone(cluster, "victim", namespace))
    await eventually(lambda: node_is("True"))

    async def renewed() -> bool:
        return bool((await cluster.get("leases", node, "kube-node-lease"))["spec"]["renewTime"] > last_renewal)

    await eventually(renewed)
