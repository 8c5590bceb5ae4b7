"""What the acts of the demonstration stand on: the deployment and its groups as the cluster has them, and its load."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient

from berth import labels
from berth.errors import BerthError
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.kinds import GPU_POOL, LLM_DEPLOYMENT, POD, REPLICA_GROUP, Kind, Object
from berth.kube.reflector import Reflector
from berth.local import control
from berth.local.demo.client import Replay
from berth.local.faults import switch
from berth.local.screen import Screen

NAMESPACE: Final = "default"
RATE_SECONDS: Final = 5
SERVICE_POLL: Final = 0.1
LEADERS: Final = f"{labels.MEMBER}={labels.LEADER}"


class Stage:
    """One deployment on a running cluster; everything read here is the newest that a watch has brought."""

    def __init__(self, folder: Path, screen: Screen, client: KubeClient, deployment: Object) -> None:
        self.screen = screen
        self.deployment_name: str = deployment["metadata"]["name"]
        self._folder = folder
        self._client = client
        self._manifest = deployment
        self._changed = asyncio.Event()
        self._deployments = self._watch(LLM_DEPLOYMENT)
        self._groups = self._watch(REPLICA_GROUP)
        self._leaders = self._watch(POD, label_selector=LEADERS)

    # --- what the cluster says ----------------------------------------------------------------------------------------

    @property
    def status(self) -> Object:
        """Of the deployment; empty as long as there is none."""
        found = [each for each in self._deployments.store.all() if each["metadata"]["name"] == self.deployment_name]
        status: Object = found[0].get("status", {}) if found else {}
        return status

    @property
    def moves(self) -> Object:
        """Of the deployment; empty before the first."""
        moves: Object = self.status.get("moves") or {}
        return moves

    @property
    def states(self) -> dict[str, str]:
        """By group: of its newest incarnation."""
        ordered = sorted(self._groups.store.all(), key=lambda each: int(each["spec"]["incarnation"]))
        return {each["spec"]["group"]: each.get("status", {}).get("state", "") for each in ordered}

    @property
    def leaders(self) -> dict[str, Object]:
        """By group: the pod that the Service sends requests to."""
        return {
            pod["metadata"]["labels"][labels.GROUP_LABEL]: pod
            for pod in self._leaders.store.all()
            if pod["metadata"]["labels"].get(labels.SERVING) == "true"
            and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])
        }

    def condition(self, name: str) -> bool:
        """Whether a condition of the deployment is True."""
        return any(each["type"] == name and each["status"] == "True" for each in self.status.get("conditions") or ())

    def cluster(self) -> dict[str, Any]:
        """What `berth local status` shows."""
        found: dict[str, Any] = control.ask(self._folder, {"do": "status"})
        return found

    async def service(self, pods: int, limit: float) -> str:
        """Where clients reach the deployment, once its Service has so many pods behind it. Raises BerthError."""
        deadline = asyncio.get_running_loop().time() + limit
        while True:
            found = [each for each in self.cluster()["services"] if each["name"] == self.deployment_name]
            if found and len(found[0]["pods"]) == pods:
                return f"{found[0]['address']}:{labels.PORT_GRPC}"
            if asyncio.get_running_loop().time() > deadline:
                behind = len(found[0]["pods"]) if found else 0
                raise BerthError(f"the Service has {behind} of {pods} pods behind it after {limit:.0f} s")
            await asyncio.sleep(SERVICE_POLL)

    async def until(self, so: Callable[[], bool], limit: float) -> None:
        """Raises BerthError if it is not so after `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while not so():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            message = self.status.get("summary", {}).get("message", "nothing")
            raise BerthError(
                f"the groups did not get there in {limit:.0f} s: {self.states}; {self.deployment_name} says: {message}"
            ) from None

    # --- what people do to it -----------------------------------------------------------------------------------------

    async def price(self, pool: str, per_gpu_hour: str) -> None:
        await self._client.merge_patch(GPU_POOL, None, pool, {"spec": {"pricePerGPUHour": per_gpu_hour}})

    def slow_down(self, pool: str, factor: float) -> None:
        """Every step of the engines that run on the pool takes so many times longer from now on."""
        pods = {each["name"]: each for node in self.cluster()["nodes"] for each in node["pods"]}
        for pod in self._leaders.store.all():
            if pod["metadata"]["labels"][labels.POOL] == pool:
                for folder in Path(pods[pod["metadata"]["name"]]["memory"]).glob("run-*"):
                    switch(folder, {"slow": factor})

    async def apply(self) -> None:
        self._manifest["metadata"]["namespace"] = NAMESPACE
        await self._client.apply(self._manifest, "berth-demo")

    @asynccontextmanager
    async def load(self, replay: Replay, seconds: float) -> AsyncIterator[None]:
        """Replays while the block runs and until all is answered, and shows how far it is, of about so many seconds."""
        running = asyncio.create_task(replay.run())
        drawing = asyncio.create_task(self._draw(replay, seconds))
        try:
            yield
            await running
        finally:
            running.cancel()
            drawing.cancel()
            await asyncio.gather(running, drawing, return_exceptions=True)

    async def _draw(self, replay: Replay, seconds: float) -> None:
        past = collections.deque([(0.0, 0)], maxlen=RATE_SECONDS)
        while True:
            await asyncio.sleep(1)
            now = replay.now()
            since, tokens = past[0]
            rate = (replay.tokens - tokens) / (now - since)
            past.append((now, replay.tokens))
            done = f"{len(replay.outcomes)} answered, {replay.in_flight} in flight, {rate:.0f} tokens/s"
            self.screen.bar(now / seconds, done)

    # --- plumbing -----------------------------------------------------------------------------------------------------

    def _watch(self, kind: Kind, label_selector: str = "") -> Reflector:
        return Reflector(
            self._client,
            kind,
            namespace=NAMESPACE,
            label_selector=label_selector,
            on_change=lambda _old, _new: self._changed.set(),
        )

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each.run()) for each in (self._deployments, self._groups, self._leaders)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def opened(folder: Path, screen: Screen, deployment: Object) -> AsyncIterator[Stage]:
    """A stage for `deployment` on the cluster in `folder`."""
    kubeconfig = control.ask(folder, {"do": "status"})["kubeconfig"]
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(await auth.configuration(kubeconfig)))
        stage = Stage(folder, screen, KubeClient(api), deployment)
        await stack.enter_async_context(stage.watching())
        yield stage
