"""A control plane of the chart's own: its tests take the CRDs away and serve all namespaces.

Simulated kubelets start whatever is scheduled, the operator's pods included, so that helm can wait for them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from berth.local import binaries
from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from tests.integration.chart.helm import Helm
from tests.integration.conftest import provided
from tests.integration.controller.conftest import Site
from tests.support.cluster import Cluster

HELMS = ("helm", "helm3")
"""Helm 4 and Helm 3."""


def pytest_collection_finish(session: pytest.Session) -> None:
    if any("helm" in getattr(item, "fixturenames", ()) for item in session.items):
        provided(session, *HELMS)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("chart"))
    with asyncio.Runner() as runner:
        runner.run(plane.start())
        yield plane
        runner.run(plane.stop())


@pytest.fixture(scope="session")
def kwok(control_plane: ControlPlane) -> Iterator[Kwok]:
    process = Kwok(control_plane.kubeconfig, control_plane.directory, lease_duration=8)
    process.start()
    yield process
    process.kill()


@pytest.fixture(params=HELMS)
def helm(request: pytest.FixtureRequest, control_plane: ControlPlane, tmp_path: Path) -> Helm:
    """Both Helms that people have: a test that uses it runs with each."""
    found = binaries.provide([request.param, "kubectl"])
    return Helm(found[request.param], found["kubectl"], control_plane.kubeconfig, tmp_path)


@pytest.fixture
def kubectl(control_plane: ControlPlane, tmp_path: Path) -> Helm:
    """For tests that render once and install without Helm."""
    found = binaries.provide(["helm", "kubectl"])
    return Helm(found["helm"], found["kubectl"], control_plane.kubeconfig, tmp_path)


@pytest.fixture
async def site(cluster: Cluster, kwok: Kwok, namespace: str) -> AsyncIterator[Site]:
    await cluster.install_crds()
    tag = secrets.token_hex(3)
    yield Site(cluster, namespace, tag)
    for each in await cluster.list("nodes"):  # pools may be gone with their CRD, and harm nobody without nodes
        if f"-{tag}-" in each["metadata"]["name"]:
            await cluster.delete("nodes", each["metadata"]["name"])
