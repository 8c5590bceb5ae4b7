"""The search: every layout on every pool is sized by the fast screen, the best are confirmed by simulation.

Order of candidates: there is room now; the availability target holds; then `prefer`. Within `TIE` of the best, models
cannot tell candidates apart, so other things decide: the placement in force, then fewer GPUs per group (one fault takes
down less), then more KV room. The same inputs give the same answer: the last criterion is the layout itself.

Nothing is chosen on the screen alone: the first of the ranking is simulated until it stays first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

from berth.api.model import Variant
from berth.core.accept import backend_of
from berth.core.placement.evaluate import Evaluation
from berth.core.placement.layouts import BATCH_SIZES, TOKEN_BUDGETS, Layout, across_nodes, in_one_node
from berth.core.placement.question import Question
from berth.core.placement.size import Candidate, Rejection, Stage, size
from berth.core.placement.supply import Supply
from berth.estimator.memory import OK

TIE: Final = 0.15
"""Candidates whose figures differ by less are equally good: the models' error is of that order."""
_SAME_CAPACITY: Final = 0.02
_MOST_FINALISTS: Final = 12

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
    found: dict[Layout, Candidate] = {}
    for supply in pools.values():
        for variant in question.variants:
            refusal = _why_not(question, supply, variant, currency)
            if refusal is not None:
                layout = Layout(supply.name, variant.name, variant.tensor_parallel or 1, variant.pipeline_parallel or 1)
                found[layout] = Candidate(layout, rejected=refusal)
                continue
            found |= {each.layout: each for each in _sized(question, supply, variant, evaluation)}
            if incumbent is not None and (incumbent.pool, incumbent.variant) == (supply.name, variant.name):
                found.pop(incumbent.shape, None)
                found[incumbent] = size(question, supply, incumbent, evaluation)
    _confirm(question, pools, evaluation, found, incumbent)
    ranked = _ranked(question, found.values(), incumbent)
    rejected = sorted((c for c in found.values() if c.rejected), key=_distance)
    chosen = next((candidate for candidate in ranked if candidate.method == "simulate"), None)
    if chosen is None:
        only_room = bool(rejected) and _stage(rejected[0]) is Stage.ROOM
        return Answer(
            tuple(rejected), None, _infeasible(rejected), "WaitingForCapacity" if only_room else "SLOInfeasible"
        )
    others = [candidate for candidate in ranked if candidate is not chosen]
    return Answer((chosen, *others, *rejected), chosen, _because(question, chosen, others, incumbent))


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


def _sized(question: Question, supply: Supply, variant: Variant, evaluation: Evaluation) -> list[Candidate]:
    """Every layout in one node; over several if the model fits none."""
    model = question.model
    candidates = [size(question, supply, layout, evaluation) for layout in in_one_node(model, supply, variant)]
    if not any(candidate.fit and candidate.fit.verdict == OK for candidate in candidates):
        candidates += [size(question, supply, layout, evaluation) for layout in across_nodes(model, supply, variant)]
    return candidates


def _confirm(
    question: Question,
    pools: Mapping[str, Supply],
    evaluation: Evaluation,
    found: dict[Layout, Candidate],
    incumbent: Layout | None,
) -> None:
    """Simulate the first of the ranking, with its best batch limits, until it stays first."""
    for _ in range(_MOST_FINALISTS):
        first = next(iter(_ranked(question, found.values(), incumbent)), None)
        if first is None or first.method == "simulate":
            return
        del found[first.layout]
        layout = first.layout if first.layout == incumbent else _best_limits(first.layout, evaluation)
        found[layout] = size(question, pools[layout.pool], layout, evaluation, "simulate")


def _best_limits(layout: Layout, evaluation: Evaluation) -> Layout:
    """The batch limits with the most capacity; among equals the smallest batch, which protects the time per token of
    running requests when more come than planned, then the larger token budget."""

    def capacity(candidate: Layout) -> float:
        return evaluation.capacity(candidate, "screen").load if evaluation.fit(candidate).verdict == OK else 0.0

    budgets = [replace(layout, max_num_tokens=tokens) for tokens in TOKEN_BUDGETS]
    most = max(map(capacity, budgets))
    layout = max((each for each in budgets if capacity(each) >= most * (1 - _SAME_CAPACITY)), key=_token_budget)
    batches = [replace(layout, max_batch_size=batch) for batch in BATCH_SIZES]
    most = max(map(capacity, batches))
    return next(each for each in batches if capacity(each) >= most * (1 - _SAME_CAPACITY))


def _token_budget(layout: Layout) -> int:
    return layout.max_num_tokens


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
        return (in_force, *first, *smaller_failure_domain, metric(candidate), astuple(candidate.layout))

    return key


def _stage(candidate: Candidate) -> Stage:
    assert candidate.rejected is not None
    return candidate.rejected.stage


def _distance(candidate: Candidate) -> tuple[Any, ...]:
    """How far a rejected candidate is from being possible; the closest first."""
    assert candidate.rejected is not None
    hopeless = candidate.rejected.excess == math.inf
    stage, excess = candidate.rejected.stage, candidate.rejected.excess
    return hopeless, -stage, excess, candidate.layout.gpus, astuple(candidate.layout)


# --- words ------------------------------------------------------------------------------------------------------------
def _because(question: Question, chosen: Candidate, others: Sequence[Candidate], incumbent: Layout | None) -> str:
    tier = [chosen, *(each for each in others if not each.waits and each.available == chosen.available)]
    metric = _metric(question, tier)
    best = min(tier, key=metric)
    superlative = {"Cost": "cheapest", "Latency": "fastest", "Throughput": "highest throughput"}[question.prefer]
    what = "meets all objectives" if chosen.available else "meets all objectives but availability"
    if chosen.waits:
        what += " on pools that have to be waited for"
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
