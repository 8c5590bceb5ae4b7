"""Control planes of their own: failing to start, restarting, and leaving nothing behind however they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from berth.local import binaries
from berth.local.controlplane import PROGRAMS, ControlPlane
from berth.local.kwok import Kwok
from berth.local.processes import ProcessFailed
from tests.support.cluster import Cluster, eventually

pytestmark = pytest.mark.usefixtures("control_plane")  # provides the programs before the first test


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane that a test may break."""
    async with ControlPlane(tmp_path / "cluster") as running:
        yield running


async def test_a_killed_api_server_comes_back_at_its_address_with_all_objects(own: ControlPlane) -> None:
    async with Cluster(own.kubeconfig) as cluster, cluster.namespace("kept"):
        url = own.url
        own.apiserver.kill()
        assert own.apiserver.exit_code == -signal.SIGKILL
        with pytest.raises(OSError, match="Cannot connect"):
            await cluster.get("namespaces", "kept")
        own.apiserver.start()
        await own.ready()
        assert own.url == url
        assert await cluster.find("namespaces", "kept")


async def test_a_paused_api_server_is_connected_and_says_nothing(own: ControlPlane) -> None:
    async with Cluster(own.kubeconfig) as cluster:
        await cluster.get("namespaces", "default")
        own.apiserver.pause()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cluster.get("namespaces", "default"), 1)
        own.apiserver.resume()
        await cluster.get("namespaces", "default")


async def test_two_control_planes_run_side_by_side(own: ControlPlane, control_plane: ControlPlane) -> None:
    async with (
        Cluster(own.kubeconfig) as mine,
        Cluster(control_plane.kubeconfig) as shared,
        mine.namespace("only-here"),
    ):
        assert await shared.find("namespaces", "only-here") is None


async def test_stop_leaves_no_process_no_port_and_the_objects(tmp_path: Path) -> None:
    control_plane = ControlPlane(tmp_path / "cluster")
    async with control_plane:
        pids = [process.pid for process in control_plane.processes]
        port = int(control_plane.url.rsplit(":", 1)[1])
        async with Cluster(control_plane.kubeconfig) as cluster:
            await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept"}})
    assert not any(alive(pid) for pid in pids)
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))

    async with control_plane, Cluster(control_plane.kubeconfig) as cluster:
        assert await cluster.find("namespaces", "kept")


async def test_a_server_that_refuses_its_arguments_is_named_with_its_log(tmp_path: Path) -> None:
    control_plane = ControlPlane(tmp_path / "cluster")
    control_plane.apiserver.arguments.append("--no-such-flag")
    with pytest.raises(
        ProcessFailed, match=r"(?s)kube-apiserver ended before it was ready \(exit code 1\).*no-such-flag"
    ):
        await control_plane.start()
    assert not any(process.running for process in control_plane.processes)


async def test_a_killed_parent_takes_everything_with_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from berth.local.controlplane import ControlPlane\n"
        "from berth.local.kwok import Kwok\n"
        "async def main():\n"
        "    async with ControlPlane(pathlib.Path(sys.argv[1])) as cluster:\n"
        "        kwok = Kwok(cluster.kubeconfig, cluster.directory)\n"
        "        kwok.start()\n"
        "        print(*(process.pid for process in (*cluster.processes, kwok)), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "cluster"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(parent.stdout.readline(), 60)).split()]
    assert len(pids) == 5
    assert all(alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()

    async def all_gone() -> bool:
        return not any(alive(pid) for pid in pids)

    await eventually(all_gone)


async def test_only_the_api_server_listens_and_only_on_loopback(control_plane: ControlPlane, kwok: Kwok) -> None:
    listening = {process.name: listeners(process.pid) for process in (*control_plane.processes, kwok)}
    address = control_plane.url.removeprefix("https://")
    assert {name: found for name, found in listening.items() if found} == {"kube-apiserver": {address}}


def listeners(pid: int) -> set[str]:
    """Addresses on which the process listens by TCP: its sockets (/proc/<pid>/fd) in state LISTEN (/proc/net/tcp)."""
    own = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in own:
                address, port = local.split(":")
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add(f"{host}:{int(port, 16)}")
    return found


def test_provided_programs_say_the_pinned_versions() -> None:
    assert set(binaries.provide(PROGRAMS)) == set(PROGRAMS)


def alive(pid: int) -> bool:
    """False also for a zombie, which is only waiting to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
