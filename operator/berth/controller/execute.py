"""The third step of a pass: carrying out a plan, order by order. Nothing is decided here.

Creates go by POST: an object of that name that is already there counts as ours only by its owner's UID. Metadata and
status go by server-side apply with the UID, which can neither resurrect nor hit another life of the object; deletes
carry UID preconditions. What the API server refuses for good ends in the outcome, in its words, and stops nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from berth import labels, logs
from berth.controller.arbiter import Arbiter, Claim
from berth.controller.statuses import StatusWriter
from berth.core import actions as do
from berth.core import groups as group_life
from berth.core.drift import mend
from berth.core.observed import Group, Member, Shortage
from berth.core.status import Outcome
from berth.errors import Conflict, Transient
from berth.kube.client import KubeClient
from berth.kube.errors import AlreadyExists, Forbidden, NotFound, Rejected
from berth.kube.kinds import CONFIG_MAP, POD, REPLICA_GROUP, Kind, Object, kind_of
from berth.serving.prober import Prober

_log = logging.getLogger(__name__)


@dataclass
class _Progress:
    """What was found out while carrying out one plan."""

    shortages: dict[int, Shortage] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    """UIDs of ReplicaGroups of which a member was refused: creating the others would be in vain."""


class Executor:
    """Carries out the orders for one deployment at a time; `clock` gives Unix seconds."""

    def __init__(self, client: KubeClient, arbiter: Arbiter, prober: Prober, clock: Callable[[], float]) -> None:
        self._client = client
        self._statuses = StatusWriter(client)
        self._arbiter = arbiter
        self._prober = prober
        self._clock = clock

    async def run(self, namespace: str, orders: tuple[do.Action, ...], claim: Callable[[do.Reserve], Claim]) -> Outcome:
        """Carry out `orders`; raises Conflict or Transient where the rest has to wait for another look."""
        done = _Progress()
        for order in orders:
            if isinstance(order, do.Word):
                continue
            if done.conflicts and isinstance(order, do.Create | do.Reserve):
                continue
            if isinstance(order, do.Create) and order.group.uid in done.given_up:
                continue
            with logs.about(**_group_of(order)):
                try:
                    await self._carry_out(order, namespace, claim, done)
                except (Rejected, Forbidden) as error:
                    _log.warning("refused: %s", error)
                    await self._give_up(order, str(error), done)
        await self._tell_leaders(orders)
        return Outcome(done.shortages, tuple(done.conflicts), tuple(done.refusals))

    async def _carry_out(
        self,
        order: do.Write,
        namespace: str,
        claim: Callable[[do.Reserve], Claim],
        done: _Progress,
    ) -> None:
        match order:
            case do.Ensure(manifest):
                await self._ensure(manifest, done)
            case do.Create(_, manifest):
                await self._create(manifest, done)
            case do.Reserve():
                shortage = await self._arbiter.reserve(claim(order))
                if shortage is not None:
                    done.shortages[order.group] = shortage
            case do.Mark(group, new_labels, annotations):
                await self._mark(group, new_labels, annotations)
            case do.Record(group, status):
                await self._record(group, status)
            case do.SetServing(member, serving):
                await self._set_serving(namespace, member, serving)
            case do.Restore(member):
                await self._patch_pod(namespace, member, {"metadata": {"labels": dict(member.lost_labels)}})
            case do.Ungate(member):
                await self._patch_pod(namespace, member, {"spec": {"schedulingGates": None}})
            case do.DeleteMember(member, grace):
                await self._delete(POD, namespace, member.name, member.uid, grace)
            case do.DeleteGroup(group):
                await self._delete(REPLICA_GROUP, namespace, group.name, group.uid, None)
            case do.DeleteConfigMap(name, uid):
                await self._delete(CONFIG_MAP, namespace, name, uid, None)
            case _:
                assert_never(order)

    async def _ensure(self, manifest: Mapping[str, Any], done: _Progress) -> None:
        wanted = dict(manifest)
        metadata = wanted["metadata"]
        kind = kind_of(wanted)
        try:
            await self._client.create(wanted)
            return
        except AlreadyExists:
            found = await self._client.get(kind, metadata["namespace"], metadata["name"])
        if not _same_owner(wanted, found):
            done.conflicts.append(f"{kind.name} {metadata['name']}")
            return
        if "deletionTimestamp" in found["metadata"]:
            raise Transient(f"{kind.name} {metadata['name']} is still being deleted")
        change = mend({"metadata": metadata} if wanted.get("immutable") else wanted, found)
        if change:
            uid = found["metadata"]["uid"]
            await self._client.merge_patch(kind, metadata["namespace"], metadata["name"], change, uid=uid)

    async def _create(self, manifest: Mapping[str, Any], done: _Progress) -> None:
        wanted = dict(manifest)
        metadata = wanted["metadata"]
        kind = kind_of(wanted)
        try:
            await self._client.create(wanted)
            return
        except AlreadyExists:
            found = await self._client.get(kind, metadata["namespace"], metadata["name"])
        if not _same_owner(wanted, found):
            done.conflicts.append(f"{kind.name} {metadata['name']}")
        elif "deletionTimestamp" not in found["metadata"]:
            # Ours, and not seen: just made, or without the labels by which it is seen.
            change = mend({"metadata": {"labels": metadata["labels"]}}, found)
            if change:
                uid = found["metadata"]["uid"]
                await self._client.merge_patch(kind, metadata["namespace"], metadata["name"], change, uid=uid)

    async def _mark(
        self, group: Group, new_labels: Mapping[str, str | None], annotations: Mapping[str, str | None]
    ) -> None:
        patch = {"metadata": {"labels": dict(new_labels), "annotations": dict(annotations)}}
        namespace = group.manifest["metadata"]["namespace"]
        await _if_there(self._client.merge_patch(REPLICA_GROUP, namespace, group.name, patch, uid=group.uid))

    async def _record(self, group: Group, status: Mapping[str, Any]) -> None:
        metadata = group.manifest["metadata"]
        body = {
            "apiVersion": labels.API_VERSION,
            "kind": "ReplicaGroup",
            "metadata": {"name": group.name, "namespace": metadata["namespace"], "uid": group.uid},
            "status": dict(status),
        }
        await _if_there(self._statuses.write(body))

    async def _set_serving(self, namespace: str, member: Member, serving: bool) -> None:
        proven = member.restarts if serving else member.token_restarts
        annotations = {} if proven is None else {labels.TOKEN_RESTARTS: str(proven)}
        await _if_there(
            self._client.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": member.name,
                        "namespace": namespace,
                        "uid": member.uid,
                        "labels": {labels.SERVING: "true" if serving else "false"},
                        "annotations": annotations,
                    },
                },
                labels.MANAGER_SERVING,
            )
        )

    async def _patch_pod(self, namespace: str, member: Member, patch: Object) -> None:
        await _if_there(self._client.merge_patch(POD, namespace, member.name, patch, uid=member.uid))

    async def _tell_leaders(self, orders: tuple[do.Action, ...]) -> None:
        """Last, and all at once: those on dead nodes answer nothing, and nobody else has to wait for that."""
        async with asyncio.TaskGroup() as tasks:
            for order in orders:
                match order:
                    case do.Drain(member):
                        tasks.create_task(self._tell(member, self._prober.drain))
                    case do.Resume(member):
                        tasks.create_task(self._tell(member, self._prober.resume))

    async def _tell(self, member: Member, order: Callable[[str], Awaitable[None]]) -> None:
        """A leader that cannot be told is told again at the next look, or ended by its drain time-out."""
        if member.ip is None:
            return
        try:
            await order(member.ip)
        except Transient as error:
            _log.info("%s: %s", member.name, error)

    async def _delete(self, kind: Kind, namespace: str, name: str, uid: str, grace: int | None) -> None:
        await _if_there(self._client.delete(kind, namespace, name, uid=uid, grace_seconds=grace))

    async def _give_up(self, order: do.Action, words: str, done: _Progress) -> None:
        """A group that cannot be completed gives back what it holds, and is tried again later."""
        if isinstance(order, do.Reserve):
            done.shortages[order.group] = Shortage("ApiRefused", words)
        elif isinstance(order, do.Create):
            done.shortages[order.group.group] = Shortage("ApiRefused", words)
            done.given_up.add(order.group.uid)
            for released in group_life.retire(order.group, self._clock()):
                if isinstance(released, do.Mark):
                    await self._mark(released.group, released.labels, released.annotations)
        else:
            done.refusals.append(words)


def _group_of(order: do.Action) -> dict[str, str | int]:
    """Whose life an order is about, for the log."""
    match order:
        case do.Reserve(group, incarnation):
            return {"group": f"g{group}", "incarnation": incarnation}
        case do.Create(group) | do.Mark(group) | do.Record(group) | do.DeleteGroup(group):
            return {"group": f"g{group.group}", "incarnation": group.incarnation}
        case _:
            return {}


def _same_owner(wanted: Object, found: Object) -> bool:
    """Whether what is there is ours: names can be taken, UIDs of owners cannot."""
    owner = wanted["metadata"]["ownerReferences"][0]["uid"]
    return any(reference["uid"] == owner for reference in found["metadata"].get("ownerReferences") or ())


async def _if_there(request: Awaitable[Object | None]) -> None:
    """Orders about an object that is gone, or has become another one, are void: the next look will tell."""
    try:
        await request
    except (NotFound, Conflict) as error:
        _log.debug("void: %s", error)
