"""The control plane is a real one: what tests rely on is shown here once."""

from __future__ import annotations

from berth.local.kwok import GPU_RESOURCE, Kwok, gpu_node
from tests.support.cluster import Cluster, eventually


def pod(name: str, namespace: str, *, gpus: int = 1, **spec: object) -> dict[str, object]:
    limits = {GPU_RESOURCE: str(gpus)}
    container = {"name": "main", "image": "example.invalid/none", "resources": {"limits": limits}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [container], **spec},
    }


async def is_ready(cluster: Cluster, name: str, namespace: str) -> bool:
    conditions = (await cluster.get("pods", name, namespace))["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def test_a_pod_gets_a_simulated_gpu_and_becomes_ready(cluster: Cluster, namespace: str, kwok: Kwok) -> None:
    node = gpu_node(f"{namespace}-h100", product="NVIDIA-H100-80GB-HBM3", labels={"test": namespace})
    await cluster.create(node)
    await cluster.create(pod("p", namespace, gpus=8, nodeSelector={"test": namespace}))
    await eventually(lambda: is_ready(cluster, "p", namespace))
    await cluster.delete("nodes", f"{namespace}-h100")
