"""The search: branch and bound over layouts, from the fast screen to the simulation.

Every layout is sized by the screen with one pair of batch limits and an optimistic capacity: no batch limits make more
of it. Then, over and over, the first of the ranking is looked at more closely: with its best batch limits, then by
simulation, until the first was simulated. So nothing is chosen on the screen alone, and what was never looked at more
closely cannot be better.

Order of candidates: there is room now; the availability target holds; then `prefer`. Within `TIE` of the best, models
cannot tell candidates apart, so other things decide: the placement in force, then fewer GPUs per group (one fault takes
down less), then more KV room. The same inputs give the same answer: the last criterion is the layout itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from berth.api.model import Variant
from berth.core.accept import backend_of
from berth.core.placement.evaluate import Evaluation
from berth.core.placement.layouts import BATCH_SIZES, TOKEN_BUDGETS, Layout, across_nodes, in_one_node
from berth.core.placement.question import Question
from berth.core.placement.size import Candidate, Rejection, Stage, groups_for_load, size
from berth.core.placement.supply import Supply
from berth.estimator.memory import OK

TIE: Final = 0.15
"""Candidates whose figures differ by less are equally good: the models' error is of that order."""
_SAME_CAPACITY: Final = 0.02
"""Precision of a capacity."""
_OPTIMISM: Final = 1.05
"""Capacity with the best batch limits against the first ones, at most, where both latencies are bounded."""
_OPTIMISM_OF_A_CAP: Final = 1.5
"""The same where requests may wait for long, so that a cap on the batch can trade time to first token away."""
_MOST_LOOKS: Final = 30

Metric = Callable[[Candidate], float]


@dataclass(frozen=True)
class Answer:
    """What was considered, best first, and what was chosen."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    words: str
    """Why it was chosen; if nothing was, what fails on the closest candidate and what would help."""
    reason: str = ""
    """If nothing was chosen: SLOInfeasible, or WaitingForCapacity where more nodes would do."""


def choose(
    question: Question, supplies: Iterable[Supply], evaluation: Evaluation, incumbent: Layout | None = None
) -> Answer:
    """The placement for `question` on these pools; `incumbent` is the layout in force, which wins ties."""
    pools = {supply.name: supply for supply in sorted(supplies, key=lambda supply: supply.name)}
    currency = _currency(question, pools.values())
    optimism = _optimism(question)
    found: dict[Layout, _Look] = {}
    for supply in pools.values():
        for variant in question.variants:
            refusal = _why_not(question, supply, variant, currency)
            if refusal is not None:
                layout = Layout(supply.name, variant.name, variant.tensor_parallel or 1, variant.pipeline_parallel or 1)
                found[layout] = _Look(Candidate(layout, rejected=refusal), final=True)
                continue
            for candidate in _sized(question, supply, variant, evaluation, optimism):
                found[candidate.layout] = _Look(candidate)
            if incumbent is not None and (incumbent.pool, incumbent.variant) == (supply.name, variant.name):
                found.pop(incumbent.shape, None)
                found[incumbent] = _Look(size(question, supply, incumbent, evaluation), best_limits=True)
    for _ in range(_MOST_LOOKS):
        first = next(iter(_ranked(question, (look.candidate for look in found.values()), incumbent)), None)
        if first is None or found[first.layout].final:
            break
        closer = _closer(question, pools[first.layout.pool], evaluation, found.pop(first.layout))
        found[closer.candidate.layout] = closer
    candidates = [_without_optimism(question, pools[of.pool], evaluation, look) for of, look in found.items()]
    ranked = _ranked(question, candidates, incumbent)
    rejected = sorted((candidate for candidate in candidates if candidate.rejected), key=_distance)
    chosen = next((candidate for candidate in ranked if candidate.method == "simulate"), None)
    if chosen is None:
        only_room = bool(rejected) and _stage(rejected[0]) is Stage.ROOM
        return Answer(
            tuple(rejected), None, _infeasible(rejected), "WaitingForCapacity" if only_room else "SLOInfeasible"
        )
    others = [candidate for candidate in ranked if candidate is not chosen]
    return Answer((chosen, *others, *rejected), chosen, _because(question, chosen, others, incumbent))


@dataclass(frozen=True)
class _Look:
    """A candidate as closely as it was looked at; before `best_limits` its capacity is optimistic."""

    candidate: Candidate
    best_limits: bool = False
    final: bool = False


def _closer(question: Question, supply: Supply, evaluation: Evaluation, look: _Look) -> _Look:
    layout = look.candidate.layout
    if not look.best_limits:
        layout = _best_limits(question, layout, evaluation)
        return _Look(size(question, supply, layout, evaluation), best_limits=True)
    return _Look(size(question, supply, layout, evaluation, "simulate"), best_limits=True, final=True)


def _without_optimism(question: Question, supply: Supply, evaluation: Evaluation, look: _Look) -> Candidate:
    """What is shown of a candidate: figures of the screen, not its bound."""
    if look.best_limits or look.final:
        return look.candidate
    return size(question, supply, look.candidate.layout, evaluation)


def _optimism(question: Question) -> float:
    waits_count = question.objectives.time_to_first_token < math.inf
    return _OPTIMISM if waits_count and not question.traffic.closed else _OPTIMISM_OF_A_CAP


# --- candidates -------------------------------------------------------------------------------------------------------
def _currency(question: Question, supplies: Iterable[Supply]) -> str | None:
    """The currency that costs are compared in: the most common one; None where nothing has a price to compare."""
    if question.prefer != "Cost":
        return None
    counts = Counter(
        supply.pool.spec.currency for supply in supplies if supply.price is not None and not supply.why_not
    )
    return min(counts, key=lambda currency: (-counts[currency], currency), default=None)


def _why_not(question: Question, supply: Supply, variant: Variant, currency: str | None) -> Rejection | None:
    """Why no layout of the variant on the pool is worth a look; None if one may be."""
    pool, gpu = supply.pool.spec, supply.gpu
    if supply.why_not:
        stage = Stage.ROOM if supply.nodes == () else Stage.UNSUPPORTED
        return Rejection(stage, supply.why_not, "add nodes to it or use another pool")
    if variant.gpus and pool.gpu not in variant.gpus:
        words = f"variant {variant.name} is for {', '.join(variant.gpus)}, not {pool.gpu}"
        return Rejection(Stage.UNSUPPORTED, words, "add the GPU type to the variant's gpus, or another variant")
    backend = backend_of(question.deployment, variant)
    refusal = gpu.why_not(variant.precision, backend, variant.effective_kv_precision)
    if refusal:
        return Rejection(Stage.UNSUPPORTED, refusal, "add a variant that runs there")
    if currency is not None and supply.price is None:
        words = f"pool {supply.name} has no pricePerGPUHour, so its cost cannot be compared"
        return Rejection(Stage.UNSUPPORTED, words, "give the price, or prefer Latency or Throughput")
    if currency is not None and pool.currency != currency:
        words = f"pool {supply.name} is priced in {pool.currency}, others in {currency}"
        return Rejection(Stage.UNSUPPORTED, words, "give all prices in one currency")
    if not any((*in_one_node(question.model, supply, variant), *across_nodes(question.model, supply, variant))):
        words = f"no split of {question.model.heads} attention heads and {question.model.kv_heads} KV heads fits"
        words += f" a node of {pool.gpus_per_node} GPUs"
        if variant.tensor_parallel or variant.pipeline_parallel:
            words = f"variant {variant.name} was built for a split that fits no node of {pool.gpus_per_node} GPUs"
        return Rejection(Stage.UNSUPPORTED, words, "use a pool with more GPUs per node")
    return None


def _sized(
    question: Question, supply: Supply, variant: Variant, evaluation: Evaluation, optimism: float
) -> list[Candidate]:
    """Every layout in one node; over several if the model fits none."""

    def sized(layout: Layout) -> Candidate:
        return size(question, supply, layout, evaluation, optimism=optimism)

    candidates = [sized(layout) for layout in in_one_node(question.model, supply, variant)]
    if not any(candidate.fit and candidate.fit.verdict == OK for candidate in candidates):
        candidates += [sized(layout) for layout in across_nodes(question.model, supply, variant)]
    return candidates


def _best_limits(question: Question, layout: Layout, evaluation: Evaluation) -> Layout:
    """The batch limits with the most capacity, first of the token budgets, then of the batch sizes.

    Among equals, which need as many groups, the smaller budget, which leaves more KV room, and the smaller batch, which
    protects the time per token of running requests when more come than planned.
    """

    def best(options: Sequence[Layout]) -> Layout:
        fitting = [each for each in options if evaluation.fit(each).verdict == OK]
        loads = [evaluation.capacity(each, "screen").load for each in fitting]
        most = max(loads, default=0.0)
        if most <= 0:
            return layout
        fewest = groups_for_load(question.traffic.load, most)
        for each, load in zip(fitting, loads, strict=True):
            equal = load >= most * (1 - _SAME_CAPACITY)
            if equal and load > 0 and groups_for_load(question.traffic.load, load) == fewest:
                return each
        return layout

    layout = best([replace(layout, max_num_tokens=tokens) for tokens in TOKEN_BUDGETS])
    return best([replace(layout, max_batch_size=batch) for batch in BATCH_SIZES])


# --- ranking ----------------------------------------------------------------------------------------------------------
def _ranked(question: Question, candidates: Iterable[Candidate], incumbent: Layout | None) -> list[Candidate]:
    """Those that were not rejected, best first."""
    ranked: list[Candidate] = []
    tiers: dict[tuple[bool, bool], list[Candidate]] = {}
    for candidate in candidates:
        if not candidate.rejected:
            tiers.setdefault((bool(candidate.waits), not candidate.available), []).append(candidate)
    for _, tier in sorted(tiers.items()):
        metric = _metric(question, tier)
        best = min(map(metric, tier))
        equal = [candidate for candidate in tier if metric(candidate) <= best * (1 + TIE)]
        worse = [candidate for candidate in tier if metric(candidate) > best * (1 + TIE)]
        tie_break = _tie_break(question, metric, incumbent)
        worse.sort(key=tie_break)
        ranked += [*sorted(equal, key=tie_break), *sorted(worse, key=metric)]
    return ranked


def _metric(question: Question, candidates: Sequence[Candidate]) -> Metric:
    """What is to be small. Without any price, GPUs stand for the cost; where all is paid anyway, the price does."""
    if question.prefer == "Latency":
        return lambda candidate: candidate.latency.tpot_p95 if candidate.latency else math.inf
    if question.prefer == "Throughput":
        return lambda candidate: 1 / max(candidate.sustainable_tokens_per_second, 1e-9)
    if any(candidate.cost is None for candidate in candidates):
        return lambda candidate: float(candidate.gpus)
    if min(candidate.cost.added_per_hour for candidate in candidates if candidate.cost) > 0:
        return lambda candidate: candidate.cost.added_per_hour if candidate.cost else math.inf
    return lambda candidate: _paid_anyway(candidate)


def _paid_anyway(candidate: Candidate) -> float:
    """Price among candidates that add nothing to the bill; those that add something come after all of them."""
    if candidate.cost is None or candidate.cost.added_per_hour > 0:
        return math.inf
    return candidate.cost.per_hour


def _tie_break(question: Question, metric: Metric, incumbent: Layout | None) -> Callable[[Candidate], tuple[Any, ...]]:
    def key(candidate: Candidate) -> tuple[Any, ...]:
        cost = candidate.cost.added_per_hour if candidate.cost else float(candidate.gpus)
        first: tuple[float, ...] = ()
        if question.prefer == "Latency":
            first = (candidate.latency.ttft_p95 if candidate.latency else math.inf, cost)
        elif question.prefer == "Throughput":
            first = (cost,)
        smaller_failure_domain = (candidate.layout.gpus, -candidate.kv_tokens)
        in_force = candidate.layout != incumbent
        return (in_force, *first, *smaller_failure_domain, metric(candidate), candidate.layout)

    return key


def _stage(candidate: Candidate) -> Stage:
    assert candidate.rejected is not None
    return candidate.rejected.stage


def _distance(candidate: Candidate) -> tuple[Any, ...]:
    """How far a rejected candidate is from being possible; the closest first."""
    assert candidate.rejected is not None
    hopeless = candidate.rejected.excess == math.inf
    stage, excess = candidate.rejected.stage, candidate.rejected.excess
    return hopeless, -stage, excess, candidate.layout.gpus, candidate.layout


# --- words ------------------------------------------------------------------------------------------------------------
def _because(question: Question, chosen: Candidate, others: Sequence[Candidate], incumbent: Layout | None) -> str:
    tier = [chosen, *(each for each in others if not each.waits and each.available == chosen.available)]
    metric = _metric(question, tier)
    best = min(tier, key=metric)
    superlative = {"Cost": "cheapest", "Latency": "fastest", "Throughput": "highest throughput"}[question.prefer]
    what = "meets all objectives" if chosen.available else "meets all objectives but availability"
    if chosen.waits:
        what += " on pools that have to be waited for"
    if question.prefer == "Cost" and best is chosen and chosen.cost and chosen.cost.added_per_hour == 0:
        return f"adds nothing to the bill, as pool {chosen.layout.pool} is paid anyway, and {what}"
    if best is chosen:
        return f"{superlative} that {what}"
    if chosen.layout == incumbent:
        return f"in force, and within {TIE:.0%} of the {superlative} ({best.layout})"
    why = "fewer GPUs per group" if chosen.layout.gpus < best.layout.gpus else "more KV room"
    if question.prefer != "Cost":
        why = "it costs less"
    return (
        f"within {TIE:.0%} of the {superlative} ({best.layout}), with {why}"
        if question.prefer == "Cost"
        else (f"within {TIE:.0%} of the {superlative} ({best.layout}), and {why}")
    )


def _infeasible(rejected: Sequence[Candidate]) -> str:
    if not rejected:
        return "no GPUPool may be used: create one (berth pools discover), or correct placement.pools"
    closest = rejected[0].rejected
    assert closest is not None
    where = str(rejected[0].layout) if rejected[0].fit else f"{rejected[0].layout.pool} {rejected[0].layout.variant}"
    return f"no placement is possible; closest is {where}: {closest.words}: {closest.cure}"
