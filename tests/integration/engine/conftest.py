"""Pods with a real Triton server; skipped, with the reason, only where its binaries cannot run or be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from berth.local import triton_env
from tests.integration.engine.pod import Pod


@pytest.fixture(scope="session")
def triton() -> triton_env.TritonEnv:
    try:
        return triton_env.ensure()
    except triton_env.Unavailable as error:
        pytest.skip(f"no Triton server: {error}")


@pytest.fixture
def make_pod(triton: triton_env.TritonEnv, tmp_path: Path) -> Iterator[Callable[[], Pod]]:
    """Pods of one test; after it nothing of them may be left."""
    pods: list[Pod] = []

    def make() -> Pod:
        pods.append(Pod(triton, tmp_path / str(len(pods))))
        return pods[-1]

    yield make
    for pod in pods:
        pod.close()
        pod_left = pod.descendants(), pod.shared_memory()
        assert pod_left == ([], []), pod.log


@pytest.fixture
def pod(make_pod: Callable[[], Pod]) -> Pod:
    return make_pod()
