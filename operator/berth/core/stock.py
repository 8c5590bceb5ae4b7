"""What is left on the nodes of one pool, as arrays: the planner asks every node for every candidate.

Numbers only. One group after the other is placed by `berth.core.capacity.place`, which also says why there is no place.
Nodes are in order of their names here: the first of several equals is the one that is taken there too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from berth.core.capacity import Demand, Ints, whole_groups
from berth.core.nodes import NodeView, Toleration, has_labels, held_back, matches_terms, untolerated
from berth.core.usage import Usage

Flags = npt.NDArray[np.bool_]

_MOST: Final = 2**60
"""What is left beyond this is as good as this, and less than what is asked for beyond it."""
_NEVER: Final = 2**62
"""Where no place is in an order of places."""


class Ground:
    """The nodes as such: what each has in total, and who may stand there. What was found out once is kept."""

    def __init__(self, nodes: Iterable[NodeView]) -> None:
        self.nodes = tuple(sorted(nodes, key=lambda node: node.name))
        self.index = {node.name: place for place, node in enumerate(self.nodes)}
        self.total: Ints = np.array([_left(node, Usage()) for node in self.nodes], dtype=np.int64).reshape(-1, 3)
        self.sick: Flags = np.array([node.unhealthy_gpus > 0 for node in self.nodes], dtype=bool)
        self._open: dict[Hashable, Flags] = {}
        self._domains: dict[Hashable, dict[str, Ints]] = {}
        self._most: dict[Hashable, int] = {}

    def opened(self, tolerations: tuple[Toleration, ...], well: bool) -> Flags:
        """Which nodes take pods; with `well` as they are when nothing is wrong with them."""
        key = tolerations, well
        if key not in self._open:
            against = untolerated if well else held_back
            self._open[key] = np.array([against(node, tolerations) is None for node in self.nodes], dtype=bool)
        return self._open[key]

    def domains(self, demand: Demand, topology_key: str, well: bool) -> dict[str, Ints]:
        """Places of the nodes that a demand may stand on, by domain in order of their names."""
        key = tuple(sorted(demand.node_selector.items())), demand.tolerations, topology_key, well
        if key not in self._domains:
            found: dict[str, list[int]] = {}
            for place in np.flatnonzero(self.opened(demand.tolerations, well)).tolist():
                if has_labels(self.nodes[place], demand.node_selector):
                    found.setdefault(self.nodes[place].domain(topology_key), []).append(place)
            self._domains[key] = {name: np.array(found[name], dtype=np.int64) for name in sorted(found)}
        return self._domains[key]

    def most(self, demand: Demand) -> int:
        """Groups that fit if nothing is taken and nothing is wrong with any node."""
        if demand.volume_terms:
            return whole_groups(demand, self.rooms(demand, self.total, well=True))
        key = key_of(demand)
        if key not in self._most:
            self._most[key] = whole_groups(demand, self.rooms(demand, self.total, well=True))
        return self._most[key]

    def rooms(self, demand: Demand, left: Ints, *, well: bool) -> Ints:
        """Members that fit on each node of which so much is left."""
        rooms = left[:, 0] // demand.gpus_per_member
        for column, wanted in ((1, demand.cpu_millicores), (2, demand.memory_bytes)):
            if wanted:
                rooms = np.minimum(rooms, left[:, column] // min(wanted, 2 * _MOST))
        rooms = np.where(self.opened(demand.tolerations, well), rooms, 0)
        for terms in demand.volume_terms.values():
            rooms = np.where([matches_terms(node, terms) for node in self.nodes], rooms, 0)
        return rooms


class Stock:
    """What is left on each node, never below zero."""

    def __init__(self, ground: Ground, left: Ints) -> None:
        self.ground, self.left = ground, left

    @classmethod
    def of(cls, nodes: Iterable[NodeView], used: Mapping[str, Usage]) -> Stock:
        ground = Ground(nodes)
        stock = cls(ground, ground.total.copy())
        for name, taken in used.items():
            stock.put(name, taken)
        return stock

    def copy(self) -> Stock:
        """One that can be changed on its own."""
        return Stock(self.ground, self.left.copy())

    def put(self, name: str, taken: Usage) -> None:
        """From now on so much is taken on a node; of a node that is not here nothing is known."""
        place = self.ground.index.get(name)
        if place is not None:
            self.left[place] = _left(self.ground.nodes[place], taken)

    def groups(self, demand: Demand) -> int:
        """Whole groups that fit at once on nodes that take pods."""
        return whole_groups(demand, self.ground.rooms(demand, self.left, well=False))

    def tightest(self, demand: Demand) -> list[NodeView]:
        """The nodes for one group: none with sick GPUs if that is possible, then those that are left with the fewest;
        fewer than its members where there is no room.
        """
        rooms = self.ground.rooms(demand, self.left, well=False)
        order = self.left[:, 0] + np.where(self.ground.sick, 2 * _MOST, 0)
        chosen = _first(np.where(rooms > 0, order, _NEVER), demand.members)
        return [self.ground.nodes[place] for place in chosen]

    def free_per_node(self, tolerations: tuple[Toleration, ...] = ()) -> dict[str, int]:
        """{"8": 3, "4": 1}: three nodes with 8 GPUs free, one with 4; largest first, full and held-back nodes left out.

        The sum alone hides fragmentation: {"3": 4} has 12 GPUs free and no room for tensor parallel 4.
        """
        gpus, counts = np.unique(self.left[self.ground.opened(tolerations, False), 0], return_counts=True)
        pairs = zip(reversed(gpus.tolist()), reversed(counts.tolist()), strict=True)
        return {str(each): count for each, count in pairs if each}


def fill(demand: Demand, places: Ints, left: Ints, groups: int) -> list[tuple[int, ...]]:
    """Places of each group among `places`; as many groups as find room, whose members are taken from `left`.

    A group of one pod goes where the fewest GPUs are left over. Members of larger ones go where the most are, as the
    last groups would not find enough different nodes otherwise.
    """
    wanted = demand.gpus_per_member, demand.cpu_millicores, demand.memory_bytes
    member = np.array([min(amount, 2 * _MOST) for amount in wanted], dtype=np.int64)
    tightest_first = 1 if demand.members == 1 else -1
    here = left[places]
    order = np.where((here >= member).all(axis=1), tightest_first * here[:, 0], _NEVER)
    layout: list[tuple[int, ...]] = []
    for _ in range(groups):
        chosen = _first(order, demand.members)
        if len(chosen) < demand.members:
            break
        layout.append(tuple(int(places[each]) for each in chosen))
        for each in chosen:
            here[each] -= member
            order[each] = tightest_first * here[each, 0] if (here[each] >= member).all() else _NEVER
    left[places] = here
    return layout


def _first(order: Ints, count: int) -> Sequence[int]:
    """Positions of the `count` smallest, among equals the first; without those that are never to be taken."""
    if not len(order):
        return ()
    if count == 1:
        smallest = int(order.argmin())
        return (smallest,) if order[smallest] < _NEVER else ()
    found = np.argsort(order, kind="stable")[:count]
    return [int(each) for each in found if order[each] < _NEVER]


def key_of(demand: Demand) -> Hashable:
    """What the place of a demand depends on, on one pool; volumes apart."""
    return demand.members, demand.member, demand.tolerations, tuple(sorted(demand.node_selector.items()))


def _left(node: NodeView, taken: Usage) -> tuple[int, int, int]:
    left = Usage(node.gpu_allocatable, node.cpu_millicores, node.memory_bytes) - taken
    return min(left.gpus, _MOST), min(left.cpu_millicores, _MOST), min(left.memory_bytes, _MOST)
