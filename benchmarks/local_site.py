"""A local cluster as benchmarks see it: real Triton servers on simulated nodes, watched, and hit where it hurts."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

from kubernetes.aio.client import ApiClient

from berth import labels
from berth.errors import Conflict
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import LLM_DEPLOYMENT, POD, REPLICA_GROUP, Object
from berth.kube.reflector import Reflector
from berth.local import control, sandbox

NAMESPACE: Final = "default"
LONGEST: Final = 90.0


class Bench:
    """One local cluster, watched."""

    def __init__(self, folder: Path, client: KubeClient) -> None:
        self.folder = folder
        self.client = client
        self.changed = asyncio.Event()
        self.pods = self._watch(POD)
        self.groups = self._watch(REPLICA_GROUP)

    def _watch(self, kind: Any) -> Reflector:
        return Reflector(self.client, kind, namespace=NAMESPACE, on_change=lambda _old, _new: self.changed.set())

    @classmethod
    @asynccontextmanager
    async def of(cls, folder: Path) -> AsyncIterator[Self]:
        """The cluster of this folder, once everything that is watched is known."""
        async with ApiClient(await auth.configuration(control.ask(folder, {"do": "status"})["kubeconfig"])) as api:
            bench = cls(folder, KubeClient(api))
            reflectors = [each for each in vars(bench).values() if isinstance(each, Reflector)]
            tasks = [asyncio.create_task(each.run()) for each in reflectors]
            try:
                for each in reflectors:
                    await each.synced.wait()
                yield bench
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self.folder, {"do": "status"})
        return found

    def node(self, name: str, action: str, **more: Any) -> None:
        control.ask(self.folder, {"do": "node", "name": name, "action": action, **more})

    def serving(self) -> dict[str, Object]:
        """By group: the leader that the Service points to."""
        return {
            pod["metadata"]["labels"][labels.GROUP_LABEL]: pod
            for pod in self.pods.store.all()
            if pod["metadata"]["labels"].get(labels.SERVING) == "true"
            and "deletionTimestamp" not in pod["metadata"]
            and {"True"} == {c["status"] for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"}
        }

    def mates(self, leader: Object) -> list[Object]:
        """The other pods of its group."""
        group = leader["metadata"]["labels"][labels.REPLICA_GROUP]
        found = [pod for pod in self.pods.store.all() if pod["metadata"]["labels"].get(labels.REPLICA_GROUP) == group]
        return [pod for pod in found if pod["metadata"]["uid"] != leader["metadata"]["uid"]]

    def local(self, pod: Object) -> dict[str, Any]:
        """The pod as its node knows it."""
        return next(
            each for node in self.status()["nodes"] for each in node["pods"] if each["name"] == pod["metadata"]["name"]
        )

    def signal_server(self, pod: Object, number: signal.Signals) -> None:
        """To the Triton server of a leader."""
        marked = sandbox.marked(self.local(pod)["mark"])
        servers = [pid for pid in marked if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver"]
        sandbox.send(servers[:1], number)

    def kill(self, pod: Object) -> None:
        """Every process of it."""
        sandbox.send(sandbox.marked(self.local(pod)["mark"]), signal.SIGKILL)

    async def until(self, so: Callable[[], bool], limit: float = LONGEST) -> bool:
        """Whether it became so in time."""
        deadline = time.monotonic() + limit
        while not so():
            self.changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, 0.5))
            except TimeoutError:
                continue
        return True

    async def address(self, name: str) -> str:
        """Host and port of a deployment's Service, once it has one that every serving leader stands behind."""
        found: dict[str, Any] = {}

        def complete() -> bool:
            nonlocal found
            found = next((each for each in self.status()["services"] if each["name"] == name), {})
            return set(found.get("pods", ())) >= {pod["status"]["podIP"] for pod in self.serving().values()}

        if not await self.until(complete):
            raise SystemExit(f"the Service of {name} does not point to its groups: {found}")
        return f"{found['address']}:{labels.PORT_GRPC}"

    async def remove(self, name: str) -> None:
        """Returns when nothing of it is left, on the nodes either; nobody waits for the requests it still has."""
        found = await self.client.get(LLM_DEPLOYMENT, NAMESPACE, name)
        await self.client.delete(LLM_DEPLOYMENT, NAMESPACE, name, uid=found["metadata"]["uid"])
        gone = await self.until(lambda: not self.groups.store.all())
        left = [each for watched in (self.groups, self.pods) for each in watched.store.all()]
        for pod in self.pods.store.all():
            metadata = pod["metadata"]
            with suppress(NotFound, Conflict):
                await self.client.delete(POD, NAMESPACE, metadata["name"], uid=metadata["uid"], grace_seconds=0)
        gone = gone and await self.until(lambda: not any(node["pods"] for node in self.status()["nodes"]))
        if not gone:
            raise SystemExit(f"{name} does not go: {left or self.status()}")


def add_line(result: Any, out: Path | None, stream: Any) -> None:
    """A result (a dataclass) as one JSON line on `stream`, and at the end of the file `out`."""
    line = json.dumps(asdict(result))
    print(line, file=stream, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")
