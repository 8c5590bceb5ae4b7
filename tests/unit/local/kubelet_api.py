"""An API server for one kubelet: objects in a dictionary, with versions, and refusals on demand."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from berth.errors import BerthError, Conflict
from berth.kube.errors import NotFound
from berth.kube.kinds import POD, Kind, Object

UID = "4b5e1a3c"


def pod(*containers: dict[str, Any], **spec: Any) -> Object:
    """A pod bound to node n1, as the API server would give it."""
    defaults = {"image": "any", "resources": {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": UID, "resourceVersion": "1", "labels": {"app": "x"}},
        "spec": {
            "nodeName": "n1",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": f"c{index}", **defaults, **each} for index, each in enumerate(containers)],
            **spec,
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    }


class FakeApi:
    """The part of KubeClient that kubelets use. `refusals` are raised by the next writes, one each."""

    def __init__(self, *objects: Object) -> None:
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}
        self.refusals: list[BerthError] = []
        self.history: list[Object] = []
        """Every status of a pod that was written."""
        self.changed = asyncio.Event()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object:
        if (kind.name, name) not in self.objects:
            raise NotFound(f"get {name}")
        return copy.deepcopy(self.objects[kind.name, name])

    async def get_pod(self) -> Object:
        return await self.get(POD, "default", "p")

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Object, *, uid: str | None = None, **_: Any
    ) -> Object:
        if self.refusals:
            raise self.refusals.pop(0)
        present = await self.get(kind, namespace, name)
        version = patch.get("metadata", {}).get("resourceVersion", present["metadata"]["resourceVersion"])
        if version != present["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")
        self.replace({**present, "status": {**present.get("status", {}), **patch["status"]}})
        self.history.append(patch["status"])
        return await self.get(kind, namespace, name)

    async def delete(self, kind: Kind, namespace: str | None, name: str, **options: Any) -> None:
        if (kind.name, name) not in self.objects:
            raise NotFound(f"delete {name}")
        assert options["grace_seconds"] == 0
        del self.objects[kind.name, name]
        self.changed.set()

    def replace(self, new: Object) -> None:
        """What others write: a new version."""
        new["metadata"]["resourceVersion"] = str(int(new["metadata"]["resourceVersion"]) + 1)
        self.objects[new["kind"], new["metadata"]["name"]] = new
        self.changed.set()

    @property
    def pod(self) -> Object:
        return self.objects[POD.name, "p"]

    @property
    def container(self) -> Object:
        """Status of the first container; empty before there is one."""
        statuses = self.pod["status"].get("containerStatuses") or [{}]
        first: Object = statuses[0]
        return first

    async def until(self, so: Any, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not so():
                self.changed.clear()
                await self.changed.wait()
