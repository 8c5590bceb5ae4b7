"""The chart's NetworkPolicy lets in nobody who was not named, where the pod network enforces such policies."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import Failed
from e2e.site import Site
from e2e.support.traffic import NAMESPACE, POD

READ = "import urllib.request as u; print(u.urlopen('http://berth-metrics.berth-system:8080/readyz', timeout=5).status)"


def test_network_policy(site: Site) -> None:
    kubectl = site.cluster.kubectl
    networks = [each["metadata"]["name"] for each in kubectl.list("daemonsets", "kube-system")]
    if "podnet" in networks:
        pytest.skip(
            "NetworkPolicy is NOT PROVEN: this cluster's pod network does not enforce it; NODE_IMAGE= has one that does"
        )
    command = ["exec", f"--namespace={NAMESPACE}", POD, "--", "python", "-c", READ]
    assert kubectl(*command).strip() == "200"
    site.berth.install(networkPolicy={"enabled": True})
    try:
        site.berth.wait_for_leader()
        with pytest.raises(Failed, match="timed out"):
            kubectl(*command)
    finally:
        site.berth.install()
