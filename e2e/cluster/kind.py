"""The kind cluster: one control plane, which also runs the operator and the clients, and GPU nodes in two zones.

A cluster of the same name, shape and node image that still answers is used again; any other of that name is replaced.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from berth.local import binaries
from e2e.cluster import engine, images, nodeimage, programs
from e2e.cluster.images import Archive
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.shell import Failed, run, wait
from e2e.cluster.steps import cache, digest, say

NAME: Final = "berth-e2e"
GPU_LABEL: Final = "e2e.berth.dev/gpu"
"""On a node: which product its mock GPUs are, as the device plugin's DaemonSets select it."""
ZONE: Final = "topology.kubernetes.io/zone"
GPU_TAINT: Final = "nvidia.com/gpu=present:NoSchedule"


@dataclass(frozen=True)
class GpuNode:
    gpu: str
    """h100 or a100-40."""
    zone: str


SHAPE: Final = (GpuNode("h100", "zone-a"), GpuNode("h100", "zone-b"), GpuNode("a100-40", "zone-a"))


@dataclass(frozen=True)
class Detection:
    """How soon Kubernetes notices a dead node; seconds."""

    name: str
    status_update: int
    lease: int
    monitor_period: int
    monitor_grace: int
    toleration: int


QUICK: Final = Detection("quick", 3, 8, 2, 12, 5)
DEFAULT: Final = Detection("default", 10, 40, 5, 50, 300)
DETECTIONS: Final = {each.name: each for each in (QUICK, DEFAULT)}


@dataclass(frozen=True)
class Cluster:
    name: str
    kubectl: Kubectl
    helm: Path
    detection: Detection

    @property
    def control_plane(self) -> str:
        return f"{self.name}-control-plane"

    def nodes(self, gpu: str = "", zone: str = "") -> list[str]:
        """Names of the GPU nodes, in order."""
        selector = [f"{GPU_LABEL}={gpu}" if gpu else GPU_LABEL, *([f"{ZONE}={zone}"] if zone else [])]
        return sorted(node["metadata"]["name"] for node in self.kubectl.list("nodes", labels=",".join(selector)))

    def load(self, image: Archive, nodes: Sequence[str]) -> None:
        """Puts the image into the nodes that lack it."""
        with ThreadPoolExecutor(len(nodes)) as pool:
            list(pool.map(lambda node: _load(image, node), nodes))


def ensure(
    detection: Detection = QUICK, shape: Sequence[GpuNode] = SHAPE, name: str = NAME, node_image: str = ""
) -> Cluster:
    """A cluster whose nodes are Ready. `node_image` is a public one, for machines that reach its registry."""
    engine.ensure()
    paths = images.built(node_image=node_image)
    image = node_image or nodeimage.ensure(paths)
    configuration = _configuration(detection, shape, ours=not node_image)
    cluster = Cluster(name, Kubectl(paths["kubectl"], _home(name) / "kubeconfig"), paths["helm"], detection)
    wanted = digest([image, configuration])
    stamp = _home(name) / "made-from"
    if stamp.is_file() and stamp.read_text() == wanted and cluster.kubectl.answers():
        say(f"cluster {name} is there already")
        return cluster
    delete(name, paths["kind"])
    began = time.monotonic()
    say(f"cluster {name}: {1 + len(shape)} nodes from {image}, {detection.name} detection of dead nodes")
    (_home(name) / "kind.yaml").write_text(configuration)
    command: list[str | Path] = [paths["kind"], "create", "cluster", "--name", name, "--image", image, "--wait=0s"]
    files: list[str | Path] = ["--config", _home(name) / "kind.yaml", "--kubeconfig", cluster.kubectl.kubeconfig]
    run(*command, *files, environment=_environment(), timeout=600)
    cluster.kubectl.wait_for_nodes(1 + len(shape))
    for node in cluster.nodes():
        cluster.kubectl("taint", "node", node, GPU_TAINT, "--overwrite")
    wait("the system's pods are Ready", lambda: _system_ready(cluster.kubectl), timeout=180, every=2)
    stamp.write_text(wanted)
    say(f"cluster {name}: ready after {time.monotonic() - began:.0f} s")
    return cluster


def delete(name: str = NAME, kind: Path | None = None) -> None:
    program = kind or binaries.provide([programs.KIND])["kind"]
    (_home(name) / "made-from").unlink(missing_ok=True)
    kubeconfig = _home(name) / "kubeconfig"
    run(program, "delete", "cluster", "--name", name, "--kubeconfig", kubeconfig, environment=_environment())


def containers(name: str = NAME) -> list[str]:
    """The nodes' containers, also those that are paused or stopped."""
    return run("docker", "ps", "-a", "-q", "--filter", f"label=io.x-k8s.kind.cluster={name}").split()


def workers(name: str = NAME) -> list[str]:
    """Containers of the GPU nodes, called like the nodes."""
    labels = [f"label=io.x-k8s.kind.cluster={name}", "label=io.x-k8s.kind.role=worker"]
    filters = [part for label in labels for part in ("--filter", label)]
    return sorted(run("docker", "ps", "-a", "--format={{.Names}}", *filters).split())


def _configuration(detection: Detection, shape: Sequence[GpuNode], *, ours: bool) -> str:
    kubelet: dict[str, Any] = {
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "nodeStatusUpdateFrequency": f"{detection.status_update}s",
        "nodeLeaseDurationSeconds": detection.lease,
        **({"cgroupDriver": "cgroupfs"} if ours else {}),  # as our containerd's SystemdCgroup = false
    }
    cluster: dict[str, Any] = {
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": _arguments(
                default_not_ready_toleration_seconds=detection.toleration,
                default_unreachable_toleration_seconds=detection.toleration,
            )
        },
        "controllerManager": {
            "extraArgs": _arguments(
                node_monitor_period=f"{detection.monitor_period}s",
                node_monitor_grace_period=f"{detection.monitor_grace}s",
            )
        },
        **({"etcd": {"local": {"imageTag": images.ETCD_TAG}}} if ours else {}),
    }
    workers = [{"role": "worker", "labels": {GPU_LABEL: node.gpu, ZONE: node.zone}} for node in shape]
    content = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {
            "ipFamily": "ipv4",
            "apiServerAddress": "127.0.0.1",
            "podSubnet": engine.POD_NETWORK,
            "serviceSubnet": engine.SERVICE_NETWORK,
            "kubeProxyMode": "nftables",
        },
        "kubeadmConfigPatches": [yaml.safe_dump(kubelet), yaml.safe_dump(cluster)],
        "nodes": [{"role": "control-plane"}, *workers],
    }
    return yaml.safe_dump(content, sort_keys=False)


def _arguments(**values: str | int) -> list[dict[str, str]]:
    return [{"name": name.replace("_", "-"), "value": str(value)} for name, value in values.items()]


def _system_ready(kubectl: Kubectl) -> bool:
    pods = kubectl.list("pods", "kube-system")
    statuses = [status for pod in pods for status in pod.get("status", {}).get("containerStatuses", [{}])]
    return len(pods) > 0 and all(status.get("ready") for status in statuses)


def _load(image: Archive, node: str) -> None:
    listed = run("docker", "exec", node, "ctr", "-n", "k8s.io", "images", "ls", "-q")
    if image.name in listed.split():
        return
    command = ["docker", "exec", "-i", node, "ctr", "-n", "k8s.io", "images", "import", "--all-platforms", "-"]
    with image.path.open("rb") as archive:
        done = subprocess.run(command, stdin=archive, capture_output=True, timeout=600)
    if done.returncode:
        raise Failed(f"{image.name} cannot be loaded into {node}: {done.stderr.decode()[-1000:]}")


def _home(name: str) -> Path:
    folder = cache() / f"cluster-{name}"
    folder.mkdir(exist_ok=True)
    return folder


def _environment() -> dict[str, str]:
    """kind looks at KUBECONFIG and KIND_*: the caller's are none of our business."""
    return {key: value for key, value in os.environ.items() if key != "KUBECONFIG" and not key.startswith("KIND_")}
