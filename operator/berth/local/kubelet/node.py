"""One local node: its Node object and Lease, the pods bound to it, and the ways in which it can fail.

Faults, for tests and demonstrations:

* `disconnect`: the kubelet falls silent (no Lease, no status, no deletions), its pods run on: a partition;
* `power_off`: silent, and every process of its pods is frozen, so that connections hang as they do on a dead machine;
* `power_on`: the processes that were frozen are gone, the kubelet is back and starts their containers again;
* `set_unhealthy_gpus`: allocatable below capacity, as device plugins report it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient

from berth.errors import BerthError, Transient
from berth.kube.client import KubeClient
from berth.kube.errors import AlreadyExists, NotFound
from berth.kube.kinds import LEASE, NODE, POD, Object
from berth.kube.reflector import Reflector
from berth.local import nodes, sandbox
from berth.local.addresses import LoopbackNetwork
from berth.local.kubelet import status
from berth.local.kubelet.container import Image, Place
from berth.local.kubelet.devices import Devices, Rejected
from berth.local.kubelet.pod import FIRST_BACKOFF, MANAGER, RETRY, PodWorker
from berth.local.kubelet.volumes import PodFolders

_log = logging.getLogger(__name__)

LEASE_NAMESPACE: Final = "kube-node-lease"
LEASE_SECONDS: Final = 8
RENEW_EVERY: Final = 2.0
REPORT_EVERY: Final = 10.0
READY, SILENT, OFF = "Ready", "Silent", "Off"


@dataclass(frozen=True)
class NodeSpec:
    """What a node shall be; `index` counts from 1 within a cluster."""

    name: str
    index: int
    product: str
    gpus: int
    zone: str


@dataclass(frozen=True)
class Ground:
    """What all nodes of a cluster stand on."""

    folder: Path
    memory: Path
    storage: Path | None
    image: Image
    isolation: Sequence[str]
    network: LoopbackNetwork
    hosts: Path
    """Folder with one hosts file per namespace."""
    first_backoff: float = FIRST_BACKOFF


class LocalNode:
    """A node of the cluster behind `api`; `run` works until cancelled, and then nothing of its pods is left."""

    def __init__(self, spec: NodeSpec, ground: Ground, api: ApiClient) -> None:
        self.spec = spec
        self.address = ground.network.node(spec.index)
        self._ground = ground
        self._client = KubeClient(api, before_write=self._check_connected)
        self._addresses = ground.network.pods(spec.index)
        self._devices = Devices(spec.gpus)
        self._workers: dict[str, PodWorker] = {}
        self._over: set[str] = set()
        """UIDs of pods that this node did not take, or could not go on with: they are not tried again."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected = True
        self._powered = asyncio.Event()
        self._powered.set()
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._pods = Reflector(
            self._client, POD, field_selector=f"spec.nodeName={spec.name}", on_change=self._pod_changed
        )
        self.registered = asyncio.Event()
        """The Node object is there and says Ready."""

    async def run(self) -> None:
        try:
            await self._insist(self._register)
            self._follow()
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._renew_lease())
                loops.create_task(self._report())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- faults -------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        if not self._powered.is_set():
            return OFF
        return READY if self._connected else SILENT

    @property
    def gpus(self) -> dict[str, int]:
        return {"capacity": self._devices.capacity, "unhealthy": self._devices.capacity - self._devices.allocatable}

    def disconnect(self) -> None:
        """While the node is silent it hears nothing either."""
        self._connected = False
        if self._following is not None:
            self._following.cancel()

    def power_off(self) -> None:
        self.disconnect()
        self._powered.clear()
        sandbox.send(self._processes(), signal.SIGSTOP)

    def power_on(self) -> None:
        """Ends both faults; a Node object that was deleted meanwhile is made again."""
        if not self._powered.is_set():
            sandbox.send(self._processes(), signal.SIGKILL)
            self._powered.set()
        if not self._connected:
            self._connected = True
            self._follow()
            self._spawn(self._insist(self._register), "register")

    def set_unhealthy_gpus(self, count: int) -> None:
        """The lowest `count` GPUs, which are given out first. Raises ValueError."""
        self._devices.set_sick(count)
        self._changed.set()
        for worker in self._workers.values():
            worker.refresh()

    @property
    def workers(self) -> list[PodWorker]:
        """The pods that run here."""
        return list(self._workers.values())

    def worker(self, namespace: str, name: str) -> PodWorker | None:
        """The pod of that name, if it runs here."""
        for worker in self._workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return worker
        return None

    def _processes(self) -> list[int]:
        return [pid for uid in self._workers for pid in sandbox.marked(self._mark(uid))]

    def _check_connected(self) -> None:
        if not self._connected:
            raise Transient(f"node {self.spec.name} is silent")

    async def _turn(self) -> None:
        await self._powered.wait()

    # --- the node itself ----------------------------------------------------------------------------------------------

    async def _register(self) -> None:
        spec = self.spec
        manifest = nodes.gpu_node(spec.name, product=spec.product, address=self.address, gpus=spec.gpus, zone=spec.zone)
        with contextlib.suppress(AlreadyExists):
            await self._client.create({key: manifest[key] for key in ("apiVersion", "kind", "metadata")})
        await self._write_status()
        self.registered.set()

    async def _report(self) -> None:
        """At once when something changed here, and now and then, because others write conditions as well."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_EVERY):
                    await self._changed.wait()
            self._changed.clear()
            await self._insist(self._write_status)

    async def _write_status(self) -> None:
        """Capacity and the conditions of a kubelet, if they differ from what is there; others' conditions stay."""
        spec = self.spec
        present = await self._client.get(NODE, None, spec.name)
        wanted = nodes.gpu_node(spec.name, product=spec.product, address=self.address, gpus=spec.gpus)["status"]
        wanted["allocatable"][nodes.GPU_RESOURCE] = str(self._devices.allocatable)
        wanted["conditions"] = _conditions(present.get("status", {}).get("conditions") or (), _now())
        if all(present.get("status", {}).get(key) == value for key, value in wanted.items()):
            return
        version = {"resourceVersion": present["metadata"]["resourceVersion"]}
        body = {"metadata": version, "status": wanted}
        await self._client.merge_patch(NODE, None, spec.name, body, subresource="status", manager=MANAGER)

    async def _renew_lease(self) -> None:
        while True:
            with contextlib.suppress(BerthError):
                await self._write_lease()
            await asyncio.sleep(RENEW_EVERY)

    async def _write_lease(self) -> None:
        content = {
            "holderIdentity": self.spec.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            await self._client.merge_patch(LEASE, LEASE_NAMESPACE, self.spec.name, {"spec": content}, manager=MANAGER)
        except NotFound:
            metadata = {"namespace": LEASE_NAMESPACE, "name": self.spec.name}
            await self._client.create(
                {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": content}
            )

    # --- pods ---------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Starts to hear of the pods bound here; what happened meanwhile is told first."""
        self._following = asyncio.create_task(self._pods.run(), name=f"pods of {self.spec.name}")
        self._tasks.add(self._following)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if old is not None and (new is None or new["metadata"]["uid"] != old["metadata"]["uid"]):
            self._vanished(old["metadata"]["uid"])
        if new is None:
            return
        uid = new["metadata"]["uid"]
        if worker := self._workers.get(uid):
            worker.update(new)
        elif uid not in self._over and new.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            self._admit(new)
        elif "deletionTimestamp" in new["metadata"]:
            self._spawn(self._delete(new), "delete")

    def _vanished(self, uid: str) -> None:
        self._over.discard(uid)
        if worker := self._workers.get(uid):
            worker.vanished()

    def _admit(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        try:
            self._devices.allocate(pod)
        except Rejected as error:
            self._fail(pod, "UnexpectedAdmissionError", str(error))
            return
        place = self._place(uid, pod["metadata"]["namespace"])
        worker = PodWorker(
            pod,
            place,
            self._client,
            turn=self._turn,
            health=lambda: self._devices.health(uid),
            finished=lambda: self._devices.release(uid),
            first_backoff=self._ground.first_backoff,
        )
        self._workers[uid] = worker
        self._spawn(self._run(worker, uid), f"pod {pod['metadata']['name']}")

    async def _run(self, worker: PodWorker, uid: str) -> None:
        try:
            await worker.run()
        except Exception as error:
            _log.exception("pod %s", worker.pod["metadata"]["name"])
            self._fail(worker.pod, "NodeFailed", f"the node could not go on running the pod: {error}")
        finally:
            del self._workers[uid]
            self._devices.release(uid)
            self._addresses.give_back(worker.place.address)

    def _fail(self, pod: Object, reason: str, message: str) -> None:
        """The end of a pod that has no worker to tell of it; its object goes at once where that was asked for."""
        self._over.add(pod["metadata"]["uid"])
        deleted = "deletionTimestamp" in pod["metadata"]
        self._spawn(self._delete(pod) if deleted else self._write_end(pod, reason, message), "end")

    async def _write_end(self, pod: Object, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        body = {"status": status.rejected(reason, message, _now())}
        await self._insist(
            lambda: self._client.merge_patch(
                POD,
                metadata["namespace"],
                metadata["name"],
                body,
                subresource="status",
                uid=metadata["uid"],
                manager=MANAGER,
            )
        )

    async def _delete(self, pod: Object) -> None:
        metadata = pod["metadata"]
        await self._insist(
            lambda: self._client.delete(
                POD, metadata["namespace"], metadata["name"], uid=metadata["uid"], grace_seconds=0
            )
        )

    def _place(self, uid: str, namespace: str) -> Place:
        ground = self._ground
        return Place(
            address=self._addresses.take(),
            host_address=self.address,
            folders=PodFolders(ground.folder / "pods" / uid, ground.memory / uid, ground.storage),
            image=ground.image,
            hosts_file=ground.hosts / namespace,
            mark=self._mark(uid),
            isolation=ground.isolation,
        )

    def _mark(self, uid: str) -> str:
        return f"{self._ground.folder}/{uid}"

    async def _insist(self, write: Callable[[], Awaitable[Any]]) -> None:
        """Tries until it is done, or the object is gone."""
        while True:
            try:
                await write()
                return
            except NotFound:
                return
            except BerthError as error:
                _log.info("%s: %s", self.spec.name, error)
                await asyncio.sleep(RETRY)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _conditions(present: Sequence[Mapping[str, str]], now: str) -> list[Mapping[str, str]]:
    """Those of a kubelet without worries, with the time of their last change, and all others as they are."""
    before = {each["type"]: each for each in present}
    ours = {
        **dict.fromkeys(("MemoryPressure", "DiskPressure", "PIDPressure"), ("False", "KubeletHasNoPressure")),
        "Ready": ("True", "KubeletReady"),
    }
    found = [each for kind, each in before.items() if kind not in ours]
    for kind, (value, reason) in ours.items():
        if before.get(kind, {}).get("status") == value:
            found.append(before[kind])
        else:
            times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
            found.append({"type": kind, "status": value, "reason": reason, **times})
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
