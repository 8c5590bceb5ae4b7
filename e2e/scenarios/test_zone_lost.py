"""A zone that falls silent as a whole: the groups of the other one go on, and the lost ones come up there."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, node_of
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


def test_zone_lost(site: Site, served: Deployment) -> None:
    lost = site.cluster.nodes(zone="zone-a")
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=60)
        for node in lost:
            faults.pause_node(node)

        def elsewhere() -> bool:
            nodes = [node_of(pod) for pod in served.leaders()]
            return len(nodes) == 2 and not set(nodes) & set(lost)

        wait("all groups serve in the other zone", elsewhere, timeout=120)
        wait("the aftermath is over", lambda: fault.over(5), timeout=90)
        for node in lost:
            faults.unpause_node(node)
        served.wait_until_serving(2)
    fault.check(client.stop())
