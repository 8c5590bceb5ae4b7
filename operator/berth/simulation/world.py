"""Pools over time: what GPUs cost, how fast they really are, what fails, and who holds which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, Literal

from berth.api.gpupool import GPUPool
from berth.core import capacity
from berth.core.capacity import Demand, Placement
from berth.core.nodes import NodeView
from berth.core.placement.supply import Supply, supply_of, supply_of_object
from berth.core.stock import Ground, Stock
from berth.core.usage import Usage

Kind = Literal["slow", "price", "group", "node", "pool", "metrics"]
_NOTHING: Final = Usage()


@dataclass(frozen=True)
class Event:
    """Something that happens; minutes since the beginning."""

    kind: Kind
    at: int
    pool: str = ""
    value: float = 1.0
    """slow: factor on step times. price: per GPU and hour."""
    lasts: int | None = None
    """None: for good; a group that is lost comes back on its own."""
    deployment: str = ""
    """group, metrics: whose; empty: everybody's."""
    among: int = 0
    """node: the one that fails is any of so many, in use or not; 0: one in use."""

    def active(self, minute: int) -> bool:
        return self.at <= minute and (self.lasts is None or minute < self.at + self.lasts)


@dataclass
class World:
    """The pools of one run."""

    pools: dict[str, GPUPool]
    hidden: Mapping[str, float]
    """By pool: factor on the step times of its published table, which no decision knows."""
    events: tuple[Event, ...] = ()
    used: dict[str, dict[str, Usage]] = field(default_factory=dict)
    """By pool and node."""
    minute: int = 0
    changes: int = 0
    """Grows whenever there may be room, or a price, that there was not."""
    moving: Counter[str] = field(default_factory=Counter)
    """Moves under way by pool they touch."""
    _nodes: dict[str, tuple[NodeView, ...] | None] = field(default_factory=dict)
    _changes: frozenset[int] = frozenset()
    _stocks: dict[str, Stock] = field(default_factory=dict)
    """What is left in each pool while it is up."""
    _closed: dict[str, tuple[tuple[NodeView, ...], Ground]] = field(default_factory=dict)
    """Of pools that were down: their nodes then."""
    _told: dict[str, GPUPool] = field(default_factory=dict)
    """With the price that it had last."""

    def __post_init__(self) -> None:
        for name, pool in self.pools.items():
            found = supply_of_object(pool, "default")
            self._nodes[name] = found.nodes
            taken = {node: use for node, use in found.used.items() if use.gpus}
            self.used.setdefault(name, taken)
            self._stocks[name] = Stock.of(found.nodes or (), self.used[name])
        edges = {event.at for event in self.events}
        self._changes = frozenset(edges | {e.at + e.lasts for e in self.events if e.lasts is not None})

    @property
    def edges(self) -> frozenset[int]:
        """Minutes at which something begins or ends."""
        return self._changes

    # --- what is so now -----------------------------------------------------------------------------------------------
    def advance(self, minute: int) -> bool:
        """To `minute`; whether something changed on the way."""
        before, self.minute = self.minute, minute
        changed = any(before < at <= minute for at in self._changes) or minute == 0
        self.changes += changed
        return changed

    def slowness(self, pool: str) -> float:
        factor = self.hidden.get(pool, 1.0)
        for event in self._now("slow", pool):
            factor *= event.value
        return factor

    def price(self, pool: str) -> float | None:
        told = [event.value for event in self._now("price", pool)]
        given = self.pools[pool].spec.price_per_gpu_hour
        return told[-1] if told else None if given is None else float(given)

    def down(self, pool: str) -> bool:
        return any(True for _ in self._now("pool", pool))

    def silent(self, deployment: str) -> bool:
        """Whether its metrics cannot be read."""
        return any(event.deployment in ("", deployment) for event in self._now("metrics"))

    def _now(self, kind: Kind, pool: str | None = None) -> Iterable[Event]:
        return (
            event
            for event in self.events
            if event.kind == kind and (pool is None or event.pool == pool) and event.active(self.minute)
        )

    # --- who holds what -----------------------------------------------------------------------------------------------
    def supply(self, pool: str, namespace: str, without: Iterable[tuple[str, int]] = ()) -> Supply:
        """As the operator sees it; `without` are (node, GPUs) that the asking deployment holds itself."""
        used, stock = dict(self.used[pool]), self._stock(pool).copy()
        for node, gpus in without:
            used[node] = used.get(node, _NOTHING) - Usage(gpus)
            stock.put(node, used[node])
        return replace(supply_of(self.told(pool), namespace, self._open_nodes(pool), used), kept=stock)

    def told(self, pool: str) -> GPUPool:
        """The pool with its price of now."""
        price, told = self.price(pool), self._told.get(pool)
        if price is None:
            return self.pools[pool]
        if told is None or told.spec.price_per_gpu_hour != f"{price:g}":
            spec = self.pools[pool].spec.model_copy(update={"price_per_gpu_hour": f"{price:g}"})
            told = self._told[pool] = self.pools[pool].model_copy(update={"spec": spec})
        return told

    def _open_nodes(self, pool: str) -> tuple[NodeView, ...] | None:
        nodes = self._nodes[pool]
        return nodes if nodes is None or not self.down(pool) else self._closed_nodes(pool, nodes)[0]

    def _stock(self, pool: str) -> Stock:
        stock, nodes = self._stocks[pool], self._nodes[pool]
        return stock if nodes is None or not self.down(pool) else Stock(self._closed_nodes(pool, nodes)[1], stock.left)

    def _closed_nodes(self, pool: str, nodes: tuple[NodeView, ...]) -> tuple[tuple[NodeView, ...], Ground]:
        if pool not in self._closed:
            closed = tuple(replace(node, ready=False) for node in nodes)
            self._closed[pool] = closed, Ground(closed)
        return self._closed[pool]

    def take(self, pool: str, demand: Demand) -> tuple[str, ...] | None:
        """Nodes for one group, taken; None where there is no room. Pools without known nodes always have some."""
        if self._nodes[pool] is None:
            return ()
        # The arbiter takes these nodes from among all; of a thousand each is asked here as a number only.
        found = capacity.place(demand, self._stock(pool).tightest(demand), self.used[pool])
        if not isinstance(found, Placement):
            return None
        for node in found.nodes:
            self._hold(pool, node, self.used[pool].get(node, _NOTHING) + Usage(demand.gpus_per_member))
        return found.nodes

    def give_back(self, pool: str, nodes: Iterable[str], gpus_per_member: int) -> None:
        self.changes += 1
        for node in nodes:
            self._hold(pool, node, self.used[pool][node] - Usage(gpus_per_member))

    def _hold(self, pool: str, node: str, taken: Usage) -> None:
        self.used[pool][node] = taken
        self._stocks[pool].put(node, taken)


def hidden_factors(pools: Iterable[str], error: float, seed: int) -> dict[str, float]:
    """One draw from 1 +- error per pool."""
    return {pool: Random(f"{seed} {pool}").uniform(1 - error, 1 + error) for pool in pools}  # noqa: S311  (a simulation)


def chance_failures(pool: GPUPool, nodes: int, minutes: int, seed: int) -> list[int]:
    """Minutes at which a node of the pool fails, by its mean time between failures."""
    random = Random(f"{seed} failures {pool.metadata.name}")  # noqa: S311  (a simulation)
    mean = pool.spec.node_mtbf_days * 1440 / max(nodes, 1)
    found, at = [], 0.0
    while (at := at + random.expovariate(1 / mean)) < minutes:
        found.append(int(at))
    return found
