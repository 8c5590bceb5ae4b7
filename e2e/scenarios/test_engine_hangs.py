"""An engine that hangs while Triton says that it is healthy: nobody waits for it, and it is started again."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


@pytest.mark.ci
def test_engine_hangs(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=30)
        faults.hang_engine(kubectl, victim)
        assert faults.http_status(kubectl, victim, faults.HTTP, "/v2/health/ready") == 200, "Triton notices nothing"
        assert faults.http_status(kubectl, victim, faults.HTTP, "/v2/models/tensorrt_llm/ready") == 200

        def out_of_service() -> bool:
            return [uid(pod) for pod in served.leaders()] == [uid(other)]

        wait("the hung group gets no requests", out_of_service, timeout=60, every=0.2)
        served.wait_until_serving(2)
        wait("the aftermath is over", lambda: fault.over(5), timeout=60)
    fault.check(client.stop())
    (again,) = [pod for pod in served.leaders() if uid(pod) == uid(victim)]
    ended = again["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert ended["exitCode"] == 70, ended
    assert ended["message"].startswith("Hang"), "the launcher says why it ended the engine"
