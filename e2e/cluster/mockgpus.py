"""Mock GPUs on the nodes: one DaemonSet of the device plugin per product, and the switch that makes devices unhealthy.

`nvml-mock` and `fake-gpu-operator` can take its place: docs/testing.md says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from e2e.cluster.images import Archive
from e2e.cluster.kind import GPU_LABEL, Cluster
from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import run, wait

RESOURCE: Final = "nvidia.com/gpu"
PER_NODE: Final = 8
_FAULTS: Final = "/var/lib/mock-gpu/faults"
_NAMESPACE: Final = "kube-system"


@dataclass(frozen=True)
class Product:
    label: str
    memory_mib: int
    family: str


PRODUCTS: Final = {
    "h100": Product("NVIDIA-H100-80GB-HBM3", 81559, "hopper"),
    "a100-40": Product("NVIDIA-A100-SXM4-40GB", 40960, "ampere"),
}


def install(cluster: Cluster, image: Archive) -> None:
    """Returns when every GPU node offers its devices and has its labels."""
    nodes = cluster.nodes()
    cluster.load(image, nodes)
    cluster.kubectl.apply(*_permissions(), *(_daemon_set(name, image.name) for name in PRODUCTS))
    wait(
        "the nodes offer GPUs", lambda: all(complete(cluster.kubectl.get("node", node)) for node in nodes), timeout=120
    )


def allocatable(node: Manifest) -> int:
    return int(node["status"].get("allocatable", {}).get(RESOURCE, 0))


def break_devices(node: str, *devices: int) -> None:
    """Unhealthy as after a critical XID; without numbers all of them."""
    for name in devices or ("all",):
        run("docker", "exec", node, "touch", f"{_FAULTS}/{name}")


def heal_devices(node: str) -> None:
    run("docker", "exec", node, "find", _FAULTS, "-type", "f", "-delete")


def label_again(cluster: Cluster, node: str) -> None:
    """A node that was deleted and came back soon has a device plugin that said its labels to the former one."""
    if f"{RESOURCE}.product" in cluster.kubectl.get("node", node)["metadata"]["labels"]:
        return
    here = f"spec.nodeName={node}"
    for gpu in PRODUCTS:
        for pod in cluster.kubectl.list("pods", _NAMESPACE, f"app=mock-gpu-{gpu}", here):
            cluster.kubectl.delete("pod", pod["metadata"]["name"], _NAMESPACE)


def complete(node: Manifest) -> bool:
    """It offers all its devices and has its labels."""
    return allocatable(node) == PER_NODE and f"{RESOURCE}.product" in node["metadata"]["labels"]


def _permissions() -> list[Manifest]:
    name = "mock-gpu"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": _NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": _NAMESPACE}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    ]


def _daemon_set(gpu: str, image: str) -> Manifest:
    product, labels = PRODUCTS[gpu], {"app": f"mock-gpu-{gpu}"}
    paths = {"plugins": ("/var/lib/kubelet/device-plugins", "Directory"), "faults": (_FAULTS, "DirectoryOrCreate")}
    environment: list[Any] = [
        {"name": "GPU_COUNT", "value": str(PER_NODE)},
        {"name": "GPU_PRODUCT", "value": product.label},
        {"name": "GPU_MEMORY_MIB", "value": str(product.memory_mib)},
        {"name": "GPU_FAMILY", "value": product.family},
        {"name": "FAULTS", "value": _FAULTS},
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]
    pod = {
        "serviceAccountName": "mock-gpu",
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": {GPU_LABEL: gpu},
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": "plugin",
                "image": image,
                "imagePullPolicy": "Never",
                "env": environment,
                "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in paths.items()],
            }
        ],
        "volumes": [{"name": name, "hostPath": {"path": path, "type": kind}} for name, (path, kind) in paths.items()],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": f"mock-gpu-{gpu}", "namespace": _NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
