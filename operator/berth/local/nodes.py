"""Manifests of GPU nodes, as a kubelet and NVIDIA's GPU feature discovery would have written them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

GPU_RESOURCE: Final = "nvidia.com/gpu"
PRODUCT_LABEL: Final = "nvidia.com/gpu.product"


def gpu_node(
    name: str,
    *,
    product: str,
    address: str,
    gpus: int = 8,
    zone: str = "a",
    cpu: str = "192",
    memory: str = "2Ti",
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A node with `gpus` GPUs of `product` (as in the label that GPU feature discovery writes)."""
    resources = {"cpu": cpu, "memory": memory, "pods": "250", "ephemeral-storage": "2Ti", GPU_RESOURCE: str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                PRODUCT_LABEL: product,
                "kubernetes.io/hostname": name,
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone,
                **(labels or {}),
            },
        },
        "status": {
            "capacity": resources,
            "allocatable": dict(resources),
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        },
    }
