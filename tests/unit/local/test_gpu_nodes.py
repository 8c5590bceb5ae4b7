"""Manifests of simulated nodes have what discovery and the scheduler read on real ones."""

from __future__ import annotations

from berth.labels import SIMULATED_KUBELET
from berth.local.kwok import gpu_node


def test_a_node_says_product_zone_and_gpus() -> None:
    node = gpu_node("n1", product="NVIDIA-A100-SXM4-40GB", gpus=4, zone="b", labels={"extra": "1"})
    labels = node["metadata"]["labels"]
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-40GB"
    assert labels["topology.kubernetes.io/zone"] == "b"
    assert labels["kubernetes.io/hostname"] == "n1"
    assert labels[SIMULATED_KUBELET] == "running"
    assert labels["extra"] == "1"
    for resources in (node["status"]["capacity"], node["status"]["allocatable"]):
        assert resources["nvidia.com/gpu"] == "4"


def test_gpus_can_become_unhealthy_without_leaving_the_capacity() -> None:
    node = gpu_node("n1", product="X", gpus=8)
    node["status"]["allocatable"]["nvidia.com/gpu"] = "7"
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "8"
