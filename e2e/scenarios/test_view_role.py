"""People with the cluster's role `view` read Berth's objects and change nothing."""

from __future__ import annotations

import pytest

from e2e.cluster.shell import Failed
from e2e.site import Site, sample


def test_view_role(site: Site, namespace: str) -> None:
    kubectl = site.cluster.kubectl
    kubectl("create", "serviceaccount", "reader", f"--namespace={namespace}")
    kubectl(
        "create",
        "rolebinding",
        "reader",
        "--clusterrole=view",
        f"--serviceaccount={namespace}:reader",
        f"--namespace={namespace}",
    )
    kubectl.apply(sample("fixed-placement", namespace, site, pause="All"))
    reader = [f"--namespace={namespace}", f"--as=system:serviceaccount:{namespace}:reader"]
    assert "llama-70b" in kubectl("get", "llmd", *reader)
    assert "llama-70b" in kubectl("describe", "llmd", "llama-70b", *reader)
    kubectl("get", "replicagroups", *reader)
    for command in (
        ("scale", "llmd/llama-70b", "--replicas=5"),
        ("delete", "llmd", "llama-70b"),
        ("annotate", "llmd", "llama-70b", "berth.dev/request=failover g0"),
    ):
        with pytest.raises(Failed, match=r"forbidden|cannot"):
            kubectl(*command, *reader)
