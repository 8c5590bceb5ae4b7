"""`kubectl drain` of a node goes through, and exactly when it is safe: no request is lost by it."""

from __future__ import annotations

import pytest

from e2e.site import Site
from e2e.support.deployments import Deployment, node_of, uid
from e2e.support.traffic import traffic


@pytest.mark.ci
def test_drain(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        options = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"]
        site.cluster.kubectl("drain", node_of(victim), *options, timeout=300)
        served.wait_until_serving(2)
        client.flows()
    assert not client.stop().failed, client.stop()
    leaders = served.leaders()
    assert uid(other) in [uid(pod) for pod in leaders]
    assert node_of(victim) not in [node_of(pod) for pod in leaders]
    assert not served.failed_groups(), "it was meant"
