"""Operator processes as they run in a cluster: two of one installation, each with a network of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from berth.local.controlplane import ControlPlane
from tests.support.berth import free_port
from tests.support.cluster import Cluster, eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.manifests import fixed_deployment

LEASE = "berth-operator"


@dataclass
class Replica:
    """One process `berth operator run`."""

    name: str
    proxy: FaultProxy
    process: asyncio.subprocess.Process
    port: int
    log: Path

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.wait_for(self.process.wait(), 60)

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page; AssertionError with the log while nobody answers."""
        url, limit = f"http://127.0.0.1:{self.port}{path}", aiohttp.ClientTimeout(total=5)
        try:
            async with aiohttp.ClientSession(timeout=limit) as session, session.get(url) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError as error:
            raise AssertionError(f"{self.name}: {error}: {self.log.read_text()[-2000:]}") from error

    async def ready(self) -> bool:
        return await self.page("/readyz") == (200, "ok\n")

    async def leads(self) -> bool:
        return "berth_leader 1.0" in (await self.page("/metrics"))[1]


@dataclass
class Installation:
    """Makes replicas that contend for one Lease in one namespace, and deployments for them to judge."""

    control_plane: ControlPlane
    token: str
    """As which they work."""
    cluster: Cluster
    namespace: str
    folder: Path
    stack: AsyncExitStack
    replicas: list[Replica] = field(default_factory=list)

    async def start(self, name: str, *, cut_off: bool = False, **settings: Any) -> Replica:
        """A process that has just been started; `cut_off` from the API server if so wished."""
        proxy = await self.stack.enter_async_context(FaultProxy(self.control_plane))
        if cut_off:
            proxy.partition()
        kubeconfig, port, log = self.folder / f"{name}.kubeconfig", free_port(), self.folder / f"{name}.log"
        self.control_plane.write_kubeconfig(kubeconfig, token=self.token, server=proxy.url)
        wanted = {
            "kubeconfig": kubeconfig,
            "namespace": self.namespace,
            "lease_namespace": self.namespace,
            "lease_name": LEASE,
            "listen": f"127.0.0.1:{port}",
            "lease_duration": 8,
            "lease_renew_deadline": 6,
            "lease_retry": 0.5,
            "watch": 5,
            **settings,
        }
        environment = {f"BERTH_{key.upper()}": str(value) for key, value in wanted.items()}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "berth", "operator", "run", "--log-format", "json"),
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
            )
        replica = Replica(name, proxy, process, port, log)
        self.replicas.append(replica)
        return replica

    async def pair(self, **settings: Any) -> tuple[Replica, Replica]:
        """A leader and a standby, both ready."""
        leader = await self.start("first", **settings)
        await eventually(leader.ready)
        await eventually(leader.leads)
        standby = await self.start("second", **settings)
        await eventually(standby.ready)
        return leader, standby

    async def create(self, name: str) -> None:
        """A deployment that needs nothing of the cluster to be judged: its pool does not exist."""
        await self.cluster.create(fixed_deployment(name, self.namespace, "nowhere", tp=1, groups=1))

    async def judged(self, name: str) -> bool:
        """Whether somebody who leads has said what is wrong with it."""
        status = (await self.cluster.get("llmdeployments", name, self.namespace)).get("status") or {}
        return any(each["type"] == "Accepted" and each["status"] == "False" for each in status.get("conditions", ()))

    async def lease(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cluster.get("leases", LEASE, self.namespace))["spec"]
        return found

    async def close(self) -> None:
        for replica in self.replicas:
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()


@pytest.fixture
async def installation(
    control_plane: ControlPlane, operator_token: str, cluster: Cluster, namespace: str, tmp_path: Path
) -> AsyncIterator[Installation]:
    await cluster.install_crds()
    async with AsyncExitStack() as stack:
        made = Installation(control_plane, operator_token, cluster, namespace, tmp_path, stack)
        stack.push_async_callback(made.close)
        yield made
