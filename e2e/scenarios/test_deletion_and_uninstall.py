"""Uninstalling Berth leaves what serves; installing it again adopts it; deleting a deployment leaves nothing."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.berth import RELEASE
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_deletion_and_uninstall(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    before = {uid(pod) for pod in served.pods()}
    with traffic(site.cluster, served.address) as client:
        site.berth.helm("uninstall", RELEASE, "--wait")
        wait("no operator runs", lambda: not site.berth.pods(), timeout=60)
        client.flows()
        site.berth.install()
        site.berth.wait_for_leader()
        served.wait_until_serving(2)
    assert not client.stop().failed, client.stop()
    assert {uid(pod) for pod in served.pods()} == before, "adopted, not replaced"
    site.berth.helm("test", RELEASE, "--timeout=2m")

    kubectl.delete("llmdeployment", served.name, served.namespace)
    kinds = "pods,replicagroups,services,configmaps,poddisruptionbudgets"

    def gone() -> bool:
        left = kubectl("get", kinds, f"--namespace={served.namespace}", "-o", "name").split()
        return [each for each in left if "kube-root-ca" not in each] == []

    wait("nothing is left", gone, timeout=180)
