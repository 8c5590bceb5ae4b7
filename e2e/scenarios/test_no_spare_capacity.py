"""No GPUs are left: the deployment says what it waits for, and starts when they come free."""

from __future__ import annotations

from e2e.cluster.kubectl import condition
from e2e.cluster.shell import wait
from e2e.site import Site, sample
from e2e.support.deployments import Deployment


def test_no_spare_capacity(site: Site, namespace: str) -> None:
    kubectl = site.cluster.kubectl
    first = sample("fixed-placement", namespace, site)
    first["spec"]["placement"]["fixed"]["allocations"][0] |= {"tensorParallel": 8, "groups": 2}
    second = sample("fixed-placement", namespace, site)
    second["metadata"]["name"] = "late"
    second["spec"]["placement"]["fixed"]["allocations"][0] |= {"tensorParallel": 4, "groups": 1}
    kubectl.apply(first)
    Deployment(kubectl, namespace, "llama-70b").wait_until_serving(2)
    kubectl.apply(second)
    late = Deployment(kubectl, namespace, "late")

    def told() -> bool:
        conditions = late.status().get("conditions", [])
        return any("free" in str(each.get("message")) and each["status"] == "False" for each in conditions)

    wait("the status says what is missing", told, timeout=60)
    assert not late.pods(), "nothing is started that cannot be placed"
    assert condition(late.get(), "Ready") == "False"
    kubectl.delete("llmdeployment", "llama-70b", namespace)
    late.wait_until_serving(1)
