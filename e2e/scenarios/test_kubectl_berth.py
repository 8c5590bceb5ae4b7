"""`kubectl berth` for people with the role `view`: live figures come through the API server, and nothing is changed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from e2e.cluster.shell import Failed, run, wait
from e2e.site import Site
from e2e.support.deployments import Deployment
from e2e.support.traffic import traffic

PROGRAM = Path(sys.executable).with_name("kubectl-berth")


def test_kubectl_berth(site: Site, served: Deployment, tmp_path: Path) -> None:
    kubectl, namespace = site.cluster.kubectl, served.namespace
    kubectl("create", "serviceaccount", "reader", f"--namespace={namespace}")
    account = f"--serviceaccount={namespace}:reader"
    kubectl("create", "rolebinding", "reader", "--clusterrole=view", account, f"--namespace={namespace}")
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": kubectl("create", "token", "reader", f"--namespace={namespace}").strip()}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))

    def berth(*arguments: str) -> str:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        return run(PROGRAM, *arguments, f"--namespace={namespace}", environment=environment)

    with traffic(site.cluster, served.address):

        def live() -> bool:
            (told,) = json.loads(berth("top", "-o", "json"))
            return bool(told["live"]) and float(told.get("requestsPerSecond") or 0) > 1

        wait("live figures show the requests", live, timeout=120, every=1)
        assert "serving  (2 of 2 groups" in berth("status", served.name)
        assert served.name in berth("top", "--groups")
    assert "fixed by spec.placement.fixed" in berth("explain", served.name)
    assert "GroupServing" in berth("events", served.name)
    with pytest.raises(Failed, match="edit"):
        berth("failover", served.name, "g0", "--yes")
    assert len(served.leaders()) == 2
