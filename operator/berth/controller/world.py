"""Everything Berth keeps a local copy of, and which deployment a change belongs to.

LLMDeployments themselves are read fresh at each pass (kopf wakes their keys); everything Berth wrote for them, the
nodes and the pools come from reflectors. Own writes are not put into the copies: the watch brings them, and names are
deterministic, so that acting twice on an old copy does nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from berth import labels
from berth.controller import parse
from berth.kube.client import KubeClient
from berth.kube.kinds import (
    CONFIG_MAP,
    GPU_POOL,
    NODE,
    POD,
    POD_DISRUPTION_BUDGET,
    REPLICA_GROUP,
    SERVICE,
    Kind,
    Object,
)
from berth.kube.reflector import IndexFunction, OnChange, Reflector, trim
from berth.metrics import Metrics

BY_DEPLOYMENT = "deployment"
"""Index of children by UID of their LLMDeployment."""
BY_NODE = "node"
"""Index of ReplicaGroups and pods by the nodes they stand on, or are to."""
FOREIGN_IN = "foreign"
"""Index of what is not Berth's by namespace."""
MANAGED = f"{labels.MANAGED_BY}={labels.MANAGED_BY_VALUE}"
CHILD_KINDS = (SERVICE, POD_DISRUPTION_BUDGET, CONFIG_MAP)


@dataclass(frozen=True)
class Key:
    """What a pass is about."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def deployment_key(namespace: str, name: str) -> Key:
    return Key("LLMDeployment", namespace, name)


def pool_key(name: str) -> Key:
    return Key("GPUPool", "", name)


class World:
    """The local copies. `wake` gets the key of each deployment or pool that a change concerns."""

    def __init__(
        self,
        client: KubeClient,
        wake: Callable[[Key], None],
        capacity_changed: Callable[[], None],
        *,
        namespace: str | None = None,
        watch_seconds: float = 15.0,
        relist_seconds: float = 600.0,
        metrics: Metrics | None = None,
    ) -> None:
        self._wake = wake
        self._capacity_changed = capacity_changed
        self._namespace = namespace or None
        own = f"{MANAGED},{labels.DEPLOYMENT_UID}"

        def reflect(
            kind: Kind,
            on_change: OnChange,
            transform: Callable[[Object], Object] = trim,
            *,
            selector: str | None = None,
            indexes: Mapping[str, IndexFunction] | None = None,
        ) -> Reflector:
            return Reflector(
                client,
                kind,
                namespace=(namespace or None) if kind.namespaced else None,
                label_selector=selector,
                on_change=on_change,
                transform=transform,
                indexes=indexes,
                watch_seconds=watch_seconds,
                relist_seconds=relist_seconds,
                metrics=metrics,
            )

        # All ReplicaGroups are Berth's: one that lost its labels is still seen. Of the others only those that say so.
        indexes = {BY_DEPLOYMENT: owner_uid, BY_NODE: _planned}
        self.groups = reflect(REPLICA_GROUP, self._held_something, indexes=indexes)
        indexes = {BY_DEPLOYMENT: _deployment_uid, BY_NODE: _bound}
        self.pods = reflect(POD, self._held_something, slim_pod, selector=own, indexes=indexes)
        self.children = {
            kind.name: reflect(kind, self._child, _slim_child, selector=own, indexes={BY_DEPLOYMENT: _deployment_uid})
            for kind in CHILD_KINDS
            if kind is not POD_DISRUPTION_BUDGET
        }
        # Those of others, too: two that select the same pod make its eviction fail.
        indexes = {BY_DEPLOYMENT: _deployment_uid, FOREIGN_IN: _foreign}
        self.budgets = reflect(POD_DISRUPTION_BUDGET, self._budget, _slim_child, indexes=indexes)
        self.children[POD_DISRUPTION_BUDGET.name] = self.budgets
        self.nodes = reflect(NODE, self._node, _slim_node)
        self.pools = reflect(GPU_POOL, self._pool)

    @property
    def reflectors(self) -> Iterable[Reflector]:
        return (self.groups, self.pods, *self.children.values(), self.nodes, self.pools)

    async def run(self) -> None:
        """Keep all copies true until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self.reflectors:
                tasks.create_task(reflector.run())

    async def synced(self) -> None:
        """Return once every copy is complete."""
        for reflector in self.reflectors:
            await reflector.synced.wait()

    def sees(self, pod: Object) -> bool:
        """Whether a pod that the server shows belongs into the local copy of pods."""
        metadata = pod["metadata"]
        found = metadata.get("labels") or {}
        ours = found.get(labels.MANAGED_BY) == labels.MANAGED_BY_VALUE and labels.DEPLOYMENT_UID in found
        return ours and self._namespace in (None, metadata["namespace"])

    def selectors_of_others(self) -> Sequence[str | None]:
        """Label selectors: together they find every pod that the local copy does not show, and few others."""
        if self._namespace is not None:
            return (None,)
        return (f"{labels.MANAGED_BY}!={labels.MANAGED_BY_VALUE}", f"{MANAGED},!{labels.DEPLOYMENT_UID}")

    def groups_of(self, uid: str) -> Iterable[Object]:
        return self.groups.store.by_index(BY_DEPLOYMENT, uid)

    def pods_of(self, uid: str) -> Iterable[Object]:
        return self.pods.store.by_index(BY_DEPLOYMENT, uid)

    def children_of(self, uid: str) -> Mapping[tuple[str, str], Object]:
        return {
            (kind, child["metadata"]["name"]): child
            for kind, reflector in self.children.items()
            for child in reflector.store.by_index(BY_DEPLOYMENT, uid)
        }

    def foreign_budgets_in(self, namespace: str) -> Iterable[Object]:
        """PodDisruptionBudgets that are not Berth's."""
        return self.budgets.store.by_index(FOREIGN_IN, namespace)

    def _budget(self, old: Object | None, new: Object | None) -> None:
        self._child(old, new)
        changed = old is None or new is None or old.get("spec") != new.get("spec")
        for namespace in _foreign(new or old or {}) if changed else ():
            for group in self.groups.store.all():
                if group["metadata"]["namespace"] == namespace:
                    self._child(group, None)

    def _child(self, old: Object | None, new: Object | None) -> None:
        for key in {key for obj in (old, new) if obj is not None for key in deployments_of(obj)}:
            self._wake(key)

    def _held_something(self, old: Object | None, new: Object | None) -> None:
        self._child(old, new)
        if old is None or new is None or _ended(old) != _ended(new):
            self._capacity_changed()

    def _node(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _prospects(old) == _prospects(new):
            return
        self._capacity_changed()
        if old is None:
            return
        name = old["metadata"]["name"]
        for reflector in (self.groups, self.pods):
            for held in reflector.store.by_index(BY_NODE, name):
                self._child(held, None)

    def _pool(self, old: Object | None, new: Object | None) -> None:
        if old is None or new is None or old["metadata"].get("generation") != new["metadata"].get("generation"):
            self._wake(pool_key((new or old or {})["metadata"]["name"]))
            self._capacity_changed()


def deployments_of(obj: Object) -> Iterable[Key]:
    """Whom an object concerns: by its label, which somebody may have edited, and by its owner."""
    metadata = obj["metadata"]
    owner = parse.owner_of(obj, "LLMDeployment")
    names = {metadata.get("labels", {}).get(labels.DEPLOYMENT), owner["name"] if owner else None}
    return [deployment_key(metadata["namespace"], name) for name in names if name]


def _deployment_uid(obj: Object) -> Iterable[str]:
    return (obj["metadata"].get("labels", {}).get(labels.DEPLOYMENT_UID, ""),)


def owner_uid(obj: Object) -> Iterable[str]:
    owner = parse.owner_of(obj, "LLMDeployment")
    return (owner["uid"],) if owner else ()


def _planned(group: Object) -> Iterable[str]:
    return group["spec"].get("plannedNodes") or ()


def _bound(pod: Object) -> Iterable[str]:
    node = pod["spec"].get("nodeName")
    return (node,) if node else ()


def _foreign(obj: Object) -> Iterable[str]:
    return () if parse.owner_of(obj, "LLMDeployment") else (obj["metadata"]["namespace"],)


def _ended(obj: Object) -> bool:
    return (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _prospects(node: Object) -> tuple[Any, ...]:
    """What of a node decides whether pods find room there and may stay."""
    spec = node.get("spec", {})
    return (
        {c.get("type"): c.get("status") for c in node["status"].get("conditions", ())},
        node["metadata"].get("deletionTimestamp"),
        spec.get("unschedulable"),
        spec.get("taints"),
        node["status"].get("allocatable"),
        node["metadata"].get("labels"),
    )


def slim_pod(pod: Object) -> Object:
    """A pod without what no pass reads: mounts, probes and environment are most of it."""
    trim(pod)
    spec = pod["spec"]
    kept = ("nodeName", "schedulingGates", "overhead", "resources")
    slim = {key: spec[key] for key in kept if key in spec}
    for part in ("containers", "initContainers"):
        if part in spec:
            slim[part] = [
                {key: container[key] for key in ("name", "image", "resources", "restartPolicy") if key in container}
                for container in spec[part]
            ]
    slim["volumes"] = [
        {"name": volume["name"], "configMap": {"name": volume["configMap"].get("name")}}
        for volume in spec.get("volumes") or ()
        if "configMap" in volume
    ]
    pod["spec"] = slim
    return pod


def _slim_child(child: Object) -> Object:
    """ConfigMaps are immutable and named by their content: only their names are ever read."""
    trim(child)
    if child.get("kind") == "ConfigMap":
        child.pop("data", None)
    return child


def _slim_node(node: Object) -> Object:
    """Image lists are the largest part of a node and nobody here reads them."""
    trim(node)
    status = node.get("status", {})
    node["status"] = {key: status[key] for key in ("capacity", "allocatable", "conditions") if key in status}
    return node
