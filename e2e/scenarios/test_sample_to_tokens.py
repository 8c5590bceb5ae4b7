"""The first sample of the manual, applied with kubectl: Berth chooses the GPUs, Triton answers through the Service."""

from __future__ import annotations

import pytest

from e2e.site import Site, sample
from e2e.support import faults
from e2e.support.deployments import Deployment, node_of
from e2e.support.traffic import traffic

pytestmark = pytest.mark.ci


def test_sample_to_tokens(site: Site, namespace: str) -> None:
    kubectl = site.cluster.kubectl
    kubectl.apply(sample("llama-70b", namespace, site))
    deployment = Deployment(kubectl, namespace, "llama-70b")
    deployment.wait_until_chosen()
    (allocation,) = deployment.status()["placement"]["allocations"]
    deployment.wait_until_serving(allocation["groups"])
    with traffic(site.cluster, deployment.address) as client:
        client.flows()
    account = client.stop()
    assert not account.failed, account
    assert all(each.tokens == 24 for each in account.requests), "every token that was asked for came"

    status = deployment.status()
    assert status["candidates"], "what was chosen, and what was not and why"
    assert allocation["pool"] in ("h100", "a100-40")
    gpus = allocation["tensorParallel"] * allocation["pipelineParallel"]
    for pod in deployment.leaders():
        node = kubectl.get("node", node_of(pod))
        assert node["metadata"]["labels"]["e2e.berth.dev/gpu"] == allocation["pool"]
        assert len(faults.devices_of(kubectl, pod)) == gpus, "the kubelet gave the pod the devices of its placement"


def test_fixed_placement(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    with traffic(site.cluster, served.address) as client:
        client.flows()
    assert not client.stop().failed, client.stop()
    nodes = [kubectl.get("node", node_of(pod))["metadata"]["labels"] for pod in served.leaders()]
    assert {labels["e2e.berth.dev/gpu"] for labels in nodes} == {"h100"}
    assert len({labels["topology.kubernetes.io/zone"] for labels in nodes}) == 2, "in different failure domains"
