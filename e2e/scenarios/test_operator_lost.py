"""The leading operator is killed, or stops where it is: another leads, and what serves notices nothing."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.berth import NAMESPACE
from e2e.support.deployments import Deployment, uid
from e2e.support.traffic import traffic


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_operator_lost(site: Site, served: Deployment, signal: str) -> None:
    before = {uid(pod) for pod in served.pods()}
    leader = site.berth.wait_for_leader()
    with traffic(site.cluster, served.address) as client:
        faults.signal_container(site.cluster.kubectl.get("pod", leader, NAMESPACE), signal)
        wait("another operator leads", lambda: site.berth.leader() not in ("", leader), timeout=60)
        assert {uid(pod) for pod in served.pods()} == before
        served.patch(placement=served.with_groups(3))
        served.wait_until_serving(3)
    assert not client.stop().failed, client.stop()
    assert before < {uid(pod) for pod in served.pods()}, "what served goes on"
    wait("both operators are Ready", site.berth.ready, timeout=180)
