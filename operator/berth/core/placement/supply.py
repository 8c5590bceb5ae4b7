"""What the planner may use of one pool: its GPUs and link, its nodes and what is taken on them.

Two capacities count: what is free *now*, node by node, and what the pool has in *total*. A pool whose nodes are not
known (a file that names none) or come on demand (`provisioning: Autoscaled`) has as many as are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from berth.api.gpupool import GPUPool
from berth.core import spread
from berth.core.budgets import Allowance
from berth.core.capacity import Demand, whole_groups
from berth.core.nodes import NodeView, Toleration
from berth.core.pools import OVERLAP, UNSUPPORTED_ALLOCATION, why_namespace_not_allowed
from berth.core.spread import SpreadGoal
from berth.core.stock import Stock, fill, key_of
from berth.core.usage import Usage
from berth.errors import InvalidSpec
from berth.estimator import hardware
from berth.estimator.hardware import NVLINK, NVLINK_BRIDGE, PCIE, GPUType

UNLIMITED: Final = 10**6
"""Groups that fit where nothing bounds them."""
_LINKS: Final[Mapping[str, tuple[float, int]]] = {NVLINK: (300e9, 8), NVLINK_BRIDGE: (300e9, 2), PCIE: (32e9, 8)}
"""Bytes per second and GPUs joined, where a pool's link is not the usual one of its GPU type; the slower generation."""
_PLENTY: Final = 10**8
"""Cores and memory of nodes of which only the GPUs are known."""
_NOTHING: Final = Usage()
_ANY: Final = Allowance()
_UNKNOWN: Final = GPUType("unknown", "", 0, 0, 0, 0, 0, 0, PCIE, 0, 0, 0, "unknown")
"""Of pools that are not planned with because nobody knows their GPU."""


@dataclass(frozen=True)
class Supply:
    """One pool as of now."""

    pool: GPUPool
    gpu: GPUType
    nodes: tuple[NodeView, ...] | None
    """None: unknown, or made on demand."""
    used: Mapping[str, Usage] = field(default_factory=dict)
    """What is taken on each node, without what the deployment that is planned for holds itself."""
    why_not: str = ""
    """Why nothing may be planned here; empty if something may."""
    allowance: Allowance = _ANY
    """What the deployment's namespace may hold, over all pools."""
    kept: Stock | None = field(default=None, compare=False, repr=False)
    """`nodes` and `used` as arrays, from who keeps them anyway."""

    @property
    def name(self) -> str:
        return self.pool.metadata.name

    @property
    def price(self) -> float | None:
        """Of one GPU for one hour."""
        price = self.pool.spec.price_per_gpu_hour
        return None if price is None else float(price)

    @cached_property
    def stock(self) -> Stock:
        """What is left on each node; not to be changed."""
        return self.kept if self.kept is not None else Stock.of(self.nodes or (), self.used)

    def with_taken(self, names: Iterable[str], member: Usage) -> Supply:
        """The pool with another member on each of these nodes."""
        used, stock = dict(self.used), self.stock.copy()
        for name in names:
            used[name] = used.get(name, _NOTHING) + member
            stock.put(name, used[name])
        return replace(self, used=used, kept=stock)

    def room_now(self, demand: Demand) -> int:
        """Groups that fit at once into what is free."""
        fits = UNLIMITED if self.nodes is None else self._fit_now(demand)
        budget = self.pool.spec.gpu_budget
        if budget is None:
            return fits
        held = sum(self.used.get(node.name, _NOTHING).gpus for node in self.nodes or ())
        return min(fits, max(0, budget - held) // demand.gpus)

    def room(self, demand: Demand) -> int:
        """Groups that the pool could hold if it were empty and all its nodes were well."""
        fits = UNLIMITED if self.nodes is None else self.stock.ground.most(demand)
        budget = self.pool.spec.gpu_budget
        return fits if budget is None else min(fits, budget // demand.gpus)

    def free_per_node(self, tolerations: tuple[Toleration, ...] = ()) -> dict[str, int]:
        """As `Stock.free_per_node`."""
        return self.stock.free_per_node(tolerations)

    def _fit_now(self, demand: Demand) -> int:
        if demand.volume_terms:
            return self.stock.groups(demand)
        key = key_of(demand)
        if key not in self._rooms:
            self._rooms[key] = self.stock.groups(demand)
        return self._rooms[key]

    @cached_property
    def _rooms(self) -> dict[Hashable, int]:
        """Found by `room_now`."""
        return {}

    def lay_out(self, demand: Demand, groups: int, needed: int, topology_key: str) -> tuple[tuple[str, ...], ...]:
        """Nodes of each group as they would be placed: over domains with `needed` in mind, within one where the fit is
        best.

        Into what is free where that is enough, else as if the pool were empty and well. Without known nodes every
        member has one to itself.
        """
        if self.nodes is None:
            return tuple(tuple(f"node-{g}-{m}" for m in range(demand.members)) for g in range(groups))
        if demand.volume_terms:
            return self._lay_out(demand, groups, needed, topology_key)
        key = key_of(demand), groups, needed, topology_key
        if key not in self._layouts:
            self._layouts[key] = self._lay_out(demand, groups, needed, topology_key)
        return self._layouts[key]

    @cached_property
    def _layouts(self) -> dict[Hashable, tuple[tuple[str, ...], ...]]:
        """Found by `lay_out`: candidates that differ in their batch limits stand alike."""
        return {}

    def _lay_out(self, demand: Demand, groups: int, needed: int, topology_key: str) -> tuple[tuple[str, ...], ...]:
        ground = self.stock.ground
        now = self._fit_now(demand) >= groups
        free = self.stock.left if now else ground.total
        domains = ground.domains(demand, topology_key, well=not now)
        rooms = ground.rooms(demand, free, well=not now)
        fits = tuple(min(groups, whole_groups(demand, rooms[places])) for places in domains.values())
        left = free.copy()
        layout: list[tuple[int, ...]] = []
        for places, count in zip(domains.values(), _spread_over(fits, groups, needed), strict=True):
            layout += fill(demand, places, left, count)
        # What no domain holds alone stands over several; where that leaves a group out, domains do not count.
        if len(layout) < groups:
            everywhere = np.sort(np.concatenate([np.zeros(0, np.int64), *domains.values()]))
            layout += fill(demand, everywhere, left, groups - len(layout))
            if len(layout) < groups:
                layout = fill(demand, everywhere, free.copy(), groups)
        return tuple(tuple(ground.nodes[place].name for place in places) for places in layout)

    def domain_of(self, layout: Sequence[Sequence[str]]) -> dict[str, str]:
        """Failure domain of each node; those whose domain is unknown share one, which is the careful guess."""
        nodes, index = self.stock.ground.nodes, self.stock.ground.index
        key = self.pool.spec.failure_domain_key
        return {name: nodes[index[name]].domain(key) if name in index else "" for names in layout for name in names}


def supply_of(
    pool: GPUPool,
    namespace: str,
    nodes: Sequence[NodeView] | None,
    used: Mapping[str, Usage],
    why_not: str | None = None,
    allowance: Allowance = _ANY,
) -> Supply:
    """The pool for deployments of `namespace`; `why_not` is its own state's reason."""
    refusal = why_namespace_not_allowed(pool, namespace) or why_not or ""
    try:
        gpu = gpu_of(pool)
    except InvalidSpec as error:
        gpu, refusal = _UNKNOWN, str(error)
    if pool.metadata.deletion_timestamp:
        refusal = f"pool {pool.metadata.name} is being deleted"
    known = None if nodes is None or pool.spec.provisioning == "Autoscaled" else tuple(nodes)
    if not refusal and known is not None and not known:
        refusal = f"pool {pool.metadata.name} has no nodes"
    return Supply(pool, gpu, known, used, refusal, allowance)


def supply_of_object(pool: GPUPool, namespace: str, why_not: str | None = None) -> Supply:
    """The pool as its own object tells, for a plan without a cluster: nodes and what is free from its status.

    Without `status.nodes` as many as are asked for. Nodes that `status.freePerNode` leaves out are full; without it all
    are free, unless the pool says that no GPU is. Domains are unknown. `why_not`: what else speaks against the pool.
    """
    status, per_node = pool.status, pool.spec.gpus_per_node
    told = [condition for condition in status.conditions if condition.type in (OVERLAP, UNSUPPORTED_ALLOCATION)]
    why_not = next((condition.message for condition in told if condition.status == "True"), why_not)
    if status.nodes is None:
        return supply_of(pool, namespace, None, {}, why_not)
    frees = [int(free) for free, count in status.free_per_node.items() for _ in range(count)]
    full = bool(status.free_per_node) or (status.gpus is not None and status.gpus.free == 0)
    frees += [0 if full else per_node] * (status.nodes - len(frees))
    nodes = [
        NodeView(
            f"{pool.metadata.name}-{index:04}",
            pool.spec.node_selector,
            gpu_capacity=per_node,
            gpu_allocatable=per_node,
            cpu_millicores=_PLENTY,
            memory_bytes=_PLENTY**2,
        )
        for index in range(status.nodes)
    ]
    used = {node.name: Usage(gpus=max(0, per_node - free)) for node, free in zip(nodes, frees, strict=False)}
    return supply_of(pool, namespace, nodes, used, why_not)


def gpu_of(pool: GPUPool) -> GPUType:
    """The pool's GPU type with the pool's link. Raises InvalidSpec (UnknownGPU)."""
    try:
        gpu = hardware.gpu(pool.spec.gpu)
    except ValueError as error:
        raise InvalidSpec("UnknownGPU", f"GPUPool {pool.metadata.name} spec.gpu: {error}") from None
    link = pool.spec.interconnect
    if link is None or link == gpu.link:
        return gpu
    bandwidth, domain = _LINKS[link]
    return replace(gpu, link=link, link_bandwidth=bandwidth, link_domain=domain)


@lru_cache(maxsize=4096)
def _spread_over(rooms: tuple[int, ...], groups: int, needed: int) -> tuple[int, ...]:
    """How many of `groups` each domain gets; `rooms` is how many it can take."""
    names = [str(index).zfill(6) for index in range(len(rooms))]
    goal = SpreadGoal("", groups, needed)
    best, _ = spread.best_completion(goal, {}, dict(zip(names, rooms, strict=True)))
    return tuple(best.get(name, 0) for name in names)


def nodes_paid_for(layout: Sequence[Sequence[str]], pool: GPUPool, demand: Demand, known: bool) -> int:
    """Nodes that a pool billed by node charges for the layout."""
    if known:
        return len({name for nodes in layout for name in nodes})
    per_node = pool.spec.gpus_per_node // demand.gpus_per_member
    return math.ceil(len(layout) * demand.members / per_node)
