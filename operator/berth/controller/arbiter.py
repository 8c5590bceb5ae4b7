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
from berth.api.gpupool import GPUPool, GPUPoolSpec
from berth.controller import parse
from berth.controller.memo import Memo
from berth.controller.taken import Granted, Taken, gpus_of, wanted_of
from berth.controller.world import Key, World, slim_pod
from berth.core import capacity, pools
from berth.core.budgets import Allowance, NamespaceCaps, why_over_gpu_budget
from berth.core.capacity import Demand, Placement, Request, serve_in_order
from berth.core.nodes import NodeView, node_view
from berth.core.observed import Shortage
from berth.core.spread import SpreadGoal, standing_in
from berth.core.usage import Usage, bound_pods
from berth.errors import Conflict, Transient
from berth.kube.client import KubeClient
from berth.kube.errors import AlreadyExists
from berth.kube.kinds import POD, REPLICA_GROUP, Object
from berth.kube.reflector import newest

_log = logging.getLogger(__name__)

FOREIGN_SECONDS = 10.0
"""How long what others have on a node is believed without looking again; chosen nodes are always looked at, and before
a claim is refused those where others stand."""
ONE_BY_ONE = 32
"""So many nodes are asked about each alone. Where more are due that are most of the cluster's, all pods of others are
listed, in pages: a request for each node would take `apiRate` from everybody else."""
ON_NODES = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
"""Field selector of pods that hold something."""
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
        self._looked_at = ""
        """The resourceVersion of the newest answer: no later one may be older."""
        self._looking = asyncio.Lock()
        """Whoever comes while all nodes are looked at waits for that answer, and asks for none of its own."""
        self._granted = Granted(world)
        self._taken: dict[str, Taken] = {}
        """By resource name."""
        self._views = Memo(node_view)
        self._nodes_changed = world.nodes.store.follow()
        self._nodes: dict[str, tuple[GPUPoolSpec, list[NodeView]]] = {}
        """Of each pool, until a node changes."""

    async def reserve(self, claim: Claim) -> Shortage | None:
        """Create the claim's ReplicaGroup on free nodes, or say why there are none."""
        namespace = claim.key.namespace
        if not self._caps.any:
            return await self._reserve(claim)
        async with self._locks[f"namespace {namespace}"]:  # of other pools as well: taken before the pool's
            held = [group for group in self._holding(labels.RETIRING) if group["metadata"]["namespace"] == namespace]
            gpus = sum(gpus_of(group) for group in held)
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
        return self._caps.left(namespace, len(others), sum(gpus_of(group) for group in others))

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
            taken = self._taken_of(claim.demand.resource_name)
            for _ in range(ATTEMPTS):
                over = self._why_over_budget(claim, nodes)
                answer = capacity.Shortage(over, 0) if over else self._ask(claim, nodes, waiting)
                if not isinstance(answer, Placement):
                    if claim.pool.spec.gpu_budget is None and await self.refresh(
                        claim.demand.resource_name, [node for node in nodes if taken.others_stand_on(node.name)]
                    ):
                        continue
                    return Shortage("WaitingForCapacity", answer.reason)
                # Others may look at the same nodes meanwhile (a pool's status does): what counts is what the answer
                # relied on, not who brings the news.
                relied_on = {name: taken.others(name) for name in answer.nodes}
                unseen = set() if claim.pool.spec.gpu_budget is not None else set(answer.nodes) - looked
                for name in sorted(unseen):
                    await self._look(name, claim.demand.resource_name)
                looked |= unseen
                if all(taken.others(name) == pods for name, pods in relied_on.items()):
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

    def nodes_of(self, pool: GPUPool) -> Sequence[NodeView]:
        """The nodes of the pool."""
        if self._nodes_changed:
            self._nodes_changed.clear()
            self._nodes.clear()
        spec, nodes = self._nodes.get(pool.metadata.name, (None, []))
        if spec != pool.spec:
            nodes = pools.nodes_of(pool, self.all_nodes(pool.spec.resource_name))
            self._nodes[pool.metadata.name] = (pool.spec, nodes)
        return nodes

    def used(
        self, resource_name: str, nodes: Iterable[NodeView], without: frozenset[str] = frozenset()
    ) -> dict[str, Usage]:
        """What is taken on these nodes, as far as is known; `without` are UIDs of ReplicaGroups that do not count."""
        return self._taken_of(resource_name).ledger.taken((node.name for node in nodes), without)

    async def refresh(self, resource_name: str, nodes: Iterable[NodeView]) -> bool:
        """Look again at what others have on these nodes, where the last look is old; whether there was any."""
        taken, due = self._taken_of(resource_name), self._now() - FOREIGN_SECONDS
        old = [node.name for node in nodes if taken.seen(node.name) < due]
        async with self._looking:
            still_old = [name for name in old if taken.seen(name) < due]
            if len(still_old) > ONE_BY_ONE and 2 * len(still_old) >= len(self._world.nodes.store):
                await self._look_at_all(still_old, resource_name)
            else:
                for name in still_old:
                    await self._look(name, resource_name)
        return bool(old)

    def _taken_of(self, resource_name: str) -> Taken:
        if resource_name not in self._taken:
            self._taken[resource_name] = Taken(self._world, self._granted, resource_name)
        return self._taken[resource_name]

    def _why_over_budget(self, claim: Claim, nodes: Sequence[NodeView]) -> str | None:
        if claim.pool.spec.gpu_budget is None:
            return None
        used = self.used(claim.demand.resource_name, nodes)
        held = sum(used[node.name].gpus for node in nodes if node.name in used)
        return why_over_gpu_budget(claim.pool, held, claim.demand.gpus)

    def _ask(self, claim: Claim, nodes: Sequence[NodeView], waiting: dict[str, Claim]) -> Placement | capacity.Shortage:
        """The answer to `claim` after all whose turn comes first got theirs."""
        pool = claim.pool.metadata.name
        ledger = self._taken_of(claim.demand.resource_name).ledger
        used = ledger.taken(node.name for node in nodes)
        queue = sorted(waiting.values(), key=lambda each: (not each.urgent, self._since[each.name]))
        doubted = [item for each in queue for item in each.doubted.items()]
        silent = {name for name, at in doubted if not self._heard_since(name, at)}
        reasons: dict[str, str] = {}

        def why_not(node: NodeView) -> str:
            if node.name not in reasons:
                lost = "lost a pod and was not heard from since" if node.name in silent else ""
                reasons[node.name] = self._why_avoided(node) or lost
            return reasons[node.name]

        by_name = {node.name: node for node in nodes}
        requests = [
            Request(
                other.name,
                other.demand,
                avoid=frozenset(dying := ledger.held(other.inherits_from)),
                reusable=dying,
                goal=replace(other.spread, standing=self._standing(other, by_name)),
            )
            for other in queue[: queue.index(claim) + 1]
        ]
        answers = serve_in_order(requests, nodes, used, pool=pool, why_not=why_not)
        hopeless: list[Demand] = []
        for request in requests[:-1]:
            if isinstance(answers[request.key], Placement) or request.demand in hopeless:
                continue
            keeps = self._loan(pool, request, nodes, used, why_not)
            if keeps is None:
                if not request.demands_spread:
                    hopeless.append(request.demand)
                continue
            if self._now() - self._since[request.key] >= HOLD_SECONDS:
                requests = [replace(each, lends=keeps.left) if each is request else each for each in requests]
                answers = serve_in_order(requests, nodes, used, pool=pool, why_not=why_not)
            break
        return answers[claim.name]

    def _loan(
        self,
        pool: str,
        request: Request,
        nodes: Sequence[NodeView],
        used: Mapping[str, Usage],
        why_not: capacity.WhyNot,
    ) -> _Loan | None:
        """What the request lends of the nodes it keeps; None if it keeps none: no nodes would ever fit it.

        The nodes stay the same as long as they would fit it. All that is free when it has waited for HOLD_SECONDS is
        lent; from then on the loan only shrinks, so that everything that comes free there later is kept.
        """
        free_now = {node.name: capacity.free(node, used).gpus for node in nodes}
        open_nodes = {node.name for node in nodes if capacity.would_fit(request, node, why_not)}
        loan = self._loans.get(pool)
        young = self._now() - self._since[request.key] < HOLD_SECONDS
        if loan is None or loan.claim != request.key or young or not set(loan.left) <= open_nodes:
            keeps = capacity.nearest_to_fitting(request, nodes, used, why_not)
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

    async def _look(self, node: str, resource_name: str) -> None:
        """Reads what others have on a node.

        As far as the server's cache knows: all claims of the pool wait for this answer, and a pod that is bound while
        it is on its way is not in it, whichever way it was read.
        """
        asked, version = self._now(), newest(self._looked_at, self._world.pods.version)
        try:
            listing = await self._client.list(POD, field_selector=f"spec.nodeName={node}", not_older_than=version)
        except Transient:
            self._looked_at = ""  # of an etcd that was replaced by an older one it would never come again
            raise
        self._looked_at = newest(self._looked_at, listing.resource_version)
        others = [pod for pod in listing.items if not self._world.sees(pod)]
        self._taken_of(resource_name).see(node, bound_pods(others, resource_name), asked)

    async def _look_at_all(self, nodes: Sequence[str], resource_name: str) -> None:
        """The same for many nodes, with a request per page of pods."""
        asked = self._now()
        standing: defaultdict[str, list[Object]] = defaultdict(list)
        for selector in self._world.selectors_of_others():
            listing = await self._client.list(POD, label_selector=selector, field_selector=ON_NODES, transform=slim_pod)
            self._looked_at = newest(self._looked_at, listing.resource_version)
            for pod in listing.items:
                if not self._world.sees(pod):
                    standing[pod["spec"]["nodeName"]].append(pod)
        for name in nodes:
            self._taken_of(resource_name).see(name, bound_pods(standing[name], resource_name), asked)
            await asyncio.sleep(0)  # thousands of pods: others have their turn

    def _standing(self, claim: Claim, by_name: Mapping[str, NodeView]) -> dict[str, int]:
        """Groups of the claim's deployment per failure domain, those just created included."""
        others = (
            group["spec"].get("plannedNodes") or ()
            for group in wanted_of((*self._world.groups_of(claim.owner_uid), *self.granted(claim.owner_uid)))
            if (parse.owner_of(group, "LLMDeployment") or {}).get("uid") == claim.owner_uid
            and group["spec"]["group"] != f"g{claim.group}"
        )
        standing = [[by_name[name] for name in names if name in by_name] for names in others]
        return standing_in(standing, claim.spread.topology_key)

    def granted(self, owner_uid: str) -> list[Object]:
        """ReplicaGroups made for this deployment that the local copy does not show yet."""
        return [group for group in self._granted.all() if group["metadata"]["ownerReferences"][0]["uid"] == owner_uid]

    def _holding(self, *others: str) -> list[Object]:
        """ReplicaGroups whose members are wanted, and those in the lifecycles `others`."""
        return wanted_of((*self._granted.all(), *self._world.groups.store.all()), *others)

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
        self._granted.add(created, claim.demand.member)
