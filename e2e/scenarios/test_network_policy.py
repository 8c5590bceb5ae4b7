"""The chart's NetworkPolicy lets in nobody who was not named, where the pod network enforces such policies."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import Failed
from e2e.site import Site
from e2e.support.traffic import NAMESPACE, POD

READ = "import urllib.request as u; print(u.urlopen('http://berth-metrics.berth-system:8080/readyz', timeout=5).status)"
NOT_PROVEN = "NetworkPolicy is NOT PROVEN: the pod network of this cluster does not enforce it (public node images do)"


def test_network_policy(site: Site) -> None:
    kubectl = site.cluster.kubectl
    if kubectl.find("daemonset", "podnet", "kube-system"):
        pytest.skip(NOT_PROVEN)
    command = ["exec", f"--namespace={NAMESPACE}", POD, "--", "python", "-c", READ]
    site.berth.install(networkPolicy={"ingress": False})
    assert kubectl(*command).strip() == "200"
    site.berth.install(networkPolicy={"ingress": True})
    site.berth.wait_for_leader()
    with pytest.raises(Failed, match="timed out"):
        kubectl(*command)
