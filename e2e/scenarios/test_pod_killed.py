"""A group that loses its process or its pod: traffic goes to the other one, and the lost one comes back."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, group_of, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic

AFTERMATH = 20.0


@pytest.mark.ci
def test_container_killed(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(AFTERMATH)
        faults.kill_container(victim)
        wait("the group is lost", lambda: not served.serves(2), timeout=30, every=0.1)
        served.wait_until_serving(2)
        wait("the aftermath is over", lambda: fault.over(5), timeout=60)
    fault.check(client.stop())
    now = {uid(pod): pod["status"]["containerStatuses"][0]["restartCount"] for pod in served.leaders()}
    assert now == {uid(victim): 1, uid(other): 0}, "the first failure is a restart in place"


def test_pod_deleted(site: Site, served: Deployment) -> None:
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(AFTERMATH)
        site.cluster.kubectl.delete("pod", victim["metadata"]["name"], served.namespace, "--force", "--grace-period=0")
        wait("the group is lost", lambda: not served.serves(2), timeout=30, every=0.1)
        served.wait_until_serving(2)
        wait("the aftermath is over", lambda: fault.over(5), timeout=60)
    fault.check(client.stop())
    (failed,) = served.failed_groups()
    assert failed["spec"]["group"] == group_of(victim), "what was lost is kept as evidence"
    pods = served.leaders()
    assert uid(other) in [uid(pod) for pod in pods]
    assert sorted(group_of(pod) for pod in pods) == ["g0", "g1"], "the next incarnation has the group's name"
