"""Clusters come up side by side and leave nothing behind, however they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.local.conftest import LocalCluster, gone, listeners, network_of
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton")]

SLEEPER = """
import signal, socket, subprocess, sys, os
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
server = socket.create_server((os.environ["IP"], 8000))
signal.pause()
"""


def sleeper(node: str, name: str, gpus: int = 0) -> dict[str, object]:
    """A pod on `node` that listens, writes to shared memory, and has a child that left its process group."""
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "c",
                    "image": "any",
                    "command": ["python3", "-c", SLEEPER],
                    "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                    "resources": limits,
                }
            ],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }


@pytest.fixture
def small(state: Path) -> Iterator[Callable[[str], LocalCluster]]:
    """Starts clusters of one node without an operator, and ends them."""
    made = []

    def start(name: str) -> LocalCluster:
        made.append(LocalCluster(name, state))
        made[-1].run("up", "--pool", "h100=1x4", "--no-operator")
        return made[-1]

    yield start
    for cluster in made:
        cluster.run("down")


async def ready(api: Cluster, name: str) -> bool:
    status = (await api.get("pods", name, "default")).get("status", {})
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())


async def with_a_pod(cluster: LocalCluster) -> str:
    """Runs a pod that is easy to leave behind; gives the network of the cluster."""
    async with Cluster(Path(cluster.run("kubeconfig").stdout.strip())) as api:
        await api.create(sleeper("h100-1", "sleeper"))
        await eventually(lambda: ready(api, "sleeper"))
    network = network_of(cluster.status())
    assert len(listeners(network)) == 1
    return network


async def test_two_clusters_run_side_by_side_and_end_one_by_one(small: Callable[[str], LocalCluster]) -> None:
    first, second = small("first"), small("second")
    networks = [await with_a_pod(cluster) for cluster in (first, second)]
    assert networks[0] != networks[1]
    first.run("down")
    gone(first, networks[0])
    assert not first.folder.exists()
    assert second.status()["nodes"][0]["pods"][0]["name"] == "sleeper"
    again = second.run("up", check=False)
    assert again.returncode == 1
    assert "local cluster second runs already" in again.stderr
    os.kill(second.supervisor(), signal.SIGKILL)
    gone(second, networks[1])
    assert second.run("status", check=False).stderr == "Error: no local cluster second is running: berth local up\n"


async def test_gpus_are_not_given_out_twice_and_a_refused_pod_says_why(small: Callable[[str], LocalCluster]) -> None:
    cluster = small("gpus")
    async with Cluster(Path(cluster.run("kubeconfig").stdout.strip())) as api:
        await api.create(sleeper("h100-1", "first", gpus=3))
        await eventually(lambda: ready(api, "first"))
        await api.create(sleeper("h100-1", "second", gpus=2))

        async def refused() -> str:
            status = (await api.get("pods", "second", "default"))["status"]
            return status.get("reason", "")

        assert await eventually(refused) == "UnexpectedAdmissionError"
        cluster.run("nodes", "gpus", "h100-1", "--unhealthy", "1")

        async def allocatable() -> bool:
            status = (await api.get("nodes", "h100-1"))["status"]
            return (status["capacity"]["nvidia.com/gpu"], status["allocatable"]["nvidia.com/gpu"]) == ("4", "3")

        await eventually(allocatable)

        async def told() -> list[str]:
            status = (await api.get("pods", "first", "default"))["status"]["containerStatuses"][0]
            found = status["allocatedResourcesStatus"][0]["resources"]
            return [each["health"] for each in found if each["health"] == "Unhealthy"]

        assert await eventually(told) == ["Unhealthy"]
        assert "first" in {pod["name"] for node in cluster.status()["nodes"] for pod in node["pods"]}


async def test_a_cluster_whose_folder_is_removed_ends(small: Callable[[str], LocalCluster]) -> None:
    cluster = small("removed")
    network = await with_a_pod(cluster)
    shutil.rmtree(cluster.folder)
    gone(cluster, network)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_cluster_in_the_foreground_ends_with_whoever_started_it(state: Path, number: signal.Signals) -> None:
    # An ordinary process and blocking reads: the test has nothing else to do while it waits.
    cluster = LocalCluster(f"foreground-{number.value}", state)
    argv = cluster.command("up", "--name", cluster.name, "--pool", "h100=1x4", "--no-operator", "--foreground")
    with subprocess.Popen(argv, env=cluster.environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        lines = iter(starter.stdout.readline, "")
        assert any("local down" in line for line in lines), cluster.logs()
        network = await with_a_pod(cluster)
        started = time.monotonic()
        starter.send_signal(number)
        starter.wait(30)
        gone(cluster, network)
        assert time.monotonic() - started < 20


def test_what_is_wrong_with_an_option_is_said_before_anything_starts(state: Path) -> None:
    cluster = LocalCluster("bad", state)
    refused = cluster.run("up", "--pool", "h100=2by8", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "Error: 'h100=2by8' is no pool: write NAME=NODESxGPUS, such as h100=2x8\n"
    assert not cluster.folder.exists()
