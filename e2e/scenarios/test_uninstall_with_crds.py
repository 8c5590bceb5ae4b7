"""Where the CRDs go with the chart, its own pod first sees deployments and all that was made for them off."""

from __future__ import annotations

from e2e.cluster.shell import wait
from e2e.site import Site, pools
from e2e.support.berth import NAMESPACE, RELEASE
from e2e.support.deployments import Deployment


def test_uninstall_with_crds(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    try:
        site.berth.install(crds={"keep": False})
        site.berth.helm("uninstall", RELEASE, "--wait", "--timeout=5m", timeout=330)
        kinds = "pods,services,poddisruptionbudgets"
        assert kubectl("get", kinds, f"--namespace={served.namespace}", "-o", "name").split() == []
        everywhere = "customresourcedefinitions,clusterroles,clusterrolebindings"
        left = kubectl("get", everywhere, "-o", "name").split()
        assert not [name for name in left if "berth.dev" in name or NAMESPACE in name]
        own = "app.kubernetes.io/name=berth"  # of the operator, and of the pod that cleared up
        wait("no pod of Berth is left", lambda: not kubectl.list("pods", NAMESPACE, own), timeout=60)
    finally:
        site.berth.install()
        kubectl.apply(*pools())
    site.berth.wait_for_leader()
