"""Watches over the nodes: silent Leases, nodes that are gone, sick GPUs, pools whose silence proves nothing.

Once a second everything known is judged anew and those it concerns are woken; Leases are listed every other second, by
a consistent read, because a watch can be stalled without anybody noticing. What is remembered here may be lost at any
moment: it costs seconds, never a wrong decision. The rules are in `berth.core.sightings` and `berth.core.faults`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from berth import labels
from berth.controller import parse
from berth.controller.memo import Memo
from berth.controller.world import Key, World, deployments_of, pool_key
from berth.core.failures import NODE_FAILURES
from berth.core.faults import DeviceUse, FaultRules, device_use, sick_pods
from berth.core.nodes import NodeView, node_view
from berth.core.observed import Contact, NodeFacts, Sickness
from berth.core.pools import nodes_of
from berth.core.sightings import Freezer, Lasting, LeaseWatch, evacuations_frozen
from berth.core.timestamps import timestamp, unix_seconds
from berth.core.usage import pod_usage
from berth.core.wanted import readable_pools
from berth.errors import BerthError
from berth.kube.client import KubeClient
from berth.kube.errors import Forbidden
from berth.kube.kinds import LEASE, NODE, Object
from berth.metrics import Metrics

_log = logging.getLogger(__name__)

LEASE_NAMESPACE: Final = "kube-node-lease"
NO_LEASE_SECONDS: Final = 60.0
"""How long a node whose Lease was never read is doubted after it took a pod along."""
READ_LATE_SECONDS: Final = 5.0
"""A renewal that is first seen now may be so old: Leases are read every other second, moments are whole ones."""
TICK_SECONDS: Final = 1.0
LEASES_PER_SECOND: Final = 500.0
"""At least two seconds between two lists, and longer where there are more than a thousand nodes."""


@dataclass(frozen=True)
class Limits:
    """When a node is late, silent, believed to be sick, and trusted again. Seconds."""

    late_after: float
    silent_after: float
    gpu_fault_hold: float
    stable_after: float


class NodeWatch:
    """`reach` tells by pod UID whether a leader answers; `now` is monotonic, `clock` gives Unix seconds."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        reach: Callable[[], Mapping[str, bool]],
        wake: Callable[[Key], None],
        now: Callable[[], float],
        clock: Callable[[], float],
        rules: FaultRules,
        limits: Limits,
        metrics: Metrics | None = None,
    ) -> None:
        self._client = client
        self._world = world
        self._reach = reach
        self._wake = wake
        self._now = now
        self._clock = clock
        self._rules = rules
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._leases = LeaseWatch(limits.late_after, limits.silent_after)
        self._next_list = 0.0
        self._leases_readable = True
        self._sick = Lasting(limits.gpu_fault_hold)
        self._freezer = Freezer()
        self._facts: dict[str, NodeFacts] = {}
        self._since: dict[str, float] = {}
        """Unix seconds of the first sight of each report that still stands, by node or pod UID."""
        self._bad: dict[str, tuple[str, float]] = {}
        """By node: what was wrong with it, and when that was last so."""
        self._views = Memo(node_view)
        self._uses = Memo(_device_use)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # one odd object must not end the operator
                _log.exception("the look at the nodes failed, what was known before stands")
            await asyncio.sleep(TICK_SECONDS)

    async def look(self) -> None:
        """One look at everything; what cannot be read now is left as it was."""
        if self._now() >= self._next_list:
            await self._list_leases()
        carrying = self._carrying()
        gone = await self._gone(carrying)
        self._judge(carrying, gone)

    # --- what passes ask ----------------------------------------------------------------------------------------------

    def facts(self, names: Iterable[str]) -> dict[str, NodeFacts]:
        """What is known of these nodes."""
        return {name: self._facts[name] for name in names if name in self._facts}

    def frozen(self, pools: Iterable[str]) -> str:
        """Why evacuations are frozen in one of these pools; empty if they are in none."""
        return next((why for pool in pools if (why := self._freezer.frozen.get(pool, ""))), "")

    def why_avoided(self, node: NodeView) -> str:
        """Why nothing new should be placed on a node, in words; empty if nothing speaks against it."""
        contact = self._leases.contact(node.name, self._now())
        if contact in (Contact.LATE, Contact.SILENT):
            return "does not renew its Lease"
        if fault := self._rules.fault_of(node):
            return f"has {fault}"
        if node.name in self._bad:
            words, at = self._bad[node.name]
            left = at + self._limits.stable_after - self._now()
            if left > 0:
                return f"was faulty ({words}) and is avoided until {timestamp(self._clock() + left)}"
        return ""

    def heard_since(self, name: str, at: float) -> bool:
        """Whether a node has surely renewed its Lease since `at` (Unix seconds); True where Leases cannot be read.

        A Lease that was not read yet may belong to a new node, or to an operator that has just begun to lead.
        """
        if not self._leases_readable:
            return True
        known = name in self._leases.nodes
        return (self._leases.quiet_for(name) if known else NO_LEASE_SECONDS) < self._clock() - at - READ_LATE_SECONDS

    # --- one look -----------------------------------------------------------------------------------------------------

    async def _list_leases(self) -> None:
        try:
            listing = await self._client.list(LEASE, LEASE_NAMESPACE, transform=_slim_lease)
        except BerthError as error:
            if self._leases_readable:
                _log.warning("node Leases cannot be read, silent nodes are noticed later: %s", error)
            self._leases_readable = not isinstance(error, Forbidden)
            self._next_list = self._now() + (60.0 if isinstance(error, Forbidden) else 2.0)
            return
        self._leases_readable = True
        now = self._now()
        self._leases.look({name: (renewal, duration) for name, renewal, duration in map(_lease, listing.items)}, now)
        self._next_list = now + max(2.0, len(listing.items) / LEASES_PER_SECOND)

    def _carrying(self) -> dict[str, list[Object]]:
        """By node: our pods that are bound there and have not ended."""
        found: defaultdict[str, list[Object]] = defaultdict(list)
        for pod in self._world.pods.store.all():
            node = pod["spec"].get("nodeName")
            if node and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                found[node].append(pod)
        return found

    async def _gone(self, names: Iterable[str]) -> frozenset[str]:
        """Those of which the API server says that they do not exist: absence from the local copy is no proof."""
        found = set()
        for name in names:
            if self._world.nodes.store.get(None, name) is not None:
                continue
            if self._facts.get(name, NodeFacts()).gone:
                found.add(name)  # asked before, and it has not come back since
                continue
            try:
                if not (await self._client.list(NODE, field_selector=f"metadata.name={name}")).items:
                    found.add(name)
            except BerthError as error:
                _log.info("whether node %s exists is not known: %s", name, error)
        return frozenset(found)

    def _judge(self, carrying: Mapping[str, list[Object]], gone: frozenset[str]) -> None:
        now, reach = self._now(), self._reach()
        contacts = {name: self._contact(name, now) for name in {*carrying, *self._leases.nodes}}
        self._freeze(contacts, carrying, reach, now)
        sick = self._sick_pods(carrying, now)
        frozen = set(self._freezer.frozen)
        facts = {}
        for name, pods in carrying.items():
            contact = contacts[name]
            quiet = contact in (Contact.LATE, Contact.SILENT)
            facts[name] = NodeFacts(
                gone=name in gone,
                contact=contact,
                silent_since=self._first_seen(name, self._leases.quiet_for(name)) if quiet else None,
                sick={uid: sick[uid] for pod in pods if (uid := pod["metadata"]["uid"]) in sick},
                frozen=bool({_pool_of(pod) for pod in pods} & frozen),
            )
        standing = {*sick, *(name for name, each in facts.items() if each.silent_since is not None)}
        self._since = {key: at for key, at in self._since.items() if key in standing}
        self._remember(facts, now)
        for name in [name for name, each in facts.items() if each != self._facts.get(name, NodeFacts())]:
            for pod in carrying[name]:
                for key in deployments_of(pod):
                    self._wake(key)
        self._facts = facts

    def _contact(self, name: str, now: float) -> Contact:
        """By the Lease; where those cannot be read by what the control plane made of them, tens of seconds later."""
        if self._leases_readable:
            return self._leases.contact(name, now)
        node = self._world.nodes.store.get(None, name)
        conditions = (node or {}).get("status", {}).get("conditions") or ()
        ready = next((each.get("status") for each in conditions if each.get("type") == "Ready"), "")
        return {"Unknown": Contact.SILENT, "True": Contact.FRESH}.get(ready, Contact.UNKNOWN)

    def _first_seen(self, key: str, ago: float) -> float:
        return self._since.setdefault(key, self._clock() - ago)

    def _sick_pods(self, carrying: Mapping[str, list[Object]], now: float) -> dict[str, Sickness]:
        """By UID, only what has lasted."""
        reported: dict[str, str] = {}
        resources = {name: pool.spec.resource_name for name, pool in readable_pools(self._raw_pools()).items()}
        for name, pods in carrying.items():
            node = self._world.nodes.store.get(None, name)
            resource = next((resources[pool] for pod in pods if (pool := _pool_of(pod)) in resources), None)
            if node is None or resource is None:
                continue
            try:
                view = self._views.get(node, resource)
                reported |= sick_pods(view, [self._uses.get(pod, resource) for pod in pods], self._rules)
            except ValueError as error:
                _log.warning("%s", error)
        self._sick.see(reported, now)
        self._uses.keep([pod for pods in carrying.values() for pod in pods])
        lasting = {uid: words for uid, words in reported.items() if self._sick.lasts(uid, now)}
        hold = self._limits.gpu_fault_hold
        return {uid: Sickness(words, self._first_seen(uid, hold)) for uid, words in lasting.items()}

    def _freeze(
        self,
        contacts: Mapping[str, Contact],
        carrying: Mapping[str, list[Object]],
        reach: Mapping[str, bool],
        now: float,
    ) -> None:
        overdue = {name for name, contact in contacts.items() if contact in (Contact.LATE, Contact.SILENT)}
        answering = {
            name for name, pods in carrying.items() if any(reach.get(pod["metadata"]["uid"], False) for pod in pods)
        }
        suspects = frozenset(overdue - answering)
        fresh = frozenset(name for name, contact in contacts.items() if contact is Contact.FRESH)
        anybody = any(reach.values()) or not reach
        reasons = dict.fromkeys(self._freezer.frozen, "")
        if suspects:
            for name, mine in self._nodes_by_pool(carrying).items():
                reasons[name] = evacuations_frozen(mine, suspects, fresh, anybody_reached=anybody)
        before = dict(self._freezer.frozen)
        begun = self._freezer.update(reasons, now)
        self._metrics.frozen_pools(len(self._freezer.frozen), begun=len(begun))
        for name in begun:
            _log.warning("evacuations of pool %s are frozen: %s", name, self._freezer.frozen[name])
        for name in set(before) ^ set(self._freezer.frozen):
            self._wake(pool_key(name))

    def _nodes_by_pool(self, carrying: Mapping[str, list[Object]]) -> dict[str, frozenset[str]]:
        """Of a pool that is gone, or that only another release can read, those on which its groups stand."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for name, pods in carrying.items():
            for pool_name in filter(None, map(_pool_of, pods)):
                found[pool_name].add(name)
        for pool_name, pool in readable_pools(self._raw_pools()).items():
            views = (self._views.get(node, pool.spec.resource_name) for node in self._world.nodes.store.all())
            found[pool_name] = {view.name for view in nodes_of(pool, views)}
        return {pool_name: frozenset(names) for pool_name, names in found.items()}

    def _remember(self, facts: Mapping[str, NodeFacts], now: float) -> None:
        """What is wrong now, and what failed groups say was wrong before this process began."""
        for name, each in facts.items():
            if each.contact is Contact.SILENT and not each.frozen:
                self._bad[name] = "silent", now
            elif each.sick:
                self._bad[name] = next(iter(each.sick.values())).words, now
        for group in self._world.groups.store.all():
            if parse.lifecycle(group) != labels.FAILED:
                continue
            evidence = parse.group_status(group).get("evidence") or {}
            if evidence.get("cause") not in NODE_FAILURES:
                continue
            at, node = unix_seconds(evidence.get("observedAt")), evidence.get("node")
            if at is not None and node and node not in self._bad:
                self._bad[node] = str(evidence["cause"]), now - max(0.0, self._clock() - at)
        self._bad = {name: bad for name, bad in self._bad.items() if now - bad[1] < self._limits.stable_after}

    def _raw_pools(self) -> dict[str, Object]:
        return {pool["metadata"]["name"]: pool for pool in self._world.pools.store.all()}


def _slim_lease(lease: Object) -> Object:
    return {"metadata": {"name": lease["metadata"]["name"]}, "spec": lease.get("spec") or {}}


def _lease(lease: Object) -> tuple[str, str, float]:
    spec = lease["spec"]
    duration = spec.get("leaseDurationSeconds")
    return lease["metadata"]["name"], str(spec.get("renewTime")), float(duration if isinstance(duration, int) else 40)


def _device_use(pod: Object, resource_name: str) -> DeviceUse:
    usage = pod_usage(pod, resource_name)
    return device_use(pod, usage.amount.gpus if usage else 0)


def _pool_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(labels.POOL, ""))
