"""From one layout to a candidate: how many groups, what they cost, whether all of it is allowed and possible.

    capacity of a group -> groups that carry the traffic -> more until the availability target holds -> limits, room

A group is planned with `HEADROOM` of its capacity; the rest is for the model's error and for growth. Several groups
behind a Service carry less than their sum, because connections are balanced and not requests (`imbalance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Final

from berth.api.common import format_duration, number
from berth.api.placement import MAX_GROUPS
from berth.core import reliability
from berth.core.availability import Availability, groups_for, load_after_group_loss
from berth.core.budgets import why_over_cost_limit
from berth.core.capacity import Demand
from berth.core.placement.cost import Cost, cost_of
from berth.core.placement.evaluate import Evaluation
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.core.placement.supply import Supply
from berth.core.reliability import FailureModel
from berth.estimator.balancing import imbalance
from berth.estimator.latency import Capacity, Latency
from berth.estimator.memory import DOES_NOT_FIT, OK, UNSUPPORTED, Fit
from berth.estimator.queueing import Method

HEADROOM: Final = 0.9
"""Share of a group's capacity that is planned with: the median error of throughput is 9 %."""
CHANNELS_PER_GROUP: Final = 64
"""Long-lived client connections per group: an assumption, since no field says how many there are."""
_MORE_GROUPS: Final = 8
"""Groups beyond the needed ones that are tried for availability; further ones fail together with these."""
_HARDLY: Final = 1.1
"""Unavailability against the best within which fewer groups are as good."""
_SPARES_ON_DEMAND: Final = 2
_RELAXED: Final = 1.1
"""An objective that hardly any load just meets lets nothing else in; this much more lets something."""
_ROUNDING: Final = 1e-9
_NONE_FITS: Final = 0.1
"""Stands for no group at all where closeness to a bound is measured."""


class Stage(IntEnum):
    """How far a candidate came before it was rejected."""

    UNSUPPORTED = 0
    MEMORY = 1
    OBJECTIVE = 2
    LIMIT = 3
    ROOM = 4


@dataclass(frozen=True)
class Rejection:
    """Why a candidate is out, and by how much."""

    stage: Stage
    words: str
    cure: str = ""
    excess: float = math.inf
    """What is asked over what is possible; the smaller, the closer."""


@dataclass(frozen=True)
class Candidate:
    """A layout with its number of groups, or the reason why it is out."""

    layout: Layout
    fit: Fit | None = None
    capacity: Capacity | None = None
    latency: Latency | None = None
    """Of one group at its share of the planned traffic."""
    groups: int = 0
    groups_for_traffic: int = 0
    """Groups that carry the planned traffic at the objectives."""
    needed: int = 0
    """Groups that must serve: these, or as many as `minAvailable` says."""
    load: float = math.inf
    """Planned traffic over what the groups carry at the objectives."""
    output_tokens_per_second: float = 0.0
    """At the planned traffic."""
    sustainable_tokens_per_second: float = 0.0
    """Most that the groups generate within the objectives."""
    availability: Availability | None = None
    available: bool = True
    """Whether the availability target, if there is one, holds."""
    load_after_group_loss: float = math.inf
    cost: Cost | None = None
    rejected: Rejection | None = None
    waits: str = ""
    """Why it would have to wait for capacity; empty if there is room now."""
    method: Method = "screen"

    @property
    def gpus(self) -> int:
        return self.groups * self.layout.gpus

    @property
    def kv_tokens(self) -> int:
        """KV room of all groups."""
        return self.groups * self.fit.kv_tokens_mid if self.fit else 0


def size(
    question: Question,
    supply: Supply,
    layout: Layout,
    evaluation: Evaluation,
    method: Method = "screen",
    groups: int | None = None,
    optimism: float = 1.0,
) -> Candidate:
    """The candidate of a layout whose variant runs on the pool's GPUs.

    `groups`, where given, is how many there are, whatever bounds and targets say. `optimism` is a factor on the
    capacity of a group, for a candidate that stands for all that could be made of its layout.
    """
    fit = evaluation.fit(layout)
    out = Candidate(layout, fit, method=method)
    if fit.verdict != OK:
        return replace(out, rejected=_memory(fit))
    found = evaluation.capacity(layout, method)
    if optimism != 1:
        rate = found.requests_per_second * optimism
        found = replace(found, load=found.load * optimism, requests_per_second=rate)
    out = replace(out, capacity=found, latency=found.latency)
    if found.load <= 0:
        return replace(out, rejected=_objective(question, fit, found))
    traffic = groups_for_load(question.traffic.load, found.load)
    needed = max(traffic, question.spec.replica_groups.min_available)
    out = replace(out, groups_for_traffic=traffic, needed=needed)
    demand = question.demand(layout, supply.pool)
    predict = _Prediction(question, supply, demand, needed)
    if groups is None:
        fewest, bound = max(needed, question.fewest), _tightest(question, supply, demand)
        if fewest > bound.groups:
            return replace(out, rejected=_too_many(fewest, demand, bound))
        groups = _wanted(predict, fewest, bound.groups)
    return _complete(out, predict, evaluation, groups)


def groups_for_load(load: float, capacity: float) -> int:
    """The smallest number of groups that carry `load`, given that the busiest gets more than its share.

    Above MAX_GROUPS: some number that is too many, and still not one more than enough.
    """
    usable = HEADROOM * capacity
    groups = max(1, math.ceil(load / usable - _ROUNDING))
    while groups <= MAX_GROUPS and load * uneven(groups) > groups * usable * (1 + _ROUNDING):
        groups += 1
    return groups


@lru_cache(maxsize=4096)
def uneven(groups: int) -> float:
    """Load of the busiest of several groups against the mean."""
    return imbalance(groups, CHANNELS_PER_GROUP * groups)


def _complete(out: Candidate, predict: _Prediction, evaluation: Evaluation, groups: int) -> Candidate:
    """Every figure of `groups` groups."""
    assert out.capacity is not None
    question, supply, demand = predict.question, predict.supply, predict.demand
    traffic, found = question.traffic, out.capacity
    factor = uneven(groups)
    share = traffic.load / groups * factor
    latency = evaluation.latency(out.layout, math.ceil(share) if traffic.closed else share, out.method)
    answer = traffic.output_tokens.mean
    produced = question.output_tokens_per_second or groups * latency.requests_per_second / factor * answer
    availability = predict(groups)
    load = traffic.load * factor / (groups * found.load)
    out = replace(
        out,
        latency=latency,
        groups=groups,
        load=load,
        output_tokens_per_second=produced,
        sustainable_tokens_per_second=groups * found.requests_per_second / factor * answer,
        availability=availability,
        available=question.availability is None or availability.unavailability <= 1 - question.availability,
        load_after_group_loss=load_after_group_loss(load, groups),
        cost=cost_of(supply, demand, predict.layout(groups), produced if latency.stable else 0.0),
    )
    limit = question.limits.cost_per_hour
    if out.cost and limit is not None and (over := why_over_cost_limit(question.limits, out.cost.per_hour)):
        excess = out.cost.per_hour / number(limit)
        return replace(out, rejected=Rejection(Stage.LIMIT, over, "raise objectives.limits.costPerHour", excess))
    if groups > (now := supply.room_now(demand)):
        return replace(out, waits=_waits(supply, demand, groups, now))
    return out


# --- how many ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Bound:
    """At most this many groups, because of what, and what would allow more."""

    groups: int
    words: str
    cure: str
    stage: Stage = Stage.LIMIT


def groups_wanted(question: Question, supply: Supply, layout: Layout, for_traffic: int) -> int:
    """Groups that there should be where `for_traffic` carry the traffic; as many as are allowed, if those are fewer."""
    demand = question.demand(layout, supply.pool)
    most = _tightest(question, supply, demand).groups
    needed = max(for_traffic, question.spec.replica_groups.min_available)
    fewest = max(needed, question.fewest)
    if fewest >= most:
        return max(most, 1)
    return _wanted(_Prediction(question, supply, demand, needed), fewest, most)


def why_waits(question: Question, supply: Supply, layout: Layout, groups: int) -> str:
    """Why so many groups find no room now; empty if they do."""
    demand = question.demand(layout, supply.pool)
    now = supply.room_now(demand)
    return _waits(supply, demand, groups, now) if groups > now else ""


def most_groups(question: Question, supply: Supply, layout: Layout) -> int:
    """Groups that limits, scaling.max and the pool's nodes allow."""
    return _tightest(question, supply, question.demand(layout, supply.pool)).groups


def _tightest(question: Question, supply: Supply, demand: Demand) -> _Bound:
    return min(_bounds(question, supply, demand), key=lambda bound: bound.groups)


def _wanted(predict: _Prediction, fewest: int, most: int) -> int:
    """For the availability target; where throughput is preferred and the user set a bound, up to that bound."""
    question, supply, demand = predict.question, predict.supply, predict.demand
    groups = _groups_for_availability(question.availability, predict, fewest, most)
    if question.prefer == "Throughput" and _bounded_by_user(question):
        groups = max(groups, min(most, supply.room_now(demand)))
    return groups


def _bounds(question: Question, supply: Supply, demand: Demand) -> Iterator[_Bound]:
    """Whatever bounds the number of groups."""
    limits = question.limits
    yield _Bound(question.most, f"scaling.max is {question.most}", "raise scaling.max")
    if limits.gpus is not None:
        yield _Bound(limits.gpus // demand.gpus, f"limits.gpus is {limits.gpus}", "raise objectives.limits.gpus")
    if limits.cost_per_hour is not None and supply.price is not None:
        affordable = int(number(limits.cost_per_hour) / (supply.price * demand.gpus) + 1e-9)
        words = f"limits.costPerHour is {limits.cost_per_hour}"
        yield _Bound(affordable, words, "raise objectives.limits.costPerHour")
    for groups, words, cure in supply.allowance.bounds(demand.gpus):
        yield _Bound(groups, words, cure)
    room = supply.room(demand)
    where = f"pool {supply.name} has room for {room or 'none'}"
    yield _Bound(room, where, f"add nodes to pool {supply.name}", Stage.ROOM)


def _too_many(groups: int, demand: Demand, bound: _Bound) -> Rejection:
    words = f"needs {groups_of(groups, demand)}, {bound.words}"
    return Rejection(bound.stage, words, bound.cure, groups / max(bound.groups, _NONE_FITS))


def _bounded_by_user(question: Question) -> bool:
    limits = question.limits
    return limits.gpus is not None or limits.cost_per_hour is not None or question.most < MAX_GROUPS


def _waits(supply: Supply, demand: Demand, groups: int, now: int) -> str:
    free = supply.free_per_node(demand.tolerations)
    shown = ", ".join(f"{count} x {gpus}" for gpus, count in free.items()) or "none"
    return f"needs {groups_of(groups, demand)}, {now or 'none'} fit now (free GPUs per node: {shown})"


def groups_of(groups: int, demand: Demand) -> str:
    """`3 groups x 2 GPUs`, `1 group x 2 nodes x 8 GPUs`."""
    nodes = f"{demand.members} nodes x " if demand.members > 1 else ""
    gpus = f"{demand.gpus_per_member} GPU" + ("s" if demand.gpus_per_member > 1 else "")
    return f"{groups} group{'s' if groups > 1 else ''} x {nodes}{gpus}"


# --- availability -----------------------------------------------------------------------------------------------------
class _Prediction:
    """Availability by number of groups, as they would stand; each number is computed once."""

    def __init__(self, question: Question, supply: Supply, demand: Demand, needed: int) -> None:
        self.question, self.supply, self.demand, self.needed = question, supply, demand, needed
        self._known: dict[int, Availability] = {}

    def __call__(self, groups: int) -> Availability:
        if groups not in self._known:
            self._known[groups] = self._predict(groups)
        return self._known[groups]

    def layout(self, groups: int) -> tuple[tuple[str, ...], ...]:
        """Nodes of each group, where the arbiter would put them."""
        topology_key = self.question.spec.replica_groups.spread.topology_key
        return self.supply.lay_out(self.demand, groups, self.needed, topology_key)

    def _predict(self, groups: int) -> Availability:
        supply, pool = self.supply, self.supply.pool.spec
        layout = self.layout(groups)
        spares = _SPARES_ON_DEMAND if supply.nodes is None else max(0, supply.room_now(self.demand) - groups)
        rates = FailureModel(
            node_mtbf_days=pool.node_mtbf_days,
            gpus_per_node=pool.gpus_per_node,
            domain_level=pool.failure_domain_key.rpartition("/")[2],
        )
        return reliability.predict(
            layout,
            self.needed,
            self.demand.gpus_per_member,
            rates,
            domain_of=supply.domain_of(layout),
            spares=spares,
        )


def _groups_for_availability(target: float | None, predict: _Prediction, fewest: int, most: int) -> int:
    """The smallest number that reaches the target, else the smallest beyond which more groups hardly help."""
    if target is None:
        return fewest
    most = min(most, fewest + _MORE_GROUPS)
    found = groups_for(target, fewest, most, predict)
    if found.groups is not None:
        return found.groups
    good_enough = _HARDLY * found.best.unavailability
    return next(groups for groups in range(fewest, most + 1) if predict(groups).unavailability <= good_enough)


# --- rejections -------------------------------------------------------------------------------------------------------
def _memory(fit: Fit) -> Rejection:
    """Why a copy is out before any question of speed."""
    if fit.verdict == UNSUPPORTED:
        return Rejection(Stage.UNSUPPORTED, fit.reason, "use another pool or variant")
    excess = fit.weights_gib / fit.usable_gib if fit.verdict == DOES_NOT_FIT and fit.usable_gib > 0 else 1.0
    return Rejection(Stage.MEMORY, fit.reason, "use more GPUs per group, or a variant of smaller precision", excess)


def _objective(question: Question, fit: Fit, found: Capacity) -> Rejection:
    """Why not even the smallest load is served well enough."""
    traffic, wanted = question.traffic, question.objectives
    if found.limited_by == "kvRoom":
        longest = round(traffic.input_tokens.max + traffic.output_tokens.max)
        words = f"the longest request reserves {longest} tokens, KV room is {fit.kv_tokens_mid}"
        cure = "lower inputTokens.max or outputTokens.maxRequested, or use more GPUs per group"
        return Rejection(Stage.OBJECTIVE, words, cure, longest / max(fit.kv_tokens_mid, 1))
    if found.limited_by == "timeToFirstToken":
        name, reached, bound = "TTFT", found.latency.ttft_p95, wanted.time_to_first_token
    else:
        name, reached, bound = "TPOT", found.latency.tpot_p95, wanted.time_per_output_token
    field = "timeToFirstToken" if name == "TTFT" else "timePerOutputToken"
    if reached == math.inf:
        return Rejection(Stage.OBJECTIVE, f"{name} p95 grows without bound", f"relax objectives.{field}.p95", math.inf)
    words = f"{name} p95 {_above(reached, 3)} > {format_duration(bound)} with hardly any load"
    cure = f"relax objectives.{field}.p95 to {_above(_RELAXED * reached, 2)}"
    return Rejection(Stage.OBJECTIVE, words, cure, reached / bound)


def _above(seconds: float, digits: int) -> str:
    """Rounded up: what misses a bound never looks like it, and what is told to be enough is."""
    step = 10.0 ** (math.floor(math.log10(seconds)) + 1 - digits)
    return format_duration(math.ceil(seconds / step - 1e-9) * step)
