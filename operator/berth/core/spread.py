"""Over which failure domains the groups of a deployment are spread, with the number of needed groups in mind.

An even spread is not always the safe one: with 4 groups of which 3 are needed, 2 + 2 over two zones fails with either
zone, all 4 in one zone only with that one. So every way to go on is scored by the availability of the final layout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from berth.core.availability import all_down_together, convolve, fewer_than, unavailability, up_distribution
from berth.core.nodes import NodeView

_DAY: Final = 86400.0
TIE: Final = 0.01
"""Layouts whose unavailability differs by less than this share are equally good; fit decides then."""
_MOST_GIVEN_UP: Final = 3
_FEW_LAYOUTS: Final = 500


@dataclass(frozen=True)
class SpreadGoal:
    """What the layout of one deployment is wanted to become when the next group is placed.

    `standing`: groups per domain that stay, without the one to be placed. `required`: rather wait than stand where
    the loss of one domain leaves fewer than `needed`. The unavailabilities only rank layouts; the defaults are a group
    that is lost every 47 days for 560 s and a zone with 99.99 %.
    """

    topology_key: str
    groups: int
    needed: int
    standing: Mapping[str, int] = field(default_factory=dict)
    required: bool = False
    group_unavailability: float = unavailability(47 * _DAY, 560)
    domain_unavailability: float = 1e-4


def standing_in(groups: Iterable[Sequence[NodeView]], topology_key: str) -> dict[str, int]:
    """Groups per domain, from the nodes of each; one over several domains counts in each: it dies with any."""
    counts: dict[str, int] = {}
    for nodes in groups:
        for domain in {node.domain(topology_key) for node in nodes}:
            counts[domain] = counts.get(domain, 0) + 1
    return counts


def layout_unavailability(
    counts: Iterable[int], needed: int, group_unavailability: float, domain_unavailability: float
) -> float:
    """Probability that fewer than `needed` groups are up, with `counts` equal groups in domains that fail as one."""
    return _layout_unavailability(
        tuple(sorted(c for c in counts if c)), needed, group_unavailability, domain_unavailability
    )


@lru_cache(maxsize=4096)
def _layout_unavailability(counts: tuple[int, ...], needed: int, group: float, domain: float) -> float:
    up = [1.0]
    for count in counts:
        up = convolve(up, all_down_together(up_distribution([group] * count), domain))
    return fewer_than(needed, up)


def score_domains(goal: SpreadGoal, room: Mapping[str, int]) -> dict[str, float]:
    """For each domain with room: the unavailability of the best final layout if the next group is placed there.

    `room` is how many more groups each domain can take, the next one included. When not all groups find room, the best
    layout of those that do counts.
    """
    scores: dict[str, float] = {}
    known: dict[tuple[int, int], float] = {}
    for domain in sorted(d for d, free in room.items() if free > 0):
        # Domains with equal counts and room are interchangeable: score one of each kind.
        kind = (goal.standing.get(domain, 0), room[domain])
        if kind not in known:
            counts = {**goal.standing, domain: kind[0] + 1}
            free = {**room, domain: room[domain] - 1}
            known[kind] = best_completion(goal, counts, free)[1]
        scores[domain] = known[kind]
    return scores


def best_completion(
    goal: SpreadGoal, counts: Mapping[str, int], room: Mapping[str, int]
) -> tuple[dict[str, int], float]:
    """The best final layout that can be reached from `counts`, and its unavailability.

    All layouts are compared when there are few; otherwise those that fill the 0, 1, 2 or 3 roomiest domains (given up:
    their loss cannot be survived) and level the rest over the 1, 2, ... fullest others. That holds both extremes,
    everything together and as even as possible.
    """
    missing = min(max(0, goal.groups - sum(counts.values())), sum(room.values()))
    needed = min(goal.needed, sum(counts.values()) + missing)

    def down(layout: Mapping[str, int]) -> float:
        return layout_unavailability(layout.values(), needed, goal.group_unavailability, goal.domain_unavailability)

    few = math.comb(missing + len(room), missing) <= _FEW_LAYOUTS
    layouts = _all_layouts(counts, room, missing) if few else _promising_layouts(counts, room, missing)
    best = min(layouts, key=down)
    return best, down(best)


def _all_layouts(counts: Mapping[str, int], room: Mapping[str, int], missing: int) -> Iterator[dict[str, int]]:
    """Every way to add `missing` groups."""
    for added in _compositions(missing, [room[d] for d in sorted(room)]):
        yield {**counts, **{d: counts.get(d, 0) + more for d, more in zip(sorted(room), added, strict=True)}}


def _compositions(total: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All tuples with this total whose entries do not exceed `most`; those with large first entries come first."""
    if not most:
        if total == 0:
            yield ()
        return
    for first in range(min(total, most[0]), max(0, total - sum(most[1:])) - 1, -1):
        for rest in _compositions(total - first, most[1:]):
            yield (first, *rest)


def _promising_layouts(counts: Mapping[str, int], room: Mapping[str, int], missing: int) -> Iterator[dict[str, int]]:
    """Layouts worth a look when there are too many."""
    final = {d: counts.get(d, 0) + room.get(d, 0) for d in {*counts, *room}}
    fullest = sorted(final, key=lambda d: (-counts.get(d, 0), -final[d], d))
    roomiest = sorted(final, key=lambda d: (-final[d], -counts.get(d, 0), d))
    # No layout needs more new domains than there are missing groups.
    useful = {*roomiest[: missing + _MOST_GIVEN_UP], *(d for d in final if counts.get(d))}
    fullest = [d for d in fullest if d in useful]
    for given_up in range(_MOST_GIVEN_UP + 1):
        first = roomiest[:given_up]
        others = [d for d in fullest if d not in first]
        for width in range(1, min(len(others), sum(counts.values()) + missing) + 1):
            tiers = [*([d] for d in first), others[:width], *([d] for d in others[width:])]
            yield _filled(counts, room, tiers, missing)


def _filled(
    counts: Mapping[str, int], room: Mapping[str, int], tiers: Iterable[Sequence[str]], missing: int
) -> dict[str, int]:
    """Add `missing` groups tier after tier, within a tier each to the domain that holds fewest."""
    layout = dict(counts)
    for tier in tiers:
        free = {d: room.get(d, 0) for d in tier}
        while missing and any(free.values()):
            domain = min((d for d in tier if free[d]), key=lambda d: layout.get(d, 0))
            layout[domain] = layout.get(domain, 0) + 1
            free[domain] -= 1
            missing -= 1
    return layout


def breaks_requirement(goal: SpreadGoal, domain: str) -> bool:
    """True when a required spread forbids one more group in the domain: its loss would leave fewer than needed."""
    return goal.required and goal.standing.get(domain, 0) + 1 > goal.groups - goal.needed


# --- what a loss would leave ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Losses:
    """How many groups stand in each domain, and how many are left after the worst loss of one node or domain."""

    domains: Mapping[str, int]
    """Empty where no node carries the label."""
    worst_node: str
    after_node: int
    worst_domain: str = ""
    after_domain: int | None = None
    """None where domains are not known."""


def losses(groups: Sequence[Collection[str]], domain_of: Mapping[str, str]) -> Losses | None:
    """From the names of each group's nodes and the domain of each node that is labelled; None without groups.

    A group dies with any of its nodes. Nodes without the label share one domain: the careful guess.
    """
    nodes = {name for members in groups for name in members}
    if not nodes:
        return None

    by_node = Counter(name for members in groups for name in set(members))
    worst_node = max(sorted(nodes), key=by_node.__getitem__)
    found = Losses({}, worst_node, len(groups) - by_node[worst_node])
    if not nodes & domain_of.keys():
        return found
    counts = Counter(domain for members in groups for domain in {domain_of.get(name, "") for name in members})
    worst = max(sorted(counts), key=counts.__getitem__)
    return Losses(counts, worst_node, found.after_node, worst, len(groups) - counts[worst])
