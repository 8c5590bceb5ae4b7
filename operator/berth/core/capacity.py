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

from berth.core import spread
from berth.core.nodes import NodeView, Toleration, has_labels, held_back, matches_terms
from berth.core.quantities import show_bytes, show_cores
from berth.core.spread import SpreadGoal
from berth.core.usage import Usage

_NAMED: Final = 3
_NOTHING: Final = Usage()
_TOO_FEW_GPUS: Final = "too few GPUs"


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
    taken = used.get(node.name, _NOTHING) - (reusable or {}).get(node.name, _NOTHING)
    return Usage(node.gpu_allocatable, node.cpu_millicores, node.memory_bytes) - taken


def place(
    demand: Demand,
    nodes: Iterable[NodeView],
    used: Mapping[str, Usage],
    *,
    pool: str = "",
    prefer: Collection[str] = (),
    avoid: Collection[str] = (),
    exclude: Mapping[str, str] | None = None,
    reusable: Mapping[str, Usage] | None = None,
    goal: SpreadGoal | None = None,
) -> Placement | Shortage:
    """The nodes for one group, or why there are none.

    Never nodes that are held back (`berth.core.nodes.held_back`) or in `exclude` (name -> reason, such as a GPU fault).
    Order of wishes: not in `avoid` (where it failed last), the domain that `goal` wants, in `prefer` (weights are
    there), no sick GPUs, fewest free GPUs left over (an exact fit first), name. `reusable` is what dying members of
    the same group still hold and its successor may inherit (`berth.core.usage.held_by`); without silent
    nodes, where nothing is ever given back.
    """
    candidates = sorted((n for n in nodes if has_labels(n, demand.node_selector)), key=lambda n: n.name)
    obstacles = {n.name: _obstacle(demand, n, used, exclude or {}, reusable) for n in candidates}
    fitting = [n for n in candidates if obstacles[n.name] is None]
    if len(fitting) < demand.members:
        return Shortage(_shortage(demand, candidates, obstacles, used, reusable, pool), len(fitting))
    fresh = [n for n in fitting if n.name not in avoid]
    if len(fresh) >= demand.members:
        fitting = fresh

    def rank(node: NodeView) -> tuple[bool, bool, bool, int, str]:
        left = free(node, used, reusable).gpus - demand.gpus_per_member
        return node.name in avoid, node.name not in prefer, node.unhealthy_gpus > 0, left, node.name

    fitting.sort(key=rank)
    if goal is None:
        return Placement(tuple(n.name for n in fitting[: demand.members]))
    by_domain: dict[str, list[NodeView]] = {}
    for node in fitting:
        by_domain.setdefault(node.domain(goal.topology_key), []).append(node)
    allowed = {d: found for d, found in by_domain.items() if not spread.breaks_requirement(goal, d)}
    chosen = _best_domain(demand, allowed, used, reusable, goal, rank)
    if chosen is None and not goal.required:
        # No domain holds the whole group: over as few as possible, the roomiest first.
        roomiest = sorted(by_domain.values(), key=lambda found: (-len(found), rank(found[0])))
        chosen = [node for found in roomiest for node in found][: demand.members]
    if chosen is None:
        return Shortage(_spread_shortage(demand, goal, by_domain), len(fitting))
    return Placement(tuple(n.name for n in chosen))


def _best_domain(
    demand: Demand,
    by_domain: Mapping[str, Sequence[NodeView]],
    used: Mapping[str, Usage],
    reusable: Mapping[str, Usage] | None,
    goal: SpreadGoal,
    rank: Callable[[NodeView], tuple[bool, bool, bool, int, str]],
) -> list[NodeView] | None:
    """The best nodes within the domain that gives the best final layout; among equals the best nodes decide."""
    room = {d: _groups_that_fit(demand, found, used, reusable) for d, found in by_domain.items()}
    scores = spread.score_domains(goal, {d: groups for d, groups in room.items() if groups})
    if not scores:
        return None
    least = min(scores.values())
    equals = [d for d, score in scores.items() if score <= least * (1 + spread.TIE)]
    offers = [list(by_domain[d][: demand.members]) for d in equals]
    return min(offers, key=lambda offer: [rank(node) for node in offer])


def _groups_that_fit(
    demand: Demand, nodes: Sequence[NodeView], used: Mapping[str, Usage], reusable: Mapping[str, Usage] | None
) -> int:
    """How many whole groups these nodes hold, one member of a group per node.

    With c_i members' room on node i, g groups fit exactly if sum(min(c_i, g)) >= g * members.
    """
    return _whole_groups(demand, [_members_that_fit(demand, free(node, used, reusable)) for node in nodes])


def _whole_groups(demand: Demand, rooms: Sequence[int]) -> int:
    """How many whole groups fit on nodes with room for so many members each."""
    groups = sum(rooms) // demand.members
    while groups and sum(min(room, groups) for room in rooms) < groups * demand.members:
        groups -= 1
    return groups


def _members_that_fit(demand: Demand, left: Usage) -> int:
    pairs = (
        (left.gpus, demand.gpus_per_member),
        (left.cpu_millicores, demand.cpu_millicores),
        (left.memory_bytes, demand.memory_bytes),
    )
    return min(have // want for have, want in pairs if want)


def groups_that_fit(demand: Demand, nodes: Iterable[NodeView], used: Mapping[str, Usage]) -> int:
    """How many whole groups fit at once on nodes that take pods; with `used` empty: how many could ever fit."""
    rooms = [room for node in nodes if (room := _room(demand, node, used.get(node.name, _NOTHING)))]
    return _whole_groups(demand, rooms)


def _room(demand: Demand, node: NodeView, taken: Usage) -> int:
    """Members that fit on a node; numbers only, since the planner asks for every node of every candidate."""
    room = (node.gpu_allocatable - taken.gpus) // demand.gpus_per_member
    if room > 0 and demand.cpu_millicores:
        room = min(room, (node.cpu_millicores - taken.cpu_millicores) // demand.cpu_millicores)
    if room > 0 and demand.memory_bytes:
        room = min(room, (node.memory_bytes - taken.memory_bytes) // demand.memory_bytes)
    if room <= 0 or held_back(node, demand.tolerations) is not None:
        return 0
    return room if all(matches_terms(node, terms) for terms in demand.volume_terms.values()) else 0


def _obstacle(
    demand: Demand,
    node: NodeView,
    used: Mapping[str, Usage],
    exclude: Mapping[str, str],
    reusable: Mapping[str, Usage] | None,
) -> str | None:
    """Why this node does not fit one member; GPUs last, since a lack of them is the common and least telling answer."""
    if node.name in exclude:
        return exclude[node.name]
    if (reason := held_back(node, demand.tolerations)) is not None:
        return reason
    for claim, terms in demand.volume_terms.items():
        if not matches_terms(node, terms):
            return f"cannot reach volume {claim}"
    left = free(node, used, reusable)
    if left.gpus < demand.gpus_per_member:
        return _TOO_FEW_GPUS
    if left.cpu_millicores < demand.cpu_millicores:
        return f"has {show_cores(left.cpu_millicores)} free, {show_cores(demand.cpu_millicores)} needed"
    if left.memory_bytes < demand.memory_bytes:
        return f"has {show_bytes(left.memory_bytes)} of memory free, {show_bytes(demand.memory_bytes)} needed"
    return None


def _shortage(
    demand: Demand,
    candidates: Sequence[NodeView],
    obstacles: Mapping[str, str | None],
    used: Mapping[str, Usage],
    reusable: Mapping[str, Usage] | None,
    pool: str,
) -> str:
    """`needs 2 nodes x 8 GPUs, best free 1 x 8; h100-3 is cordoned`."""
    if not candidates:
        return f"pool {pool} has no nodes" if pool else "no node matches"
    fitting = sum(obstacle is None for obstacle in obstacles.values())
    if fitting:
        best = f"best free {fitting} x {demand.gpus_per_member}"
    else:
        frees = Counter(free(n, used, reusable).gpus for n in candidates if obstacles[n.name] == _TOO_FEW_GPUS)
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


def free_per_node(
    nodes: Iterable[NodeView], used: Mapping[str, Usage], tolerations: Sequence[Toleration] = ()
) -> dict[str, int]:
    """{"8": 3, "4": 1}: three nodes with 8 GPUs free, one with 4; largest first, full and held-back nodes left out.

    The sum alone hides fragmentation: {"3": 4} has 12 GPUs free and no room for tensor parallel 4.
    """
    counts = Counter(free(n, used).gpus for n in nodes if held_back(n, tolerations) is None)
    return {str(gpus): counts[gpus] for gpus in sorted(counts, reverse=True) if gpus}


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


def serve_in_order(
    requests: Iterable[Request],
    nodes: Sequence[NodeView],
    used: Mapping[str, Usage],
    *,
    pool: str = "",
    exclude: Mapping[str, str] | None = None,
) -> dict[str, Placement | Shortage]:
    """Answer the requests of one pool in the order given; what one gets is taken for the next.

    The first request that has to wait though the pool is large enough keeps the nodes nearest to fitting it, but for
    what it `lends`: without that a stream of small groups would starve a large one for ever. Only the first one: who
    waits behind it is served, or is the first, when that one has got its nodes.
    """
    taken = dict(used)
    held: dict[str, str] = dict(exclude or {})
    waiting = False
    answers: dict[str, Placement | Shortage] = {}
    for request in requests:
        answer = place(
            request.demand,
            nodes,
            taken,
            pool=pool,
            prefer=request.prefer,
            avoid=request.avoid,
            exclude=held,
            reusable=request.reusable,
            goal=request.goal,
        )
        answers[request.key] = answer
        if isinstance(answer, Placement):
            for name in answer.nodes:
                # What it inherits is counted with the dying members until they are gone.
                beyond = request.demand.member - request.reusable.get(name, _NOTHING)
                taken[name] = taken.get(name, _NOTHING) + beyond
        elif not waiting:
            keeps = request.lends
            if keeps is None:
                keeps = dict.fromkeys(nearest_to_fitting(request, nodes, taken, held), 0)
            waiting = bool(keeps)
            for node in nodes:
                if keeps.get(node.name, 0) > 0:
                    kept = free(node, taken).gpus - keeps[node.name]
                    taken[node.name] = taken.get(node.name, _NOTHING) + Usage(gpus=max(0, kept))
                elif node.name in keeps:
                    held[node.name] = f"is kept for {request.key}, which waits longer"
    return answers


def would_fit(request: Request, node: NodeView, exclude: Mapping[str, str]) -> bool:
    """Whether the node would fit a member of the request if it were empty."""
    demand, goal = request.demand, request.goal
    forbidden = goal is not None and spread.breaks_requirement(goal, node.domain(goal.topology_key))
    return not forbidden and has_labels(node, demand.node_selector) and not _obstacle(demand, node, {}, exclude, None)


def nearest_to_fitting(
    request: Request, nodes: Sequence[NodeView], used: Mapping[str, Usage], exclude: Mapping[str, str]
) -> list[str]:
    """The nodes that would fit the request if they were empty and lack least now; none if there are too few of them."""
    empty = [node for node in nodes if would_fit(request, node, exclude)]
    if len(empty) < request.demand.members:
        return []
    empty.sort(key=lambda n: (-free(n, used, request.reusable).gpus, n.name))
    return [n.name for n in empty[: request.demand.members]]
