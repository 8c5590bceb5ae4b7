"""Where the CRDs go with the chart, its own pod first sees deployments and all that was made for them off."""

from __future__ import annotations

from e2e.site import Site, pools
from e2e.support.berth import RELEASE
from e2e.support.deployments import Deployment


def test_uninstall_with_crds(site: Site, served: Deployment) -> None:
    kubectl = site.cluster.kubectl
    try:
        site.berth.install(crds={"keep": False})
        site.berth.helm("uninstall", RELEASE, "--wait", "--timeout=5m")
        kinds = "pods,services,poddisruptionbudgets"
        assert kubectl("get", kinds, f"--namespace={served.namespace}", "-o", "name").split() == []
        assert "berth.dev" not in kubectl("get", "customresourcedefinitions", "-o", "name")
    finally:
        site.berth.install()
        kubectl.apply(*pools())
    site.berth.wait_for_leader()
