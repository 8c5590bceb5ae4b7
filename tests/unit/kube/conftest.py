"""A scripted server and a client with short time-outs for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from berth.kube.client import KubeClient
from berth.kube.limits import Limits
from tests.unit.kube.scripted import ScriptedServer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    listener = await asyncio.start_server(scripted.connected, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield scripted
    listener.close()
    for task in scripted.tasks:
        task.cancel()


@pytest.fixture
async def api(server: ScriptedServer) -> AsyncIterator[ApiClient]:
    async with ApiClient(Configuration(host=server.url)) as client:
        yield client


@pytest.fixture
def client(api: ApiClient) -> KubeClient:
    return KubeClient(api, limits=Limits(request_seconds=0.3, list_seconds=0.3, connect_seconds=0.3))
