"""Where the pods of a replica group go: fit, best fit, spread; and why they cannot go anywhere, in words.

Pure and serial: the arbiter calls these functions for one demand after the other with everything that is taken by then
(`berth.core.usage`). A member takes one node to itself within its group, so a group with m members needs m nodes that
each fit one. Ties end with the node's name: the same inputs give the same nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from berth.core import spread
from berth.core.nodes import NodeView, Toleration, has_labels, held_back, matches_terms
from berth.core.quantities import show_bytes, show_cores
from berth.core.spread import SpreadGoal
from berth.core.usage import Usage

Ints = npt.NDArray[np.int64]

_NAMED: Final = 3
_NOTHING: Final = Usage()
_TOO_FEW_GPUS: Final = "too few GPUs"

WhyNot = Callable[[NodeView], str]
"""Why nothing may be placed on a node now, whatever is free there; empty if nothing speaks against it."""
_Rank = tuple[bool, bool, bool, int, str]


def _no_reason(_node: NodeView) -> str:
    return ""


@dataclass(frozen=True)
class Demand:
    """What one replica group asks of one pool: `members` pods, each on its own node, each with these amounts."""

    members: int
    gpus_per_member: int
    resource_name: str = "nvidia.com/gpu"
    cpu_millicores: int = 0
    memory_bytes: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    volume_terms: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Volume claim -> nodeSelectorTerms of its volume's node affinity; volumes that go anywhere are left out."""

    def __post_init__(self) -> None:
        if self.members < 1 or self.gpus_per_member < 1:
            raise ValueError(f"a group needs at least 1 member with 1 GPU, got {self.members} x {self.gpus_per_member}")

    @property
    def member(self) -> Usage:
        """What one member takes."""
        return Usage(self.gpus_per_member, self.cpu_millicores, self.memory_bytes)

    @property
    def gpus(self) -> int:
        """GPUs of the whole group."""
        return self.members * self.gpus_per_member

    def __str__(self) -> str:
        return f"{_count(self.members, 'node')} x {_count(self.gpus_per_member, 'GPU')}"


@dataclass(frozen=True)
class Placement:
    """The node of each member; nodes[0] is the leader's."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Shortage:
    """No place, and why: for conditions, events and the decision record."""

    reason: str
    fitting: int
    """Nodes that fit a member now."""


def free(node: NodeView, used: Mapping[str, Usage], reusable: Mapping[str, Usage] | None = None) -> Usage:
    """What is left of a node's allocatable amounts; `reusable` counts as free already."""
    everything = Usage(node.gpu_allocatable, node.cpu_millicores, node.memory_bytes)
    taken = used.get(node.name)
    if taken is None:
        return everything
    return everything - (taken - reusable[node.name] if reusable and node.name in reusable else taken)


def place(
    demand: Demand,
    nodes: Iterable[NodeView],
    used: Mapping[str, Usage],
    *,
    pool: str = "",
    prefer: Collection[str] = (),
    avoid: Collection[str] = (),
    why_not: WhyNot = _no_reason,
    reusable: Mapping[str, Usage] | None = None,
    goal: SpreadGoal | None = None,
) -> Placement | Shortage:
    """The nodes for one group, or why there are none.

    Never nodes that are held back (`berth.core.nodes.held_back`) or against which `why_not` speaks (a GPU fault).
    Order of wishes: not in `avoid` (where it failed last), the domain that `goal` wants, in `prefer` (weights are
    there), no sick GPUs, fewest free GPUs left over (an exact fit first), name. `reusable` is what dying members of
    the same group still hold and its successor may inherit (`berth.core.usage.held_by`); without silent
    nodes, where nothing is ever given back.
    """
    nodes = tuple(nodes)
    left = {n.name: free(n, used, reusable) for n in nodes if _has_gpus(demand, n, used, reusable)}
    fitting = [
        n
        for n in nodes
        if n.name in left
        and has_labels(n, demand.node_selector)
        and _obstacle(demand, n, left[n.name], why_not) is None
    ]
    if len(fitting) < demand.members:
        return Shortage(_shortage(demand, nodes, used, reusable, why_not, pool), len(fitting))
    fresh = [n for n in fitting if n.name not in avoid]
    if len(fresh) >= demand.members:
        fitting = fresh

    def rank(node: NodeView) -> _Rank:
        return node.name in avoid, node.name not in prefer, node.unhealthy_gpus > 0, left[node.name].gpus, node.name

    fitting.sort(key=rank)
    if goal is None:
        return Placement(tuple(n.name for n in fitting[: demand.members]))
    by_domain: dict[str, list[NodeView]] = {}
    for node in fitting:
        by_domain.setdefault(node.domain(goal.topology_key), []).append(node)
    allowed = {d: found for d, found in by_domain.items() if not spread.breaks_requirement(goal, d)}
    chosen = _best_domain(demand, allowed, left, goal, rank)
    if chosen is None and not goal.required:
        # No domain holds the whole group: over as few as possible, the roomiest first.
        roomiest = sorted(by_domain.values(), key=lambda found: (-len(found), rank(found[0])))
        chosen = [node for found in roomiest for node in found][: demand.members]
    if chosen is None:
        return Shortage(_spread_shortage(demand, goal, by_domain), len(fitting))
    return Placement(tuple(n.name for n in chosen))


def _has_gpus(demand: Demand, node: NodeView, used: Mapping[str, Usage], reusable: Mapping[str, Usage] | None) -> bool:
    """Whether there are GPUs enough: numbers only, since most nodes of a large pool are full, and each claim asks."""
    taken = used.get(node.name, _NOTHING).gpus
    if reusable and node.name in reusable:
        taken = max(0, taken - reusable[node.name].gpus)
    return node.gpu_allocatable - taken >= demand.gpus_per_member


def _best_domain(
    demand: Demand,
    by_domain: Mapping[str, Sequence[NodeView]],
    left: Mapping[str, Usage],
    goal: SpreadGoal,
    rank: Callable[[NodeView], _Rank],
) -> list[NodeView] | None:
    """The best nodes within the domain that gives the best final layout; among equals the best nodes decide."""
    room = {}
    for domain, found in by_domain.items():
        lefts = [left[node.name] for node in found]
        fits = [_members_that_fit(demand, each.gpus, each.cpu_millicores, each.memory_bytes) for each in lefts]
        room[domain] = whole_groups(demand, np.array(fits, dtype=np.int64))
    scores = spread.score_domains(goal, {d: groups for d, groups in room.items() if groups})
    if not scores:
        return None
    least = min(scores.values())
    equals = [d for d, score in scores.items() if score <= least * (1 + spread.TIE)]
    offers = [list(by_domain[d][: demand.members]) for d in equals]
    return min(offers, key=lambda offer: [rank(node) for node in offer])


def whole_groups(demand: Demand, rooms: Ints) -> int:
    """How many whole groups fit on nodes with room for so many members each, one member of a group per node.

    With c_i members' room on node i, g groups fit exactly if sum(min(c_i, g)) >= g * members.
    """
    groups = int(rooms.sum()) // demand.members
    while groups and int(np.minimum(rooms, groups).sum()) < groups * demand.members:
        groups -= 1
    return groups


def _members_that_fit(demand: Demand, gpus: int, cpu_millicores: int, memory_bytes: int) -> int:
    room = gpus // demand.gpus_per_member
    if room > 0 and demand.cpu_millicores:
        room = min(room, cpu_millicores // demand.cpu_millicores)
    if room > 0 and demand.memory_bytes:
        room = min(room, memory_bytes // demand.memory_bytes)
    return room


def _obstacle(demand: Demand, node: NodeView, left: Usage, why_not: WhyNot) -> str | None:
    """Why this node does not fit one member; GPUs last, since a lack of them is the common and least telling answer."""
    if reason := why_not(node):
        return reason
    if (held := held_back(node, demand.tolerations)) is not None:
        return held
    for claim, terms in demand.volume_terms.items():
        if not matches_terms(node, terms):
            return f"cannot reach volume {claim}"
    if left.gpus < demand.gpus_per_member:
        return _TOO_FEW_GPUS
    if left.cpu_millicores < demand.cpu_millicores:
        return f"has {show_cores(left.cpu_millicores)} free, {show_cores(demand.cpu_millicores)} needed"
    if left.memory_bytes < demand.memory_bytes:
        return f"has {show_bytes(left.memory_bytes)} of memory free, {show_bytes(demand.memory_bytes)} needed"
    return None


def _shortage(
    demand: Demand,
    nodes: Sequence[NodeView],
    used: Mapping[str, Usage],
    reusable: Mapping[str, Usage] | None,
    why_not: WhyNot,
    pool: str,
) -> str:
    """`needs 2 nodes x 8 GPUs, best free 1 x 8; h100-3 is cordoned`."""
    candidates = sorted((n for n in nodes if has_labels(n, demand.node_selector)), key=lambda n: n.name)
    if not candidates:
        return f"pool {pool} has no nodes" if pool else "no node matches"
    left = {n.name: free(n, used, reusable) for n in candidates}
    obstacles = {n.name: _obstacle(demand, n, left[n.name], why_not) for n in candidates}
    fitting = sum(obstacle is None for obstacle in obstacles.values())
    if fitting:
        best = f"best free {fitting} x {demand.gpus_per_member}"
    else:
        frees = Counter(left[name].gpus for name, obstacle in obstacles.items() if obstacle == _TOO_FEW_GPUS)
        largest = max(frees, default=0)
        best = f"best free {frees[largest]} x {largest}" if largest else "none free"
    others = [f"{name} {why}" for name, why in obstacles.items() if why not in (None, _TOO_FEW_GPUS)]
    more = [f"and {len(others) - _NAMED} more"] if len(others) > _NAMED else []
    text = f"needs {demand}, {best}"
    if len(candidates) < demand.members:
        text = f"needs {demand}, {f'pool {pool}' if pool else 'the pool'} has {_count(len(candidates), 'node')}"
    return "; ".join([text, ", ".join(others[:_NAMED] + more)]) if others else text


def _spread_shortage(demand: Demand, goal: SpreadGoal, by_domain: Mapping[str, Sequence[NodeView]]) -> str:
    full = sorted(d for d in by_domain if spread.breaks_requirement(goal, d))
    if not full:
        return f"needs {demand} in one {goal.topology_key}, no domain has that many free"
    names = ", ".join(d or "(unlabelled)" for d in full)
    return (
        f"spread over {goal.topology_key} is required and one more group in {names} would leave fewer than "
        f"{goal.needed} of {goal.groups} groups after its loss: add nodes in another domain, add groups, "
        "or set whenUnsatisfiable: Prefer"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# --- several demands --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Request:
    """One waiting demand in the arbiter's queue."""

    key: str
    demand: Demand
    prefer: frozenset[str] = frozenset()
    avoid: frozenset[str] = frozenset()
    reusable: Mapping[str, Usage] = field(default_factory=dict)
    goal: SpreadGoal | None = None
    lends: Mapping[str, int] | None = None
    """By node it keeps while it waits: GPUs younger requests may take. None: it keeps the nodes nearest to fitting."""

    @property
    def demands_spread(self) -> bool:
        """Where its deployment's groups stand decides which nodes it may have; else its demand alone does."""
        return self.goal is not None and self.goal.required


def serve_in_order(
    requests: Sequence[Request],
    nodes: Sequence[NodeView],
    used: Mapping[str, Usage],
    *,
    pool: str = "",
    why_not: WhyNot = _no_reason,
) -> dict[str, Placement | Shortage]:
    """Answer the requests of one pool in the order given; what one gets is taken for the next.

    The first request that has to wait though the pool is large enough keeps the nodes nearest to fitting it, but for
    what it `lends`: without that a stream of small groups would starve a large one for ever. Only the first one: who
    waits behind it is served, or is the first, when that one has got its nodes.
    """
    taken = dict(used)
    kept: dict[str, str] = {}
    waiting = False
    answers: dict[str, Placement | Shortage] = {}
    refused: list[tuple[Demand, Shortage]] = []
    hopeless: list[Demand] = []
    """That no nodes would fit if they were empty: whoever asks for the same keeps none either."""
    by_name = {node.name: node for node in nodes}

    def closed(node: NodeView) -> str:
        return kept.get(node.name, "") or why_not(node)

    for request in requests:
        # Room only shrinks from one to the next: what did not fit does not fit again. The last one is told exactly why.
        known = None if request is requests[-1] else _same(request.demand, refused)
        if known is not None and request.reusable:
            # But for where its predecessor's members are dying.
            inherited = [by_name[name] for name in request.reusable if name in by_name]
            more = sum(_fits(request, node, taken, closed) for node in inherited)
            known = known if known.fitting + more < request.demand.members else None
        answer = known or place(
            request.demand,
            nodes,
            taken,
            pool=pool,
            prefer=request.prefer,
            avoid=request.avoid,
            why_not=closed,
            reusable=request.reusable,
            goal=request.goal,
        )
        answers[request.key] = answer
        if isinstance(answer, Placement):
            for name in answer.nodes:
                # What it inherits is counted with the dying members until they are gone.
                beyond = request.demand.member - request.reusable.get(name, _NOTHING)
                taken[name] = taken.get(name, _NOTHING) + beyond
            continue
        if known is None and answer.fitting < request.demand.members:
            refused.append((request.demand, answer))
        if not waiting and (request.lends is not None or request.demand not in hopeless):
            keeps = request.lends
            if keeps is None:
                keeps = dict.fromkeys(nearest_to_fitting(request, nodes, taken, closed), 0)
            waiting = bool(keeps)
            if not waiting and not request.demands_spread:
                hopeless.append(request.demand)
            for node in nodes if waiting else ():
                if keeps.get(node.name, 0) > 0:
                    beyond_loan = free(node, taken).gpus - keeps[node.name]
                    taken[node.name] = taken.get(node.name, _NOTHING) + Usage(gpus=max(0, beyond_loan))
                elif node.name in keeps:
                    kept[node.name] = f"is kept for {request.key}, which waits longer"
    return answers


def _same(demand: Demand, refused: Iterable[tuple[Demand, Shortage]]) -> Shortage | None:
    return next((answer for other, answer in refused if other == demand), None)


def _fits(request: Request, node: NodeView, used: Mapping[str, Usage], why_not: WhyNot) -> bool:
    return _obstacle(request.demand, node, free(node, used, request.reusable), why_not) is None


def would_fit(request: Request, node: NodeView, why_not: WhyNot) -> bool:
    """Whether the node would fit a member of the request if it were empty."""
    demand, goal = request.demand, request.goal
    forbidden = goal is not None and spread.breaks_requirement(goal, node.domain(goal.topology_key))
    fits = has_labels(node, demand.node_selector) and not _obstacle(demand, node, free(node, {}), why_not)
    return fits and not forbidden


def nearest_to_fitting(
    request: Request, nodes: Sequence[NodeView], used: Mapping[str, Usage], why_not: WhyNot
) -> list[str]:
    """The nodes that would fit the request if they were empty and lack least now; none if there are too few of them."""
    empty = [node for node in nodes if would_fit(request, node, why_not)]
    if len(empty) < request.demand.members:
        return []
    empty.sort(key=lambda n: (-free(n, used, request.reusable).gpus, n.name))
    return [n.name for n in empty[: request.demand.members]]
