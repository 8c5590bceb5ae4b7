"""A node object that is deleted, as cloud providers do with machines that are gone."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support.deployments import Deployment, node_of, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


def test_node_deleted(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=60)
        site.cluster.kubectl.delete("node", node_of(victim), "", "--wait=false")

        def replaced() -> bool:
            leaders = {uid(pod): node_of(pod) for pod in served.leaders()}
            return len(leaders) == 2 and uid(other) in leaders and node_of(victim) not in leaders.values()

        wait("the group serves elsewhere", replaced, timeout=120)
        wait("the aftermath is over", lambda: fault.over(5), timeout=90)
    fault.check(client.stop())
    assert len(served.failed_groups()) == 1
