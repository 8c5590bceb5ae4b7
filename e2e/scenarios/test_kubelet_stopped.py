"""A kubelet that stops while its containers go on: no request is lost, and no group that answers is replaced."""

from __future__ import annotations

from e2e.cluster.kubectl import condition
from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, node_of, uid
from e2e.support.traffic import traffic


def test_kubelet_stopped(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    before = {uid(pod) for pod in served.pods()}
    node = node_of(served.leaders()[0])
    with traffic(site.cluster, served.address) as client:
        faults.stop_kubelet(node)
        wait("the node is Unknown", lambda: condition(kubectl.get("node", node), "Ready") == "Unknown", timeout=120)
        client.flows()
        faults.start_kubelet(node)
        wait("the node is Ready", lambda: condition(kubectl.get("node", node), "Ready") == "True", timeout=120)
        served.wait_until_serving(2)
    assert not client.stop().failed, client.stop()
    assert {uid(pod) for pod in served.pods()} == before, "no false evacuation"
    assert not served.failed_groups()
