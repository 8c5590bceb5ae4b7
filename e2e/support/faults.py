"""What scenarios do to a cluster. `Site.repair` undoes all of it after each scenario."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from berth import labels
from e2e.cluster import mockgpus
from e2e.cluster.kubectl import Kubectl, Manifest
from e2e.cluster.shell import run, wait
from e2e.support.deployments import node_of
from e2e.support.traffic import Account

_FAULT_FILE = """
import glob, sys
for folder in {glob.os.path.dirname(path) for path in glob.glob('/dev/shm/*/state.json')}:
    with open(folder + '/faults.json', 'w') as file:
        file.write(sys.argv[1])
"""
HTTP = labels.PORT_HTTP
_GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).status)"


@dataclass(frozen=True)
class Fault:
    """When it happened, and how the client's requests divide around it."""

    at: float
    aftermath: float
    """Seconds after it in which requests may fail."""

    @classmethod
    def now(cls, aftermath: float) -> Fault:
        return cls(time.time(), aftermath)

    def over(self, since: float = 0) -> bool:
        """Whether the aftermath ended at least so many seconds ago."""
        return time.time() > self.at + self.aftermath + since

    def check(self, account: Account) -> Account:
        """Nothing failed before the fault or once its aftermath is over; the requests in between.

        A request that was on its way at the fault belongs to the aftermath.
        """
        before = Account(tuple(each for each in account.requests if each.ended < self.at))
        after = account.between(self.at + self.aftermath, float("inf"))
        assert before.requests, "there was traffic before the fault"
        assert after.requests, "there was traffic after the aftermath"
        assert not before.failed, f"before the fault: {before}"
        assert not after.failed, f"later than {self.aftermath:.0f} s after the fault: {after}"
        rest = set(before.requests) | set(after.requests)
        return Account(tuple(each for each in account.requests if each not in rest))


# --- containers and processes -----------------------------------------------------------------------------------------
def kill_container(pod: Manifest) -> None:
    """SIGKILL to the first process of the pod's container, as the kernel's OOM killer sends it."""
    signal_container(pod, "SIGKILL")


def signal_container(pod: Manifest, signal: str) -> None:
    """SIGSTOP stops it where it is: nothing answers, nothing ends."""
    run("docker", "exec", node_of(pod), "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", signal, _container(pod))


def hang_engine(kubectl: Kubectl, pod: Manifest) -> None:
    """The engine takes no further step; Triton's own health goes on to be 200."""
    in_pod(kubectl, pod, "-c", _FAULT_FILE, '{"hang": true}')


def slow_engine(kubectl: Kubectl, pod: Manifest, times: float) -> None:
    """Every step of the engine takes so many times as long."""
    in_pod(kubectl, pod, "-c", _FAULT_FILE, json.dumps({"slow": times}))


def http_status(kubectl: Kubectl, pod: Manifest, port: int, path: str) -> int:
    """Of a page of the pod, asked from inside it. Raises Failed for errors of HTTP, too."""
    return int(in_pod(kubectl, pod, "-c", _GET, f"http://{pod['status']['podIP']}:{port}{path}"))


def in_pod(kubectl: Kubectl, pod: Manifest, *arguments: str) -> str:
    """Output of the container's python3."""
    meta = pod["metadata"]
    return kubectl("exec", f"--namespace={meta['namespace']}", meta["name"], "--", "python3", *arguments)


def _container(pod: Manifest) -> str:
    return str(pod["status"]["containerStatuses"][0]["containerID"]).removeprefix("containerd://")


# --- GPUs -------------------------------------------------------------------------------------------------------------
def devices_of(kubectl: Kubectl, pod: Manifest) -> list[str]:
    """Names of the devices that the kubelet gave to the pod."""
    return in_pod(kubectl, pod, "-c", "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])").strip().split(",")


def break_one_device_of(kubectl: Kubectl, pod: Manifest) -> str:
    """Name of the device."""
    device = devices_of(kubectl, pod)[0]
    mockgpus.break_devices(node_of(pod), int(device.rpartition("-")[2]))
    return device


# --- nodes ------------------------------------------------------------------------------------------------------------
def pause_node(node: str) -> None:
    """Silent at once: no process of it runs, its connections hang."""
    run("docker", "pause", node)


def unpause_node(node: str) -> None:
    run("docker", "unpause", node)


def stop_node(node: str) -> None:
    """As a machine whose power is cut: no process is asked to end."""
    run("docker", "kill", "--signal=KILL", node)


def start_node(node: str) -> None:
    run("docker", "start", node)


def stop_kubelet(node: str) -> None:
    """Containers go on; nobody tells the API server of them."""
    run("docker", "exec", node, "systemctl", "stop", "kubelet")


def start_kubelet(node: str) -> None:
    run("docker", "exec", node, "systemctl", "start", "kubelet")


def kill_api_server(kubectl: Kubectl, control_plane: str) -> None:
    """The kubelet starts it again; returns when it answers."""
    listed = run("docker", "exec", control_plane, "ctr", "-n", "k8s.io", "tasks", "ls")
    names = run("docker", "exec", control_plane, "ctr", "-n", "k8s.io", "containers", "ls")
    servers = {line.split()[0] for line in names.splitlines() if "kube-apiserver" in line}
    running = [line.split()[0] for line in listed.splitlines() if "RUNNING" in line and line.split()[0] in servers]
    for task in running:
        run("docker", "exec", control_plane, "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", task)
    assert running, "the API server ran"
    wait("the API server answers again", kubectl.answers, timeout=180)
