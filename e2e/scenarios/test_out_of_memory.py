"""A change that makes the pods run out of memory: what serves goes on serving, and the status says what happened."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


def test_out_of_memory(site: Site, served: Deployment) -> None:
    before = {uid(pod) for pod in served.leaders()}
    with traffic(site.cluster, served.address) as client:
        served.patch(pod={"resources": {"requests": {"memory": "40Mi"}, "limits": {"memory": "40Mi"}}})

        def told() -> bool:
            causes = [group.get("status", {}).get("evidence", {}) for group in served.groups()]
            return any("OOMKilled" in str(each.get("message")) for each in causes)

        wait("the evidence names the cause", told, timeout=240, every=1)
        client.flows()
    assert not client.stop().failed, client.stop()
    assert before == {uid(pod) for pod in served.leaders()}, "what serves is not replaced by what cannot"
