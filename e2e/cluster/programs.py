"""The programs inside the cluster and the one that makes it, pinned by `e2e/gomodules` and built as Berth's others are.

All are static: they run in images without a C library. What Berth's own tests already build (API server, controller
manager, scheduler, kubectl, etcd, helm) is taken from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from berth.local.binaries import KUBERNETES_STAMPS, KUBERNETES_VERSION, Binary

MODULES: Final = Path(__file__).parents[1] / "gomodules"
ETCD_VERSION: Final = "3.7.3"
KIND_VERSION: Final = "v0.33.0"
CONTAINERD_VERSION: Final = "v2.4.2"
COREDNS_VERSION: Final = "1.14.6"

_CONTAINERD: Final = "github.com/containerd/containerd/v2"
_CNI: Final = "github.com/containernetworking/plugins/plugins"


def _node(name: str, *version_arguments: str) -> Binary:
    return Binary(
        name,
        "node",
        f"k8s.io/kubernetes/cmd/{name}",
        KUBERNETES_VERSION,
        version_arguments or ("--version",),
        f"-s -w {KUBERNETES_STAMPS}",
        modules=MODULES,
    )


def _containerd(name: str, *version_arguments: str) -> Binary:
    return Binary(
        name,
        "containerd",
        f"{_CONTAINERD}/cmd/{name}",
        CONTAINERD_VERSION,
        version_arguments or ("--version",),
        f"-s -w -X {_CONTAINERD}/version.Version={CONTAINERD_VERSION}",
        tags="no_btrfs,no_devmapper,no_zfs,no_aufs",
        modules=MODULES,
    )


def _silent(name: str, module: str, package: str = ".") -> Binary:
    return Binary(name, module, package, "", version_arguments=(), modules=MODULES)


MOCK_GPU: Final = _silent("mockgpu", "mockgpu")
KIND: Final = Binary("kind", "kind", "sigs.k8s.io/kind", KIND_VERSION, ("version",), modules=MODULES)
NODE: Final = (
    _node("kubelet"),
    _node("kubeadm", "version", "-o", "short"),
    _containerd("containerd"),
    _containerd("containerd-shim-runc-v2", "-v"),
    _containerd("ctr"),
    *(_silent(name, "cni", f"{_CNI}/{kind}/{name}") for kind, name in (
        ("main", "loopback"), ("main", "ptp"), ("ipam", "host-local"), ("meta", "portmap"),
    )),
)  # fmt: skip
"""In the node image, beside kubectl."""
IN_IMAGES: Final = (
    _node("kube-proxy"),
    Binary("coredns", "coredns", ".", f"CoreDNS-{COREDNS_VERSION}", ("-version",), modules=MODULES),
    _silent("podnet", "podnet"),
    MOCK_GPU,
)
"""In images of their own, beside etcd and the control plane."""
FROM_BERTH: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "helm")
LEADER_WORKER_SET: Final = _silent("lws", "lws", "sigs.k8s.io/lws/cmd")
BESIDE_NODES: Final[tuple[str | Binary, ...]] = (KIND, MOCK_GPU, "kubectl", "helm")
"""What a public node image does not bring."""
EVERYTHING: Final[tuple[str | Binary, ...]] = (KIND, *NODE, *IN_IMAGES, *FROM_BERTH)
