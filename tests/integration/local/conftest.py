"""Local clusters as their user starts them, each with a state folder of its own; after each, nothing may be left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from berth.local import binaries, sandbox, triton_env
from berth.local.controlplane import PROGRAMS
from tests.support.cluster import Cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cold build takes minutes: outside of any test's time limit."""
    if any("/integration/local/" in str(item.path) for item in items):
        binaries.provide(PROGRAMS)


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> Iterator[None]:
    """What a test starts can be interrupted, also where the test's own process ignores that (one of several, nohup)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class LocalCluster:
    """`berth local` under one name; commands run in processes of their own, as a user's do."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.folder = state / "berth" / name
        self.environment = {**os.environ, "XDG_STATE_HOME": str(state)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "berth", "local", *arguments]

    def run(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`berth local COMMAND --name NAME ARGUMENTS`."""
        argv = self.command(command, "--name", self.name, *arguments)
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}{self.logs()}"
        return done

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "-o", "json").stdout)

    def supervisor(self) -> int:
        return self.status()["pid"]

    def address(self, service: str) -> str:
        return next(each["address"] for each in self.status()["services"] if each["name"] == service)

    def pod(self, name: str) -> dict[str, Any]:
        return next(pod for node in self.status()["nodes"] for pod in node["pods"] if pod["name"] == name)

    def logs(self) -> str:
        return "".join(f"\n--- {log}\n{log.read_text()[-3000:]}" for log in self.folder.glob("logs/*"))

    def traces(self) -> list[str]:
        """Whatever of the cluster can still be found: processes, shared memory. Network: see `listeners`."""
        found = []
        words = str(self.folder).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if words in (entry / "cmdline").read_bytes() or words in (entry / "environ").read_bytes():
                        found.append(f"process {entry.name} {(entry / 'cmdline').read_bytes()!r}")
        return found + [str(path) for path in self.memory() if path.exists()]

    def memory(self) -> list[Path]:
        import hashlib

        return [sandbox.SHARED_MEMORY / f"berth-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"]


def listeners(prefix: str) -> list[str]:
    """Listening TCP sockets on addresses that begin with `prefix`, such as 127.130."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        number = int(local.partition(":")[0], 16)
        address = ".".join(str(number >> shift & 255) for shift in (0, 8, 16, 24))
        if state == "0A" and address.startswith(prefix):
            found.append(f"{address}:{int(local.partition(':')[2], 16)}")
    return found


def network_of(status: dict[str, Any]) -> str:
    """What all addresses of a cluster begin with."""
    return ".".join(status["nodes"][0]["address"].split(".")[:2]) + "."


def gone(cluster: LocalCluster, network: str, seconds: float = 20) -> None:
    """Asserts that soon nothing is left of the cluster."""
    deadline = time.monotonic() + seconds
    while left := [
        *cluster.traces(),
        *listeners(network),
        *map(str, sandbox.SHARED_MEMORY.glob(f"berth_{network}*")),
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture(scope="session")
def triton() -> None:
    try:
        triton_env.ensure()
    except triton_env.Unavailable as error:
        pytest.skip(f"no Triton server: {error}")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def site(triton: None, state: Path) -> Iterator[LocalCluster]:
    """A cluster with the operator, two H100 nodes and one A100 node, for all tests of a module."""
    cluster = LocalCluster("site", state)
    cluster.run("up", "--pool", "h100=2x8", "--pool", "a100-40=1x8")
    network = network_of(cluster.status())
    yield cluster
    cluster.run("down")
    gone(cluster, network)


@pytest.fixture
async def api(site: LocalCluster) -> AsyncIterator[Cluster]:
    async with Cluster(Path(site.run("kubeconfig").stdout.strip())) as administrator:
        yield administrator
