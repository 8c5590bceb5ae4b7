"""One real control plane for the whole run, a namespace for each test.

Programs are provided before the first test, outside its time limit: a cold build takes minutes and shows its progress.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from berth.local import binaries
from berth.local.controlplane import PROGRAMS, ControlPlane
from berth.local.kwok import Kwok
from tests.support import rights
from tests.support.cluster import Cluster
from tests.support.loops import connections_closed


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before workers start, which show no progress, all that any test may need is there."""
    if session.config.getoption("numprocesses", None) and not session.config.option.collectonly:
        provided(session, *PROGRAMS, "kwok", "kubectl", "helm", "helm3", "kube-score")


def pytest_collection_finish(session: pytest.Session) -> None:
    if any("control_plane" in getattr(item, "fixturenames", ()) for item in session.items):
        provided(session, *PROGRAMS, "kwok", "kubectl")


def provided(session: pytest.Session, *programs: str) -> None:
    """Ends the run where a program cannot be had."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.collectonly or terminal is None:  # None in a worker
        return
    try:
        binaries.provide(programs, lambda line: terminal.write(f"{line}\n", flush=True))
    except binaries.BinaryUnavailable as error:
        pytest.exit(f"the integration tier needs programs: {error}", returncode=1)


@pytest.fixture(autouse=True)
async def _connections_end_before_their_loop() -> AsyncIterator[None]:
    yield
    await connections_closed()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Shared by all tests: leave its processes running. Nodes are called dead after 12 s instead of 50."""
    cluster = ControlPlane(
        tmp_path_factory.mktemp("control-plane"), node_monitor_period=1, node_monitor_grace_period=12
    )
    with asyncio.Runner() as runner:
        runner.run(cluster.start())
        yield cluster
        runner.run(cluster.stop())


@pytest.fixture(scope="session")
def kwok(control_plane: ControlPlane) -> Iterator[Kwok]:
    """Plays the kubelet on nodes made by `gpu_node`; Leases are renewed every 2 s."""
    process = Kwok(control_plane.kubeconfig, control_plane.directory, lease_duration=8)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    """An administrator's."""
    return control_plane.kubeconfig


@pytest.fixture(scope="session")
def operator_token(control_plane: ControlPlane) -> str:
    """Of the service account that an installation gives to Berth."""

    async def made() -> str:
        async with Cluster(control_plane.kubeconfig) as administrator:
            return await rights.operator_token(administrator)

    return asyncio.run(made())


@pytest.fixture
def operator_kubeconfig(control_plane: ControlPlane, operator_token: str, tmp_path: Path) -> Path:
    """For Berth itself: with the rights of an installation and no others."""
    path = tmp_path / "operator.kubeconfig"
    control_plane.write_kubeconfig(path, token=operator_token)
    return path


@pytest.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    """Administrator of the shared control plane."""
    async with Cluster(control_plane.kubeconfig) as administrator:
        yield administrator


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    """The name of a new, empty namespace."""
    async with cluster.namespace(f"test-{secrets.token_hex(4)}") as name:
        yield name
