"""The sample of the manual, applied with kubectl, answers requests by Triton through its Service."""

from __future__ import annotations

from e2e.cluster import mockgpus
from e2e.site import Site
from e2e.support.deployments import Deployment, node_of
from e2e.support.traffic import traffic


def test_sample_to_tokens(site: Site, served: Deployment) -> None:
    with traffic(site.cluster, served.address) as client:
        client.flows()
    account = client.stop()
    assert not account.failed, account
    assert all(each.tokens == 24 for each in account.requests), "every token that was asked for came"

    leaders = served.leaders()
    zones = {
        site.cluster.kubectl.get("node", node_of(pod))["metadata"]["labels"]["topology.kubernetes.io/zone"]
        for pod in leaders
    }
    assert len(zones) == 2, "groups are in different failure domains"
    free = {pool["metadata"]["name"]: pool["status"]["gpus"]["free"] for pool in site.cluster.kubectl.list("gpupools")}
    assert free == {"h100": 2 * mockgpus.PER_NODE - 4, "a100-40": mockgpus.PER_NODE}
    for pod in leaders:
        devices = site.cluster.kubectl(
            "exec",
            f"--namespace={served.namespace}",
            pod["metadata"]["name"],
            "--",
            "python3",
            "-c",
            "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])",
        )
        assert len(devices.split(",")) == 2, "the kubelet gave the pod the devices of its placement"
