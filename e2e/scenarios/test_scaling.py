"""Groups follow the number that is asked for, and nobody's request is lost by it."""

from __future__ import annotations

from e2e.site import Site, sample
from e2e.support.deployments import Deployment
from e2e.support.traffic import traffic


def test_scaling(site: Site, namespace: str) -> None:
    manifest = sample("fixed-placement", namespace, site, scaling={"mode": "Manual"}, replicas=1)
    manifest["spec"]["placement"]["fixed"]["allocations"][0].pop("groups")
    site.cluster.kubectl.apply(manifest)
    deployment = Deployment(site.cluster.kubectl, namespace, "llama-70b")
    deployment.wait_until_serving(1)
    with traffic(site.cluster, deployment.address) as client:
        for groups in (3, 1):
            site.cluster.kubectl("scale", "llmdeployment/llama-70b", f"--namespace={namespace}", f"--replicas={groups}")
            deployment.wait_until_serving(groups)
            client.flows()
            status = deployment.status()
            assert (status["replicas"], status["readyReplicas"]) == (groups, groups)
    assert not client.stop().failed, client.stop()
