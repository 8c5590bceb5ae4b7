"""What others have on the nodes of a large pool is found with a request per page of pods, not one per node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kubernetes.aio.client import ApiClient

from berth import labels
from berth.controller.arbiter import ONE_BY_ONE, Arbiter
from berth.controller.world import World
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.local.kwok import gpu_node
from berth.metrics import Metrics
from tests.integration.controller.conftest import PRODUCTS, Site

RESOURCE = "nvidia.com/gpu"
OURS = {labels.MANAGED_BY: labels.MANAGED_BY_VALUE, labels.DEPLOYMENT_UID: "a-deployment"}
LABELS: Mapping[str, Mapping[str, str]] = {
    "nobodys": {},
    "helms": {labels.MANAGED_BY: "Helm"},
    "without-deployment": {labels.MANAGED_BY: labels.MANAGED_BY_VALUE},
    "copied": {labels.MANAGED_BY: "Helm", labels.DEPLOYMENT_UID: "a-deployment"},
    "ours": OURS,
}
"""Of pods with 1, 2, 4, 8 and 16 GPUs: each sum tells which of them were found."""


async def found_on_first_node(site: Site, kubeconfig: Path, namespace: str | None) -> tuple[int, int]:
    """GPUs that Berth finds taken there, and requests to the API for the whole pool."""
    metrics = Metrics()
    async with ApiClient(await auth.configuration(str(kubeconfig))) as api:
        client = KubeClient(api, metrics=metrics)
        world = World(client, lambda _key: None, lambda: None, namespace=namespace)
        for index in range(ONE_BY_ONE + 1):
            node = gpu_node(f"{site.tag}-{index}", product=PRODUCTS["H100-SXM-80"], gpus=32)
            node["metadata"] |= {"uid": str(index), "resourceVersion": "1"}
            node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
            world.nodes.store.put(("", node["metadata"]["name"]), node)
        arbiter = Arbiter(client, world, lambda: 0.0)
        nodes = arbiter.all_nodes(RESOURCE)
        assert await arbiter.refresh(RESOURCE, nodes)
        taken = arbiter.used(RESOURCE, nodes)
        assert set(taken) <= {f"{site.tag}-0"}, "on the other nodes there are none"
        asked = sum(
            int(line.split()[-1].split(".")[0])
            for line in metrics.render().decode().splitlines()
            if line.startswith("berth_api_requests_total")
        )
        return taken[f"{site.tag}-0"].gpus, asked


async def test_pods_of_others_on_many_nodes_are_found_in_pages_whatever_labels_they_have(
    site: Site, kubeconfig: Path
) -> None:
    for position, (name, found) in enumerate(LABELS.items()):
        limits = {RESOURCE: str(2**position)}
        await site.cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": site.namespace, "labels": dict(found)},
                "spec": {
                    "nodeName": f"{site.tag}-0",
                    "containers": [{"name": "main", "image": "example/any:1", "resources": {"limits": limits}}],
                },
            }
        )
    gpus, asked = await found_on_first_node(site, kubeconfig, None)
    assert gpus == 1 + 2 + 4 + 8, "all but our own, which the local copy shows"
    assert asked == 2
    gpus, _ = await found_on_first_node(site, kubeconfig, site.namespace)
    assert gpus == 1 + 2 + 4 + 8
    gpus, _ = await found_on_first_node(site, kubeconfig, "another-namespace")
    assert gpus == 1 + 2 + 4 + 8 + 16, "the local copy shows one namespace alone"

    for name in ("nobodys", "helms"):
        done = {"status": {"phase": "Succeeded"}}
        await site.cluster.patch("pods", name, site.namespace, done, subresource="status")
    gpus, _ = await found_on_first_node(site, kubeconfig, None)
    assert gpus == 4 + 8, "what has ended holds nothing"
