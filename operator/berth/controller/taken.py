"""Who holds what, kept up to date from what changed in the local copies: a claim looks at no pod and no group twice.

What is taken = bound pods of anybody (Terminating ones too) + ReplicaGroups whose members are wanted and not bound yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from berth import labels
from berth.controller import parse
from berth.controller.world import World
from berth.core.ledger import Ledger
from berth.core.render.names import pod_name
from berth.core.usage import PodUsage, Reservation, Usage, pod_request, pod_usage
from berth.kube.kinds import Object
from berth.kube.reflector import Key


class Granted:
    """ReplicaGroups that this process created, until the local copy shows them or has seen them go."""

    def __init__(self, world: World) -> None:
        self._groups = world.groups
        self._granted: dict[str, Object] = {}
        self._asked: dict[str, Usage] = {}

    def add(self, group: Object, member: Usage) -> None:
        """`member` is what each of its members asks for."""
        uid = group["metadata"]["uid"]
        self._granted[uid], self._asked[uid] = group, member

    def all(self) -> Sequence[Object]:
        for uid, group in list(self._granted.items()):
            stored = self._groups.store.get(*_key(group))
            if stored is not None and stored["metadata"]["uid"] == uid:
                del self._granted[uid]
            elif self._groups.has_seen(group["metadata"]["resourceVersion"]):
                del self._granted[uid], self._asked[uid]
        return list(self._granted.values())

    def asked(self, group: Object) -> Usage:
        """What each member asks for; at least its GPUs, where another process created the group."""
        least = Usage(gpus=gpus_of(group) // group["spec"]["members"])
        return self._asked.get(group["metadata"]["uid"], least)

    def forget(self, uid: str) -> None:
        """The group is gone."""
        self._asked.pop(uid, None)


@dataclass(frozen=True)
class _Others:
    pods: tuple[PodUsage, ...]
    asked: float


class Taken:
    """What is taken of one resource. Pods of others are those of the last look at their node."""

    def __init__(self, world: World, granted: Granted, resource_name: str) -> None:
        self._resource_name = resource_name
        self._granted = granted
        self._pods, self._groups = world.pods.store, world.groups.store
        self._changed_pods, self._changed_groups = self._pods.follow(), self._groups.follow()
        self._booked: dict[Key, list[str]] = {}
        """UIDs of the ReplicaGroups of a name: two, while the local copy shows the one before."""
        self._leaders: dict[Key, Key] = {}
        """Pod of a first member -> its ReplicaGroup: what that pod asks for is what each member takes."""
        self._pending: set[Key] = set()
        """Those of groups that were granted and not shown yet."""
        self._others: dict[str, _Others] = {}
        self._ledger = Ledger()

    @property
    def ledger(self) -> Ledger:
        """As of now; who waits for something asks for it again."""
        stale = self._pending | self._changed_groups
        for key in self._changed_pods:
            pod = self._pods.get(*key)
            self._ledger.pod(key, pod_usage(pod, self._resource_name) if pod else None)
            if key in self._leaders:
                stale.add(self._leaders[key])
        granted: dict[Key, list[Object]] = {}
        for group in self._granted.all():
            granted.setdefault(_key(group), []).append(group)
        self._pending = set(granted)
        for key in stale | self._pending:
            stored = self._groups.get(*key)
            self._book(key, [*([stored] if stored else []), *granted.get(key, ())])
        self._changed_pods.clear()
        self._changed_groups.clear()
        return self._ledger

    def _book(self, key: Key, groups: Sequence[Object]) -> None:
        """`groups` are those that have the name now."""
        uids = [group["metadata"]["uid"] for group in groups]
        for uid in self._booked.pop(key, ()):
            self._ledger.reservation(uid, None)
            if uid not in uids:
                self._granted.forget(uid)
        namespace, name = key
        leader = (namespace, pod_name(name, 0))
        if not groups:
            self._leaders.pop(leader, None)
            return
        self._booked[key], self._leaders[leader] = uids, key
        pod = self._pods.get(*leader)
        for group in wanted_of(groups):
            member = pod_request(pod["spec"], self._resource_name) if pod else self._granted.asked(group)
            nodes = tuple(group["spec"].get("plannedNodes") or ())
            self._ledger.reservation(group["metadata"]["uid"], Reservation(group["metadata"]["uid"], nodes, member))

    # --- pods of others -----------------------------------------------------------------------------------------------
    def see(self, node: str, pods: Iterable[PodUsage], asked: float) -> None:
        """What others have on a node, in answer to a question of that moment: an older answer may come later."""
        if asked < self.seen(node):
            return
        found = tuple(pods)
        for pod in self.others(node):
            self._ledger.pod(("", node, pod.uid), None)
        for pod in found:
            self._ledger.pod(("", node, pod.uid), pod)
        self._others[node] = _Others(found, asked)

    def others(self, node: str) -> tuple[PodUsage, ...]:
        """As of the last look at the node; none where nobody looked."""
        known = self._others.get(node)
        return known.pods if known else ()

    def seen(self, node: str) -> float:
        """When others were looked for on a node; never: minus infinity."""
        known = self._others.get(node)
        return known.asked if known else float("-inf")

    def others_stand_on(self, node: str) -> bool:
        return any(pod.amount.gpus for pod in self.others(node))


def wanted_of(groups: Iterable[Object], *others: str) -> list[Object]:
    """ReplicaGroups whose members are wanted: each holds its planned nodes. And those in the lifecycles `others`."""
    return [
        group
        for group in groups
        if parse.lifecycle(group) in (labels.RESERVED, labels.COMMITTED, *others)
        and "deletionTimestamp" not in group["metadata"]
    ]


def gpus_of(group: Object) -> int:
    """GPUs of all members of a ReplicaGroup together."""
    allocation = group["spec"]["allocation"]
    return int(allocation.get("tensorParallel", 1) * allocation.get("pipelineParallel", 1))


def _key(group: Object) -> Key:
    metadata = group["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
