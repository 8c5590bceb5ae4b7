"""A public node image takes the place of ours: kind gets its name, and nothing that it holds is built."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from berth.local import binaries
from berth.local.binaries import Binary
from e2e import site
from e2e.cluster import engine, kind, mockgpus, nodeimage
from e2e.cluster.images import Archive

PUBLIC = "kindest/node:v1.37.2@sha256:0123"
WHOLE = {"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"ready": True}]}
"""A status of nodes and of pods."""


class Builds:
    """Programs that only write down how they were called, and what was asked to be built."""

    def __init__(self, folder: Path) -> None:
        self.programs: set[str] = set()
        self.node_images = 0
        self._folder = folder

    def provide(self, wanted: Iterable[str | Binary]) -> dict[str, Path]:
        paths = {}
        for each in wanted:
            name = each if isinstance(each, str) else each.name
            self.programs.add(name)
            paths[name] = self._folder / name
            items = [{"metadata": {"name": f"n{number}"}, "status": WHOLE} for number in range(1 + len(kind.SHAPE))]
            (self._folder / "answer").write_text(json.dumps({"items": items}))
            script = f"""#!/bin/sh
echo "$@" >> {paths[name]}.calls
case "$*" in *readyz*) echo ok ;; *) cat {self._folder}/answer ;; esac
"""
            paths[name].write_text(script)
            paths[name].chmod(0o755)
        return paths

    def node_image(self, _paths: dict[str, Path]) -> str:
        self.node_images += 1
        return "berth-e2e/node:ours"

    def calls(self, name: str) -> list[str]:
        return (self._folder / f"{name}.calls").read_text().splitlines()


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "provide", made.provide)
    monkeypatch.setattr(nodeimage, "ensure", made.node_image)
    monkeypatch.setattr(engine, "ensure", lambda: None)
    monkeypatch.setattr(mockgpus, "install", lambda _cluster, _image: None)
    monkeypatch.setattr(site.images, "mock_gpu", lambda paths: Archive("mockgpu", paths["mockgpu"]))
    return made


def test_a_public_image_reaches_kind_and_what_it_holds_is_not_built(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_IMAGE", PUBLIC)
    cluster = site.cluster_up()
    assert builds.programs == {"kind", "kubectl", "helm", "mockgpu"}
    assert builds.node_images == 0
    (created,) = [call for call in builds.calls("kind") if call.startswith("create cluster")]
    assert f"--image {PUBLIC} " in created
    assert "imageTag" not in _patches(cluster), "its own etcd, its own cgroup driver"
    assert "cgroupDriver" not in _patches(cluster)


def test_without_one_ours_is_built(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_IMAGE", raising=False)
    cluster = site.cluster_up()
    assert {"kubelet", "containerd", "kubeadm", "coredns", "etcd"} <= builds.programs
    assert builds.node_images == 1
    (created,) = [call for call in builds.calls("kind") if call.startswith("create cluster")]
    assert "--image berth-e2e/node:ours " in created
    assert "imageTag" in _patches(cluster)


def test_another_image_makes_another_cluster(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    for image in (PUBLIC, PUBLIC, "kindest/node:other"):
        monkeypatch.setenv("NODE_IMAGE", image)
        site.cluster_up()
    created = [call for call in builds.calls("kind") if call.startswith("create cluster")]
    assert len(created) == 2, "the same one is used again"


def _patches(cluster: kind.Cluster) -> str:
    """What the cluster is configured with beside its nodes."""
    written = (cluster.kubectl.kubeconfig.parent / "kind.yaml").read_text()
    return "\n".join(yaml.safe_load(written)["kubeadmConfigPatches"])
