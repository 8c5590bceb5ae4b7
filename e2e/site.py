"""Everything that scenarios stand on: the cluster with mock GPUs, Triton's image on it, pools, clients, and Berth."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Final

import yaml

from e2e.cluster import engine, images, kind, mockgpus
from e2e.cluster.images import CHECKOUT, Archive
from e2e.cluster.kind import Cluster, Detection
from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import Failed, run, wait
from e2e.cluster.steps import say
from e2e.support import traffic
from e2e.support.berth import Berth

SAMPLES: Final = CHECKOUT / "manifests" / "samples"


@dataclass(frozen=True)
class Site:
    cluster: Cluster
    berth: Berth
    triton: Archive

    def repair(self) -> None:
        """Every node runs, is Ready, takes pods and has healthy GPUs; pools are those of the samples."""
        for container in kind.containers(self.cluster.name):
            state = run("docker", "inspect", "--format={{.State.Status}}", container).strip()
            if state == "paused":
                run("docker", "unpause", container)
            elif state != "running":
                run("docker", "start", container)
        wait("the API server answers", self.cluster.kubectl.answers, timeout=180)
        there = self.cluster.nodes()
        for node in kind.workers(self.cluster.name):
            if node not in there:
                run("docker", "exec", node, "systemctl", "restart", "kubelet")
        wait("every node is known", lambda: len(self.cluster.nodes()) == len(kind.SHAPE), timeout=120)
        for node in self.cluster.nodes():
            self.cluster.kubectl("taint", "node", node, kind.GPU_TAINT, "--overwrite")
            mockgpus.heal_devices(node)
            mockgpus.label_again(self.cluster, node)
            run("docker", "exec", node, "systemctl", "start", "containerd", "kubelet")
            self.cluster.kubectl("uncordon", node)
        self.cluster.kubectl.apply(*pools())
        wait("every node is Ready with its GPUs", self._whole, timeout=180, every=1)

    def _whole(self) -> bool:
        nodes = [self.cluster.kubectl.get("node", name) for name in self.cluster.nodes()]
        unusable = [
            taint["key"] for node in nodes for taint in node["spec"].get("taints", ()) if "node." in taint["key"]
        ]
        return not unusable and all(mockgpus.complete(node) for node in nodes)


def up(detection: Detection | None = None) -> Site:
    """Raises engine.NoEngine where no cluster can be had."""
    cluster = cluster_up(detection)
    triton, operator = images.triton(), images.operator()
    cluster.load(triton, cluster.nodes())
    berth = Berth(cluster, operator)
    berth.install()
    cluster.kubectl.apply(*pools())
    traffic.install(cluster, operator)
    return Site(cluster, berth, triton)


def cluster_up(detection: Detection | None = None) -> Cluster:
    """The cluster with GPUs and without Berth."""
    chosen = detection or kind.DETECTIONS[os.environ.get("DETECTION", "quick")]
    node_image = os.environ.get("NODE_IMAGE", "")
    cluster = kind.ensure(chosen, node_image=node_image)
    mockgpus.install(cluster, images.mock_gpu(images.built(node_image=node_image)))
    return cluster


def down() -> None:
    """The cluster, and the engine if it was started for it."""
    if engine.answers():
        try:
            kind.delete()
        except Failed as error:
            say(f"the cluster was not deleted: {error}")
    else:
        say("no Docker engine runs: there is no cluster to delete")
    if engine.stop():
        say("stopped the Docker engine")


def pools() -> list[Manifest]:
    """Those of the samples: labels and products are what the mock GPUs say."""
    return [pool for pool in yaml.safe_load_all((SAMPLES / "pools.yaml").read_text()) if pool]


def sample(name: str, namespace: str, site: Site, **spec: Any) -> Manifest:
    """A sample of the manual on Triton's image of this site; `spec` replaces top-level fields."""
    manifest: Manifest = next(yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()))
    manifest["metadata"]["namespace"] = namespace
    manifest["spec"] |= spec
    manifest["spec"]["engine"] = {"backend": "simulated", "image": site.triton.name}
    return manifest


def unique(word: str) -> str:
    return f"{word[:30]}-{int(time.time()) % 100000}"
