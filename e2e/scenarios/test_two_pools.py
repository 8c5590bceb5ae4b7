"""Two models on two pools of different GPUs at the same time, each with its own Service."""

from __future__ import annotations

from e2e.site import Site, sample
from e2e.support.deployments import Deployment, node_of
from e2e.support.traffic import traffic


def test_two_pools(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    kubectl.apply(sample("llama-8b-one-gpu", served.namespace, site))
    small = Deployment(kubectl, served.namespace, "llama-8b")
    small.wait_until_serving(1)
    with traffic(site.cluster, served.address) as first, traffic(site.cluster, small.address) as second:
        first.flows()
        second.flows()
    assert not first.stop().failed, first.stop()
    assert not second.stop().failed, second.stop()
    (pod,) = small.leaders()
    assert node_of(pod) in site.cluster.nodes("a100-40")
    assert {node_of(pod) for pod in served.leaders()} == set(site.cluster.nodes("h100"))
    used = {pool["metadata"]["name"]: pool["status"]["gpus"] for pool in kubectl.list("gpupools")}
    assert {name: gpus["allocatable"] - gpus["free"] for name, gpus in used.items()} == {"h100": 4, "a100-40": 1}
