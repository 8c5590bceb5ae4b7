"""A node whose power is cut: as one that falls silent, but its containers are gone when it is back."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, node_of, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


def test_node_stopped(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=60)
        faults.stop_node(node_of(victim))

        def replaced() -> bool:
            leaders = {uid(pod): node_of(pod) for pod in served.leaders()}
            return len(leaders) == 2 and uid(other) in leaders and node_of(victim) not in leaders.values()

        wait("the group serves elsewhere", replaced, timeout=120)
        wait("the aftermath is over", lambda: fault.over(5), timeout=90)
        faults.start_node(node_of(victim))
        served.wait_until_serving(2)
        client.flows()
    fault.check(client.stop())
    wait("the old pod is gone", lambda: uid(victim) not in [uid(pod) for pod in served.pods()], timeout=120)
