"""A group over two nodes lives and dies as one: when a member is lost, all of it starts again together."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site, sample
from e2e.support import faults
from e2e.support.deployments import Deployment, node_of, uid
from e2e.support.traffic import traffic


def test_group_of_several_nodes(site: Site, namespace: str) -> None:
    site.cluster.kubectl.apply(sample("llama-405b-multi-node", namespace, site))
    deployment = Deployment(site.cluster.kubectl, namespace, "llama-405b")
    deployment.wait_until_serving(1)
    first = deployment.pods()
    assert sorted(node_of(pod) for pod in first) == site.cluster.nodes("h100")
    (worker,) = [pod for pod in first if pod["metadata"]["labels"]["berth.dev/member"] == "worker"]
    with traffic(site.cluster, deployment.address, rate=1) as client:
        faults.kill_container(worker)

        def renewed() -> bool:
            return deployment.serves(1) and not {uid(pod) for pod in first} & {uid(pod) for pod in deployment.pods()}

        wait("the whole group is new", renewed, timeout=180)
        client.flows(timeout=180)
    assert len(deployment.pods()) == 2
    (failed,) = deployment.failed_groups()
    evidence = failed["status"]["evidence"]
    assert evidence["member"] == 1, evidence
