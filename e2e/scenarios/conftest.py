"""One site for all scenarios, a namespace for each, and repairs after each.

What a failed scenario leaves behind is written to `build/e2e/<scenario>`: objects, events, logs of operators and pods.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import site as sites
from e2e.cluster.engine import NoEngine
from e2e.cluster.images import CHECKOUT
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.shell import Failed
from e2e.site import Site, sample, unique
from e2e.support.berth import NAMESPACE
from e2e.support.deployments import Deployment

OUTPUT = CHECKOUT / "build" / "e2e"
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Left running with KEEP=1, to run scenarios again and again."""
    keep = bool(os.environ.get("KEEP"))
    try:
        found = sites.up()
        found.repair()
    except NoEngine as error:
        pytest.skip(f"no cluster with containers: {error}")
    except Failed:
        if not keep:
            sites.down()
        raise
    yield found
    if not keep:
        sites.down()


@pytest.fixture
def namespace(site: Site, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new namespace in which Pod Security enforces `restricted`."""
    name = unique(request.node.originalname.removeprefix("test_").replace("_", "-"))
    levels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl = site.cluster.kubectl
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}})
    yield name
    if request.node.stash.get(_failed, False):
        _keep_evidence(kubectl, name, OUTPUT / request.node.name)
    site.repair()
    kubectl("delete", "llmdeployments", "--all", f"--namespace={name}", "--wait=false")
    kubectl("delete", "pods", "--all", f"--namespace={name}", "--grace-period=1", "--wait=false")
    kubectl.delete("namespace", name, "", "--timeout=110s")


@pytest.fixture
def served(site: Site, namespace: str) -> Deployment:
    """The sample with a fixed placement: a 70B model in two groups of two H100s, in two zones, serving."""
    site.cluster.kubectl.apply(sample("fixed-placement", namespace, site))
    deployment = Deployment(site.cluster.kubectl, namespace, "llama-70b")
    deployment.wait_until_serving(2)
    return deployment


def _keep_evidence(kubectl: Kubectl, namespace: str, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    kinds = "llmdeployments,replicagroups,pods,services,endpointslices,poddisruptionbudgets"
    commands = {
        "objects.yaml": ["get", kinds, f"--namespace={namespace}", "-o", "yaml"],
        "events.txt": ["get", "events", f"--namespace={namespace}", "--sort-by=.lastTimestamp"],
        "nodes.yaml": ["get", "nodes", "-o", "yaml"],
        "pools.yaml": ["get", "gpupools", "-o", "yaml"],
        "operator.log": [
            "logs",
            f"--namespace={NAMESPACE}",
            "-l",
            "app.kubernetes.io/name=berth",
            "--tail=2000",
            "--prefix",
        ],
        "pods.log": ["logs", f"--namespace={namespace}", "-l", "berth.dev/deployment", "--tail=200", "--prefix"],
    }
    for name, command in commands.items():
        try:
            (place / name).write_text(kubectl(*command))
        except Failed as error:
            (place / name).write_text(str(error))
