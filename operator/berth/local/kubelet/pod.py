"""The life of one pod on a node: volumes, containers with their restarts, status, the orderly end.

One task per pod, one per container below it, one that writes the status. They share `ContainerStatus` objects and wake
the writer; nothing else is shared. The pod object itself is always the newest that the node has seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from berth.errors import BerthError, Conflict
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import POD, Object
from berth.local.kubelet import status
from berth.local.kubelet.container import Container, Place
from berth.local.kubelet.objects import Missing, References
from berth.local.kubelet.probes import Probe, Prober
from berth.local.kubelet.status import ContainerStatus
from berth.local.kubelet.volumes import make_volumes

_log = logging.getLogger(__name__)

MANAGER: Final = "berth-local-node"
RETRY: Final = 1.0
"""Seconds between two attempts to write to the API server, or to find what a pod refers to."""
FIRST_BACKOFF: Final = 10.0
LONGEST_BACKOFF: Final = 300.0
BACKOFF_RESET: Final = 600.0
"""A container that ran so long starts anew with its back-off: the kubelet's figures."""


class PodWorker:
    """Runs `pod` at `place` until it is stopped; `run` returns when nothing of it is left, also in the API.

    `turn` is awaited before each probe: it holds while the node is without power.
    `health` gives the pod's GPUs as `allocatedResourcesStatus` wants them.
    `finished` is called when all containers have ended for good: from then on the pod holds nothing.
    A container is restarted at once, then after `first_backoff` seconds, then after twice that and so on.
    """

    def __init__(
        self,
        pod: Object,
        place: Place,
        client: KubeClient,
        *,
        turn: Callable[[], Awaitable[None]],
        health: Callable[[], list[dict[str, str]]],
        finished: Callable[[], None],
        first_backoff: float,
    ) -> None:
        self.pod = pod
        self.place = place
        self._client = client
        self._turn = turn
        self._first_backoff = first_backoff
        self._health = health
        self._finished = finished
        self._references = References(client, pod["metadata"]["namespace"])
        self._since = _now()
        self._volumes: dict[str, Path] | None = None
        self._stop_at: float | None = None
        self._stopping = asyncio.Event()
        self._dirty = asyncio.Event()
        self._containers = [Container(each, pod, place) for each in pod["spec"]["containers"]]
        images = {each["name"]: each["image"] for each in pod["spec"]["containers"]}
        self._statuses = {name: ContainerStatus(name, image) for name, image in images.items()}
        self._unfinished = set(self._statuses)
        self._was_gone = False
        self.update(pod)

    # --- what the node tells ------------------------------------------------------------------------------------------

    def update(self, pod: Object) -> None:
        """A newer version of the object. Once it is being deleted its containers are stopped; the grace may shrink."""
        self.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._stop_in(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        self._dirty.set()

    def vanished(self) -> None:
        """The object is gone, by force: no time for goodbyes, and nobody to report to."""
        self._was_gone = True
        self._stop_in(0)

    def refresh(self) -> None:
        """Something outside of the pod changed what its status says."""
        self._dirty.set()

    def _stop_in(self, seconds: float) -> None:
        at = asyncio.get_running_loop().time() + seconds
        self._stop_at = at if self._stop_at is None else min(self._stop_at, at)
        self._stopping.set()

    def _left(self) -> float:
        """Seconds of grace that are left."""
        assert self._stop_at is not None
        return max(0.0, self._stop_at - asyncio.get_running_loop().time())

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        writer = asyncio.create_task(self._write_statuses())
        try:
            self._volumes = await self._until_found(self._make_volumes)
            if self._volumes is not None:
                self._dirty.set()
                async with asyncio.TaskGroup() as containers:
                    for container in self._containers:
                        containers.create_task(self._keep(container, self._statuses[container.name]))
            self._dirty.set()
            await self._stopping.wait()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for container in self._containers:
                container.kill()
            self.place.folders.remove()
        self._finished()  # before the object goes: whoever takes its place may come at once
        await self._say_goodbye()

    @property
    def pids(self) -> dict[str, int]:
        """Main processes of the containers that run, by container."""
        return {each.name: each.pid for each in self._containers if each.running}

    def log(self, container: str | None, previous: bool) -> Path:
        """Log of the current or the previous life of a container, by default the first. Raises ValueError."""
        names = [each.name for each in self._containers]
        if container is not None and container not in names:
            raise ValueError(f"the pod has no container {container}: use one of {', '.join(names)}")
        chosen = self._containers[names.index(container) if container else 0]
        life = self._statuses[chosen.name].restarts - (1 if previous else 0)
        if life < 0:
            raise ValueError(f"container {chosen.name} was never restarted")
        return chosen.log(life)

    async def _make_volumes(self) -> dict[str, Path]:
        if self.pod["spec"].get("initContainers"):
            raise Missing("local nodes run no init containers: let the container's own command do their work")
        return await make_volumes(self.pod, self.place.folders, self.place.addresses, self._references)

    async def _until_found(self, work: Callable[[], Awaitable[dict[str, Path]]]) -> dict[str, Path] | None:
        """Tries until everything that `work` needs is there; says what is missing. None if the pod is stopped first."""
        while not self._stopping.is_set():
            try:
                return await work()
            except Missing as error:
                for each in self._statuses.values():
                    self._set(each, status.waiting("FailedMount", str(error)))
            except BerthError as error:
                _log.warning("%s: %s", self._name, error)
            await self._pause(RETRY)
        return None

    # --- containers ---------------------------------------------------------------------------------------------------

    async def _keep(self, container: Container, state: ContainerStatus) -> None:
        """Life after life, until the restart policy or the end of the pod says that it is over."""
        backoff = 0.0
        while await self._start(container, state):
            began = asyncio.get_running_loop().time()
            code = await self._live(container, state)
            over = self._stopping.is_set() or not self._starts_again(code)
            if over:
                self._unfinished.discard(container.name)
                if not self._unfinished:
                    self._finished()
            self._record_end(container, state, code)
            if over:
                return
            if asyncio.get_running_loop().time() - began >= BACKOFF_RESET:
                backoff = 0.0
            if backoff:
                why = f"back-off {backoff:g}s restarting failed container={container.name} pod={self._name}"
                state.last = state.state
                self._set(state, status.waiting("CrashLoopBackOff", why))
                await self._pause(backoff)
            backoff = min(max(2 * backoff, self._first_backoff), LONGEST_BACKOFF)
            state.last = state.state if "terminated" in state.state else state.last
            state.restarts += 1

    async def _start(self, container: Container, state: ContainerStatus) -> bool:
        """Starts the next life; False if the pod is stopped before it could."""
        while not self._stopping.is_set():
            try:
                await container.start(state.restarts, self._volumes or {}, self._references)
            except Missing as error:
                self._set(state, status.waiting("CreateContainerConfigError", str(error)))
            except OSError as error:
                self._set(state, status.waiting("CreateContainerError", str(error)))
            except BerthError as error:
                _log.warning("%s: %s", self._name, error)
            else:
                state.container_id = f"berth://{self.pod['metadata']['uid']}/{container.name}/{state.restarts}"
                state.started = container.starts_at_once
                state.ready = state.started and container.probe("readinessProbe") is None
                self._set(state, status.running(_now()))
                return True
            await self._pause(RETRY)
        return False

    async def _live(self, container: Container, state: ContainerStatus) -> int:
        """From the start of a life to its end, by itself, by its probes or with the pod. The exit code."""
        end = asyncio.create_task(container.wait())
        started = asyncio.Event()
        guards = [
            asyncio.create_task(self._guard(container, state, started)),
            asyncio.create_task(self._watch_readiness(container, state, started)),
            asyncio.create_task(self._stop_with_pod(container)),
        ]
        try:
            return await end
        finally:
            for task in (end, *guards):
                task.cancel()
            for result in await asyncio.gather(*guards, return_exceptions=True):
                if isinstance(result, Exception):
                    _log.error("%s: %s", self._name, container.name, exc_info=result)

    async def _guard(self, container: Container, state: ContainerStatus, started: asyncio.Event) -> None:
        """postStart hook, startup probe, then liveness probe; each ends the container when it fails."""
        if why := await container.greet():
            await self._end(container, f"postStart hook failed: {why}")
            return
        startup = self._prober(container, "startupProbe")
        if startup is not None and (why := await startup.verdict()):
            await self._end(container, f"startup probe failed: {why}", container.probe("startupProbe"))
            return
        if not state.started:
            state.started, state.ready = True, container.probe("readinessProbe") is None
            self._dirty.set()
        started.set()
        if (liveness := self._prober(container, "livenessProbe")) is not None:
            while not (why := await liveness.verdict()):
                pass
            await self._end(container, f"liveness probe failed: {why}", container.probe("livenessProbe"))

    async def _watch_readiness(self, container: Container, state: ContainerStatus, started: asyncio.Event) -> None:
        await started.wait()
        if (readiness := self._prober(container, "readinessProbe")) is not None:
            while True:
                state.ready = not await readiness.verdict()
                self._dirty.set()

    async def _end(self, container: Container, why: str, probe: Probe | None = None) -> None:
        """A hook or a probe has failed for good: the container ends in the grace that the probe or the pod gives."""
        grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        if probe is not None and probe.grace is not None:
            grace = probe.grace
        _log.info("%s: %s: %s", self._name, container.name, why)
        loop = asyncio.get_running_loop()
        at = loop.time() + grace
        await container.stop(lambda: max(0.0, at - loop.time()))

    def _prober(self, container: Container, name: str) -> Prober | None:
        probe = container.probe(name)
        return None if probe is None else Prober(probe, container.ask(probe), self._turn)

    async def _stop_with_pod(self, container: Container) -> None:
        await self._stopping.wait()
        await container.stop(self._left)

    def _starts_again(self, code: int) -> bool:
        policy = self.pod["spec"]["restartPolicy"]
        return policy == "Always" or (policy == "OnFailure" and code != 0)

    def _record_end(self, container: Container, state: ContainerStatus, code: int) -> None:
        started = state.state["running"]["startedAt"]
        message = container.last_words(state.restarts, code)
        state.ready = state.started = False
        end = status.terminated(
            code, message=message, started=started, finished=_now(), container_id=state.container_id
        )
        self._set(state, end)

    # --- status -------------------------------------------------------------------------------------------------------

    def _set(self, state: ContainerStatus, new: status.State) -> None:
        if state.state != new:
            state.state = new
            self._dirty.set()

    async def _write_statuses(self) -> None:
        """Writes what has changed, as often as it takes."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._write_status()
            except NotFound:
                return
            except BerthError as error:
                _log.info("%s: %s", self._name, error)
                self._dirty.set()
                await asyncio.sleep(RETRY / 4 if isinstance(error, Conflict) else RETRY)

    async def _write_status(self) -> None:
        """One write, if there is anything new. `Conflict` when the object has changed since we read it: read again."""
        health = self._health()
        for each in self._statuses.values():
            each.devices = health
        new = status.pod_status(
            self.pod,
            list(self._statuses.values()),
            addresses=self.place.addresses,
            since=self._since,
            now=_now(),
            stopping=self._stopping.is_set(),
            volumes_ready=self._volumes is not None,
        )
        present = self.pod.get("status", {})
        if all(present.get(key) == value for key, value in new.items()):
            return
        metadata = self.pod["metadata"]
        try:
            self.pod = await self._client.merge_patch(
                POD,
                metadata["namespace"],
                metadata["name"],
                {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": new},
                subresource="status",
                uid=metadata["uid"],
                manager=MANAGER,
            )
        except Conflict:
            fresh = await self._client.get(POD, metadata["namespace"], metadata["name"])
            if fresh["metadata"]["uid"] != metadata["uid"]:
                raise NotFound(f"{self._name} is another pod now") from None
            self.update(fresh)
            raise

    async def _say_goodbye(self) -> None:
        """The last status, then the object goes: grace 0 means that nothing runs any more."""
        metadata = self.pod["metadata"]
        while not self._was_gone:
            try:
                await self._write_status()
                await self._client.delete(
                    POD, metadata["namespace"], metadata["name"], uid=metadata["uid"], grace_seconds=0
                )
                return
            except NotFound:
                return
            except BerthError as error:
                _log.info("%s: %s", self._name, error)
                await asyncio.sleep(RETRY / 4 if isinstance(error, Conflict) else RETRY)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, or until the pod is stopped."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    @property
    def _name(self) -> str:
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
