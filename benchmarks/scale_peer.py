"""LeaderWorkerSets where `benchmarks.bench_scale` has LLMDeployments: the same control plane, simulated nodes and GPUs.

Each has one group of one pod with one GPU, as the deployments have. A LeaderWorkerSet is Available once its pods are
Ready, which simulated ones are as soon as they are bound: no token is asked for, no GPU is chosen. Its program runs in
a process of its own with its defaults, webhooks included, as its chart would install it.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.scale_cluster import cpu_seconds, each, memory_mib, namespace_of, prepare, until
from berth.local import binaries
from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from berth.local.processes import ChildProcess
from e2e.cluster.programs import LEADER_WORKER_SET
from e2e.support import leader_worker_set
from tests.support.berth import free_port
from tests.support.cluster import ApiError, Cluster, eventually

_GROUP: Final = "leaderworkerset.x-k8s.io"
_FIRST: Final = "first"
"""Shows that the webhooks answer."""


@dataclass(frozen=True)
class PeerFigures:
    leader_worker_sets: int
    available_seconds: float
    """From the first create to the last Available."""
    cpu_seconds: float
    memory_mib: float


async def measure(sets: int) -> PeerFigures:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        async with ControlPlane(folder / "cluster", node_monitor_period=2, node_monitor_grace_period=40) as plane:
            kwok = Kwok(plane.kubeconfig, folder / "kwok")
            kwok.start()
            peer: ChildProcess | None = None
            try:
                async with Cluster(plane.kubeconfig) as cluster:
                    await prepare(cluster, sets)
                    peer = await _install(cluster, plane, folder)
                    return await _run(cluster, peer, sets)
            finally:
                if peer:
                    await peer.stop()
                await kwok.stop()


async def _run(cluster: Cluster, peer: ChildProcess, sets: int) -> PeerFigures:
    cpu, began = cpu_seconds(peer.pid), time.monotonic()
    await each([_leader_worker_set(number) for number in range(sets)], cluster.create)

    async def available() -> bool:
        found = await cluster.list("leaderworkersets")
        return sum(_is_available(one) for one in found if one["metadata"]["name"] != _FIRST) == sets

    await until(sets, available)
    seconds = round(time.monotonic() - began, 1)
    return PeerFigures(sets, seconds, round(cpu_seconds(peer.pid) - cpu, 1), round(memory_mib(peer.pid), 1))


async def _install(cluster: Cluster, plane: ControlPlane, folder: Path) -> ChildProcess:
    """Definitions, the program, its webhooks; its certificate is the API server's, which is for this address too."""
    module = leader_worker_set.module()
    for path in sorted((module / "config" / "crd" / "bases").glob("*.yaml")):
        await cluster.create(yaml.safe_load(path.read_text()))
    certificates = folder / "lws"
    certificates.mkdir()
    for ending in ("crt", "key"):
        shutil.copy(plane.directory / f"certificates/apiserver.{ending}", certificates / f"tls.{ending}")
    port, health = free_port(), free_port()
    configuration = {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "internalCertManagement": {"enable": False},
        "leaderElection": {"leaderElect": False},
        "webhook": {"port": port, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
    }
    (folder / "lws.yaml").write_text(yaml.safe_dump(configuration))
    program = binaries.provide([LEADER_WORKER_SET])["lws"]
    peer = ChildProcess(
        "lws",
        [str(program), f"--config={folder / 'lws.yaml'}", "--zap-log-level=error"],
        directory=folder,
        log=folder / "lws.log",
        environment={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
    )
    peer.start()
    authority = base64.b64encode(plane.certificate_authority.read_bytes()).decode()
    of_a_set = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}
    for manifest in yaml.safe_load_all((module / "config" / "webhook" / "manifests.yaml").read_text()):
        for webhook in manifest["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}
            if any("pods" in rule["resources"] for rule in webhook["rules"]):
                webhook["objectSelector"] = of_a_set  # as its chart has it: no other pod waits for it
        await cluster.create(manifest)

    async def serves() -> bool:
        try:
            await cluster.create(_leader_worker_set(-1))
        except (ApiError, KeyError):  # no webhook answers yet, or the kind is not known yet
            return False
        return True

    await eventually(serves, timeout=120)
    return peer


def _is_available(manifest: dict[str, Any]) -> bool:
    conditions = manifest.get("status", {}).get("conditions", ())
    return any(one["type"] == "Available" and one["status"] == "True" for one in conditions)


def _leader_worker_set(number: int) -> dict[str, Any]:
    container = {"name": "serve", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    worker = {"spec": {"containers": [container], "tolerations": tolerations}}
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": f"l{number}" if number >= 0 else _FIRST, "namespace": namespace_of(max(0, number))},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 1, "workerTemplate": worker}},
    }
