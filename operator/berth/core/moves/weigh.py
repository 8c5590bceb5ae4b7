"""What staying costs and what leaving would: expected, and at worst.

Both sides are sized by the planner for the same traffic, the measured one of the day's busiest hour, with calibrated
step times. Pessimistic means: the placement in force as fast as it may be, the other one as slow as it may be. Money is
what the bill changes by: GPUs of a reserved pool, or of a node that others use too, save nothing when they are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from berth.api.placement import Allocation
from berth.core.calibration.shrink import Belief
from berth.core.placement.choose import Answer, choose
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.core.placement.size import Candidate, size, why_waits
from berth.core.placement.supply import Supply

AT_WORST: Final = 1.3
"""Standard deviations: one in ten is slower still."""
FINALISTS: Final = 3
_HOUR: Final = 3600.0

Believe = Callable[[Layout], Belief]


@dataclass(frozen=True)
class Option:
    """Another placement, at the same traffic."""

    candidate: Candidate
    at_worst: Candidate
    saving: float | None
    """Per hour against staying; None where there is no price to compare, or staying is no choice."""
    saving_at_worst: float | None
    price: float | None
    """Of running twice."""

    @property
    def pay_back(self) -> float | None:
        """Seconds; None where nothing is saved."""
        if self.saving is None or self.price is None or self.saving <= 0:
            return None
        return self.price / self.saving * _HOUR


@dataclass(frozen=True)
class Weighed:
    """Staying against the best of the others, cheapest first."""

    asked: Question
    stay: Candidate
    """Rejected, or waiting for capacity, where the placement in force cannot carry the traffic."""
    stay_per_hour: float | None
    """What the bill falls by when it is left."""
    in_force_per_hour: float | None
    """Price of the groups that are there now."""
    options: tuple[Option, ...]
    answer: Answer
    evaluation: Estimates

    @property
    def can_stay(self) -> bool:
        return not self.stay.rejected and not self.stay.waits and self.stay.available


def weigh(
    asked: Question,
    supplies: Mapping[str, Supply],
    in_force: Allocation,
    nodes: Iterable[str],
    believe: Believe,
    memory: Memory,
    running_twice: float,
    both_sides: bool = True,
) -> Weighed:
    """`asked` has the traffic to carry; `nodes` are those the placement in force stands on; `running_twice` in seconds.

    `both_sides`: a move holds them at once, so that within a pool the other one has no room where this one is.

    A pool that the spec no longer allows may still be in force, so `supplies` holds it too.
    """
    here = Layout.of(in_force)
    expected = Estimates(asked, supplies, memory, _at(believe, 0.0))
    at_worst = Estimates(asked, supplies, memory, _at(believe, AT_WORST))
    at_best = Estimates(asked, supplies, memory, _at(believe, -AT_WORST))
    allowed = asked.spec.placement.pools
    offered = [supply for name, supply in supplies.items() if not allowed or name in allowed]
    answer = choose(asked, offered, expected, here)
    stay = size(asked, supplies[here.pool], here, expected, "simulate")
    freed = _freed_share(supplies[here.pool], nodes)
    stay_per_hour = _added(stay, freed)
    stay_at_best = _added(size(asked, supplies[here.pool], here, at_best, "simulate"), freed)
    options = []
    for candidate in _others(answer, here)[:FINALISTS]:
        supply = supplies[candidate.layout.pool]
        if candidate.method != "simulate":
            candidate = size(asked, supply, candidate.layout, expected, "simulate")
        if both_sides and supply.name == here.pool and not candidate.waits:
            both = _taken_by(supply, nodes, asked, in_force)
            candidate = replace(candidate, waits=why_waits(asked, both, candidate.layout, candidate.groups))
        added = _added(candidate)
        saving = _minus(stay_per_hour, added)
        # Where nothing is saved as expected, nobody asks what it would be at worst.
        hopeless = saving is not None and saving <= 0
        worse = candidate if hopeless else size(asked, supply, candidate.layout, at_worst, "simulate")
        options.append(
            Option(
                candidate,
                worse,
                saving=saving,
                saving_at_worst=saving if hopeless else _minus(stay_at_best, _added(worse)),
                price=None if added is None else added * running_twice / _HOUR,
            )
        )
    options.sort(key=lambda option: (_cost(option.candidate), option.candidate.layout.gpus))
    price = supplies[here.pool].price
    in_force_per_hour = None if price is None else price * in_force.groups * in_force.gpus
    return Weighed(asked, stay, stay_per_hour, in_force_per_hour, tuple(options), answer, expected)


def _taken_by(supply: Supply, nodes: Iterable[str], asked: Question, in_force: Allocation) -> Supply:
    """The pool with what the placement in force holds there: during a move within a pool both sides need room."""
    member = asked.demand(Layout.of(in_force), supply.pool).member
    return supply.with_taken(nodes, member)


def _at(believe: Believe, deviations: float) -> Callable[[Layout], float]:
    return lambda layout: believe(layout).factor(deviations)


def _others(answer: Answer, here: Layout) -> list[Candidate]:
    """Possible ones that are not just other batch limits of the layout in force; cheapest first, one per layout."""
    others = [each for each in answer.candidates if not each.rejected and each.layout.shape != here.shape]
    return sorted(others, key=lambda each: (bool(each.waits), not each.available, _cost(each), each.layout.gpus))


def _cost(candidate: Candidate) -> float:
    return candidate.cost.added_per_hour if candidate.cost else math.inf


def _added(candidate: Candidate, share: float = 1.0) -> float | None:
    """What the bill has of a candidate that can be had."""
    if candidate.rejected or candidate.cost is None:
        return None
    return candidate.cost.added_per_hour * share


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _freed_share(supply: Supply, nodes: Iterable[str]) -> float:
    """What of the price stops being paid when the groups leave: a node that others use too is paid on."""
    if supply.pool.spec.billing != "PerNode":
        return 1.0
    mine = set(nodes)
    alone = [name for name in mine if name not in supply.used or supply.used[name].gpus == 0]
    return len(alone) / len(mine) if mine else 1.0
