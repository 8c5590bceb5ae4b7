"""A node that falls silent: its groups go elsewhere within seconds, and nothing is left over when it comes back."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, group_of, node_of, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


def test_node_paused(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=60)
        faults.pause_node(node_of(victim))

        def replaced() -> bool:
            leaders = {uid(pod): node_of(pod) for pod in served.leaders()}
            return len(leaders) == 2 and uid(other) in leaders and node_of(victim) not in leaders.values()

        wait("the group serves elsewhere", replaced, timeout=120)
        wait("the aftermath is over", lambda: fault.over(5), timeout=90)
        faults.unpause_node(node_of(victim))
        served.wait_until_serving(2)
        client.flows()
    fault.check(client.stop())
    (failed,) = served.failed_groups()
    assert failed["spec"]["group"] == group_of(victim)
    wait("the old pod is gone", lambda: uid(victim) not in [uid(pod) for pod in served.pods()], timeout=90)
