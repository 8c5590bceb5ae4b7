"""A GPU that the device plugin calls unhealthy: its group goes elsewhere although its process still answers."""

from __future__ import annotations

from e2e.cluster import mockgpus
from e2e.cluster.shell import wait
from e2e.site import Site
from e2e.support import faults
from e2e.support.deployments import Deployment, group_of, uid
from e2e.support.faults import Fault
from e2e.support.traffic import traffic


def test_gpu_unhealthy(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    victim, other = served.leaders()
    with traffic(site.cluster, served.address) as client:
        fault = Fault.now(aftermath=30)
        device = faults.break_one_device_of(kubectl, victim)
        wait("the group is lost", lambda: uid(victim) not in [uid(pod) for pod in served.leaders()], timeout=60)
        served.wait_until_serving(2)
        wait("the aftermath is over", lambda: fault.over(5), timeout=60)
    fault.check(client.stop())
    (failed,) = served.failed_groups()
    assert failed["spec"]["group"] == group_of(victim)
    (successor,) = [pod for pod in served.leaders() if uid(pod) != uid(other)]
    assert device not in faults.devices_of(kubectl, successor)
    pool = kubectl.get("gpupool", "h100")["status"]["gpus"]
    assert pool["unhealthy"] == 1, pool
    assert pool["allocatable"] == 2 * mockgpus.PER_NODE - 1
