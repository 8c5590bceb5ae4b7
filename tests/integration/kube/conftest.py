"""Berth's own client on the shared control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient

from berth.kube.auth import configuration
from berth.kube.client import KubeClient


@pytest.fixture
async def api(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    async with ApiClient(await configuration(str(kubeconfig))) as client:
        yield client


@pytest.fixture
def client(api: ApiClient) -> KubeClient:
    return KubeClient(api)
