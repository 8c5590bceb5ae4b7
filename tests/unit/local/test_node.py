"""What a local node does with pods that it cannot run, or not any longer: nothing of them stays for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from berth.kube.kinds import Object
from berth.local.addresses import LoopbackNetwork
from berth.local.kubelet.container import Image
from berth.local.kubelet.node import Ground, LocalNode, NodeSpec
from tests.unit.local.kubelet_api import FakeApi, pod

GPU = {"command": ["true"], "resources": {"limits": {"nvidia.com/gpu": "1"}}}


class Broken:
    """A worker that ends in an error when it is told to."""

    def __init__(self, running: Object) -> None:
        self.pod = running
        self.place = SimpleNamespace(address="127.0.0.1")
        self.breaks = asyncio.Event()

    async def run(self) -> None:
        await self.breaks.wait()
        raise RuntimeError("no file handles left")

    def update(self, new: Object) -> None:
        self.pod = new


@pytest.fixture
async def node(tmp_path: Path) -> Any:
    """Without GPUs; its API server has one pod that asks for one."""
    nobodys: Any = SimpleNamespace()
    ground = Ground(tmp_path, tmp_path, None, Image({}, {}), (), LoopbackNetwork(130, nobodys), tmp_path)
    made: Any = LocalNode(NodeSpec("n1", 1, "X", 0, "a"), ground, nobodys)
    made._client = FakeApi(pod(GPU))
    return made


def deleted(node: Any) -> Object:
    """What the API server tells after DELETE."""
    new = {
        **node._client.pod,
        "metadata": {**node._client.pod["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"},
    }
    node._client.replace(new)
    return new


def breaking(node: Any) -> Broken:
    """A worker runs the pod."""
    worker = Broken(node._client.pod)
    node._workers[worker.pod["metadata"]["uid"]] = worker
    node._spawn(node._run(worker, worker.pod["metadata"]["uid"]), "pod")
    return worker


async def test_a_pod_that_was_refused_is_not_tried_again_and_goes_when_it_is_deleted(node: Any) -> None:
    stored = node._client.pod
    node._pod_changed(None, stored)
    await node._client.until(lambda: node._client.pod["status"]["phase"] == "Failed")
    assert node._client.pod["status"]["reason"] == "UnexpectedAdmissionError"
    node._pod_changed(stored, stored)  # a change that was on its way when it was refused
    assert not node._workers
    node._pod_changed(stored, deleted(node))
    await node._client.until(lambda: not node._client.objects)


async def test_a_pod_whose_worker_breaks_has_failed(node: Any) -> None:
    worker = breaking(node)
    worker.breaks.set()
    await node._client.until(lambda: node._client.pod["status"]["phase"] == "Failed")
    assert node._client.pod["status"]["message"].endswith("no file handles left")
    assert not node._workers


async def test_a_pod_whose_worker_breaks_while_it_ends_is_gone(node: Any) -> None:
    worker = breaking(node)
    worker.update(deleted(node))
    worker.breaks.set()
    await node._client.until(lambda: not node._client.objects)
