"""The one place where GPUs are given away: checks and reserves, one demand at a time per pool.

A reservation *is* a ReplicaGroup: it exists in the cluster before any of its pods, so a restart forgets nothing. What
is taken = bound pods of anybody (Terminating ones too) + ReplicaGroups whose pods are not bound yet. Pods of others are
read by node, before each commit on the nodes that were chosen. Pools with `provisioning: Autoscaled` and pods of
foreign schedulers get no check of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from berth import labels
from berth.api.gpupool import GPUPool
from berth.controller import parse
from berth.controller.memo import Memo
from berth.controller.world import Key, World
from berth.core import capacity, pools
from berth.core.budgets import Allowance, NamespaceCaps, why_over_gpu_budget
from berth.core.capacity import Demand, Placement, Request, serve_in_order
from berth.core.nodes import NodeView, node_view
from berth.core.observed import Shortage
from berth.core.render.names import pod_name
from berth.core.spread import SpreadGoal, standing_in
from berth.core.usage import PodUsage, Reservation, Usage, bound_pods, held_by, pod_request, pod_usage, usage_by_node
from berth.errors import Conflict
from berth.kube.client import KubeClient
from berth.kube.errors import AlreadyExists
from berth.kube.kinds import POD, REPLICA_GROUP, Object

_log = logging.getLogger(__name__)

FOREIGN_SECONDS = 10.0
"""How long what others have on a node is believed without looking again; chosen nodes are always looked at, and before
a claim is refused those where others stand."""
ATTEMPTS = 8
"""Choices of nodes before giving way to whoever keeps taking them."""

HOLD_SECONDS = 60.0
"""How long who waits longest keeps the nodes nearest to fitting it from younger claims, whole: for pods just ending.
Later only what comes free there; models are served for weeks, so what was idle by then is lent to others, once."""


@dataclass(frozen=True)
class Claim:
    """One group that asks for room. `make` builds its ReplicaGroup for the nodes it gets."""

    key: Key
    owner_uid: str
    group: int
    pool: GPUPool
    demand: Demand
    spread: SpreadGoal
    """How the deployment's groups should stand; where the others do stand is filled in when it is asked."""
    inherits_from: frozenset[str]
    """UIDs of ReplicaGroups whose dying members' GPUs it may take over, where nothing else is free: free GPUs need no
    wait, and are not where it failed last."""
    own_check: bool
    why_not: str | None
    """Why nothing may be placed in the pool now, whatever is free."""
    make: Callable[[tuple[str, ...]], Object]
    doubted: Mapping[str, float] = field(default_factory=dict)
    """By node: when a member that it replaces vanished there without a word (Unix seconds)."""
    urgent: bool = False
    """It keeps whole what was there already: a replacement goes before growth."""
    waited: float = 0.0
    """Seconds for which the deployment has waited for room already, as its status says: a restart forgets no turn."""

    @property
    def name(self) -> str:
        return f"{self.key.namespace}/{self.key.name} g{self.group}"


@dataclass(frozen=True)
class _Foreign:
    pods: tuple[PodUsage, ...]
    at: float


@dataclass
class _Loan:
    """What the claim that waits longest has lent of the nodes it keeps: GPUs by node that younger ones may take."""

    claim: str
    left: dict[str, int]


class Arbiter:
    """Serial per pool; `now` is monotonic seconds, `why_avoided` what speaks against placing anything on a node.

    `heard_since` says whether a node gave a sign of life after a moment (Unix seconds).
    """

    def __init__(
        self,
        client: KubeClient,
        world: World,
        now: Callable[[], float],
        why_avoided: Callable[[NodeView], str] = lambda _node: "",
        heard_since: Callable[[str, float], bool] = lambda _node, _at: True,
        caps: NamespaceCaps | None = None,
    ) -> None:
        self._client = client
        self._world = world
        self._now = now
        self._why_avoided = why_avoided
        self._heard_since = heard_since
        self._caps = caps or NamespaceCaps()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[str, dict[str, Claim]] = {}
        self._since: dict[str, float] = {}
        """When each waiting claim first asked, by its name."""
        self._loans: dict[str, _Loan] = {}
        """By pool."""
        self._foreign: dict[str, _Foreign] = {}
        self._views = Memo(node_view)
        self._usages = Memo(pod_usage)
        self._requests = Memo(lambda pod, resource_name: pod_request(pod["spec"], resource_name))
        self._granted: dict[str, Object] = {}
        """ReplicaGroups just created, by UID, until the local copy has them."""
        self._asked: dict[str, Usage] = {}
        """What a member of each group created by this process asks for, by UID of the ReplicaGroup."""

    async def reserve(self, claim: Claim) -> Shortage | None:
        """Create the claim's ReplicaGroup on free nodes, or say why there are none."""
        namespace = claim.key.namespace
        if not self._caps.any:
            return await self._reserve(claim)
        async with self._locks[f"namespace {namespace}"]:  # of other pools as well: taken before the pool's
            held = [group for group in self._holding(labels.RETIRING) if group["metadata"]["namespace"] == namespace]
            gpus = sum(_gpus(group) for group in held)
            over = self._caps.why_over(namespace, len(held), gpus, claim.demand.gpus)
            return Shortage("NamespaceLimitReached", over) if over else await self._reserve(claim)

    def allowance(self, namespace: str, uid: str) -> Allowance:
        """What the settings leave a deployment beside what others of its namespace hold."""
        if not self._caps.any:
            return Allowance()
        others = [
            group
            for group in self._holding(labels.RETIRING)
            if group["metadata"]["namespace"] == namespace
            and (parse.owner_of(group, "LLMDeployment") or {}).get("uid") != uid
        ]
        return self._caps.left(namespace, len(others), sum(_gpus(group) for group in others))

    async def _reserve(self, claim: Claim) -> Shortage | None:
        pool = claim.pool.metadata.name
        if not claim.own_check:
            await self._create(claim, ())
            return None
        async with self._locks[pool]:
            waiting = self._waiting.setdefault(pool, {})
            waiting[claim.name] = claim
            self._since.setdefault(claim.name, self._now() - claim.waited)
            if claim.why_not is not None:
                return Shortage("WaitingForCapacity", claim.why_not)
            nodes = self.nodes_of(claim.pool)
            looked: set[str] = set()
            for _ in range(ATTEMPTS):
                over = self._why_over_budget(claim, nodes)
                answer = capacity.Shortage(over, 0) if over else self._ask(claim, nodes, waiting)
                if not isinstance(answer, Placement):
                    if claim.pool.spec.gpu_budget is None and await self.refresh(
                        claim.demand.resource_name, [node for node in nodes if self._taken_by_others(node)]
                    ):
                        continue
                    return Shortage("WaitingForCapacity", answer.reason)
                unseen = set() if claim.pool.spec.gpu_budget is not None else set(answer.nodes) - looked
                news = [await self._look(name, claim.demand.resource_name) for name in sorted(unseen)]
                looked |= unseen
                if not any(news):
                    await self._create(claim, answer.nodes)
                    waiting.pop(claim.name, None)
                    self._since.pop(claim.name, None)
                    self._settle_loan(pool, claim, answer.nodes)
                    return None
            return Shortage("WaitingForCapacity", f"others keep taking the free nodes of pool {pool}")

    def forget(self, key: Key, groups: frozenset[int] = frozenset()) -> None:
        """Only these groups of the deployment still ask for room."""
        for pool, waiting in self._waiting.items():
            for name in [n for n, claim in waiting.items() if claim.key == key and claim.group not in groups]:
                del waiting[name]
                self._since.pop(name, None)
                if pool in self._loans and self._loans[pool].claim == name:
                    del self._loans[pool]

    def waiting(self) -> frozenset[Key]:
        """Deployments that were refused and should ask again when capacity changes."""
        return frozenset(claim.key for waiting in self._waiting.values() for claim in waiting.values())

    def all_nodes(self, resource_name: str) -> list[NodeView]:
        """Every node of the cluster; one that nobody can read is left out, and said."""
        views = []
        for node in self._world.nodes.store.all():
            try:
                views.append(self._views.get(node, resource_name))
            except ValueError as error:
                _log.warning("left out: %s", error)
        return views

    def nodes_of(self, pool: GPUPool) -> list[NodeView]:
        """The nodes of the pool."""
        return pools.nodes_of(pool, self.all_nodes(pool.spec.resource_name))

    def used(
        self, resource_name: str, nodes: Iterable[NodeView], without: frozenset[str] = frozenset()
    ) -> dict[str, Usage]:
        """What is taken on these nodes, as far as is known; `without` are UIDs of ReplicaGroups that do not count."""
        bound = (pod for pod in self._bound(resource_name, nodes) if pod.owner_uid not in without)
        reserved = (each for each in self._reservations(resource_name) if each.owner_uid not in without)
        return usage_by_node(bound, reserved)

    async def refresh(self, resource_name: str, nodes: Iterable[NodeView]) -> bool:
        """Look again at what others have on these nodes, where the last look is old; whether there was any."""
        old = [node.name for node in nodes if self._age(node.name) > FOREIGN_SECONDS]
        for name in old:
            await self._look(name, resource_name)
        return bool(old)

    def _age(self, node: str) -> float:
        known = self._foreign.get(node)
        return float("inf") if known is None else self._now() - known.at

    def _taken_by_others(self, node: NodeView) -> bool:
        known = self._foreign.get(node.name)
        return known is not None and any(pod.amount.gpus for pod in known.pods)

    def _why_over_budget(self, claim: Claim, nodes: Sequence[NodeView]) -> str | None:
        if claim.pool.spec.gpu_budget is None:
            return None
        used = self.used(claim.demand.resource_name, nodes)
        held = sum(used[node.name].gpus for node in nodes if node.name in used)
        return why_over_gpu_budget(claim.pool, held, claim.demand.gpus)

    def _ask(self, claim: Claim, nodes: Sequence[NodeView], waiting: dict[str, Claim]) -> Placement | capacity.Shortage:
        """The answer to `claim` after all whose turn comes first got theirs."""
        resource, pool = claim.demand.resource_name, claim.pool.metadata.name
        bound = self._bound(resource, nodes)
        used = usage_by_node(bound, self._reservations(resource))
        queue = sorted(waiting.values(), key=lambda each: (not each.urgent, self._since[each.name]))
        doubted = [item for each in queue for item in each.doubted.items()]
        exclude = {
            name: "lost a pod and was not heard from since" for name, at in doubted if not self._heard_since(name, at)
        }
        exclude |= {node.name: why for node in nodes if (why := self._why_avoided(node))}
        requests = [
            Request(
                other.name,
                other.demand,
                avoid=frozenset(held_by(other.inherits_from, bound)),
                reusable=held_by(other.inherits_from, bound),
                goal=replace(other.spread, standing=self._standing(other, nodes)),
            )
            for other in queue[: queue.index(claim) + 1]
        ]
        answers = serve_in_order(requests, nodes, used, pool=pool, exclude=exclude)
        for request in requests[:-1]:
            keeps = isinstance(answers[request.key], capacity.Shortage) and self._loan(
                pool, request, nodes, used, exclude
            )
            if keeps:
                if self._now() - self._since[request.key] >= HOLD_SECONDS:
                    requests = [replace(each, lends=keeps.left) if each is request else each for each in requests]
                    answers = serve_in_order(requests, nodes, used, pool=pool, exclude=exclude)
                break
        return answers[claim.name]

    def _loan(
        self,
        pool: str,
        request: Request,
        nodes: Sequence[NodeView],
        used: Mapping[str, Usage],
        exclude: Mapping[str, str],
    ) -> _Loan | None:
        """What the request lends of the nodes it keeps; None if it keeps none: no nodes would ever fit it.

        The nodes stay the same as long as they would fit it. All that is free when it has waited for HOLD_SECONDS is
        lent; from then on the loan only shrinks, so that everything that comes free there later is kept.
        """
        free_now = {node.name: capacity.free(node, used).gpus for node in nodes}
        open_nodes = {node.name for node in nodes if capacity.would_fit(request, node, exclude)}
        loan = self._loans.get(pool)
        young = self._now() - self._since[request.key] < HOLD_SECONDS
        if loan is None or loan.claim != request.key or young or not set(loan.left) <= open_nodes:
            keeps = capacity.nearest_to_fitting(request, nodes, used, exclude)
            if not keeps:
                return None
            loan = _Loan(request.key, {name: free_now[name] for name in keeps})
            self._loans[pool] = loan
        loan.left = {name: min(left, free_now[name]) for name, left in loan.left.items()}
        return loan

    def _settle_loan(self, pool: str, claim: Claim, nodes: Iterable[str]) -> None:
        """After a grant: what was lent can be taken once, and who got its nodes lends no more."""
        loan = self._loans.get(pool)
        if loan is None:
            return
        if loan.claim == claim.name:
            del self._loans[pool]
            return
        for name in set(nodes) & set(loan.left):
            loan.left[name] = max(0, loan.left[name] - claim.demand.gpus_per_member)

    async def _look(self, node: str, resource_name: str) -> bool:
        """Reads what others have on a node; whether that is another answer than was known or taken for granted."""
        listing = await self._client.list(POD, field_selector=f"spec.nodeName={node}")
        others = [pod for pod in listing.items if not self._world.sees(pod)]
        found, known = tuple(bound_pods(others, resource_name)), self._foreign.get(node)
        self._foreign[node] = _Foreign(found, self._now())
        return found != (known.pods if known else ())

    def _bound(self, resource_name: str, nodes: Iterable[NodeView]) -> list[PodUsage]:
        names = {node.name for node in nodes}
        foreign = [pod for name in names if name in self._foreign for pod in self._foreign[name].pods]
        pods = self._world.pods.store.all()
        for memo in (self._usages, self._requests):
            memo.keep(pods)
        own = (self._usages.get(pod, resource_name) for pod in pods)
        return [pod for pod in own if pod is not None] + foreign

    def _standing(self, claim: Claim, nodes: Sequence[NodeView]) -> dict[str, int]:
        """Groups of the claim's deployment per failure domain, those just created included."""
        by_name = {node.name: node for node in nodes}
        others = (
            group["spec"].get("plannedNodes") or ()
            for group in self._wanted((*self._world.groups_of(claim.owner_uid), *self._granted.values()))
            if (parse.owner_of(group, "LLMDeployment") or {}).get("uid") == claim.owner_uid
            and group["spec"]["group"] != f"g{claim.group}"
        )
        standing = [[by_name[name] for name in names if name in by_name] for names in others]
        return standing_in(standing, claim.spread.topology_key)

    def granted(self, owner_uid: str) -> list[Object]:
        """ReplicaGroups made for this deployment that the local copy does not show yet."""
        known = {group["metadata"]["uid"] for group in self._world.groups_of(owner_uid)}
        return [
            group
            for uid, group in self._granted.items()
            if uid not in known
            and group["metadata"]["ownerReferences"][0]["uid"] == owner_uid
            and not self._world.groups.has_seen(group["metadata"]["resourceVersion"])
        ]

    def _holding(self, *others: str) -> list[Object]:
        """ReplicaGroups whose members are wanted: each holds its planned nodes. And those in `others` lifecycles."""
        stored = self._world.groups.store.all()
        known = {group["metadata"]["uid"] for group in stored}
        self._granted = {
            uid: granted
            for uid, granted in self._granted.items()
            if uid not in known and not self._world.groups.has_seen(granted["metadata"]["resourceVersion"])
        }
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in known or uid in self._granted}
        return self._wanted((*stored, *self._granted.values()), *others)

    @staticmethod
    def _wanted(groups: Iterable[Object], *others: str) -> list[Object]:
        return [
            group
            for group in groups
            if parse.lifecycle(group) in (labels.RESERVED, labels.COMMITTED, *others)
            and "deletionTimestamp" not in group["metadata"]
        ]

    def _reservations(self, resource_name: str) -> list[Reservation]:
        return [
            Reservation(
                group["metadata"]["uid"],
                tuple(group["spec"].get("plannedNodes") or ()),
                self._member(group, resource_name),
            )
            for group in self._holding()
        ]

    def _member(self, group: Object, resource_name: str) -> Usage:
        """What one member asks for: from a pod that exists, from its claim, or at least its GPUs."""
        metadata, spec = group["metadata"], group["spec"]
        pod = self._world.pods.store.get(metadata["namespace"], pod_name(metadata["name"], 0))
        if pod is not None:
            return self._requests.get(pod, resource_name)
        return self._asked.get(metadata["uid"], Usage(gpus=_gpus(group) // spec["members"]))

    async def _create(self, claim: Claim, nodes: tuple[str, ...]) -> None:
        wanted = claim.make(nodes)
        try:
            created = await self._client.create(wanted)
        except AlreadyExists:
            metadata = wanted["metadata"]
            created = await self._client.get(REPLICA_GROUP, metadata["namespace"], metadata["name"])
            ours = (
                created["metadata"].get("ownerReferences", [{}])[0].get("uid") == metadata["ownerReferences"][0]["uid"]
            )
            if not ours or "deletionTimestamp" in created["metadata"]:
                raise Conflict(f"ReplicaGroup {metadata['name']} of another life is still there") from None
        uid = created["metadata"]["uid"]
        self._granted[uid] = created
        self._asked[uid] = claim.demand.member


def _gpus(group: Object) -> int:
    """GPUs of all members of a ReplicaGroup together."""
    allocation = group["spec"]["allocation"]
    return int(allocation.get("tensorParallel", 1) * allocation.get("pipelineParallel", 1))
