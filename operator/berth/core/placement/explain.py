"""The five factors of a placement, in words with its own figures: why this one and not its neighbours.

The question "four small GPUs or one large one?" is usually answered with five factors and constants for each. Here the
factors are computed for the candidate at hand, and each is compared with the layout next to it (half or twice the
tensor parallelism, stages instead of a split).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from berth.api.common import format_duration
from berth.core.placement.evaluate import Evaluation
from berth.core.placement.layouts import Layout, tensor_parallels
from berth.core.placement.question import Question
from berth.core.placement.size import Candidate
from berth.core.placement.supply import Supply
from berth.core.reliability import FailureModel, worst_losses
from berth.estimator.memory import OK
from berth.estimator.performance import Factors


@dataclass(frozen=True)
class FiveFactors:
    """One or two sentences each."""

    communication: str
    parallelism: str
    batch: str
    bandwidth: str
    failure: str


def explain(question: Question, supply: Supply, candidate: Candidate, evaluation: Evaluation) -> FiveFactors:
    """Of a candidate that was sized."""
    assert candidate.latency is not None
    here = evaluation.factors(candidate.layout, candidate.latency.in_flight)
    return FiveFactors(
        communication=_communication(question, supply, candidate.layout, here),
        parallelism=" ".join(_parallelism(question, supply, candidate, evaluation, here)),
        batch=_batch(candidate, here),
        bandwidth=_bandwidth(question, supply, candidate, evaluation, here),
        failure=_failure(question, supply, candidate),
    )


def why_split(candidate: Candidate, evaluation: Evaluation) -> str:
    """What the split gains and costs, in a line; empty where a copy is not split or cannot be split less."""
    layout = candidate.layout
    if layout.tensor_parallel == 1 or candidate.latency is None:
        return ""
    gains = " ".join(_against_half(layout, evaluation)).removesuffix(".")
    here = evaluation.factors(layout, candidate.latency.in_flight)
    return f"{gains}; all-reduces cost {_time(here.all_reduce_time)} per token" if gains else ""


def limiting_term(question: Question, candidate: Candidate, evaluation: Evaluation) -> str:
    """What bounds the throughput of a group: KV room, or where most of the step goes, in busy minutes at capacity."""
    assert candidate.capacity is not None
    busy = candidate.capacity.latency.in_flight * question.traffic.peak_to_mean
    return evaluation.factors(candidate.layout, busy).limited_by


def _communication(question: Question, supply: Supply, layout: Layout, here: Factors) -> str:
    if layout.gpus == 1:
        return "none: one GPU holds the whole copy"
    if layout.tensor_parallel == 1:
        stages = layout.pipeline_parallel
        return f"no all-reduce: {stages} stages pass activations on, {_time(here.all_reduce_time)} per token"
    per_layer = question.model.all_reduces
    return (
        f"{per_layer * question.model.layers} all-reduces over {supply.gpu.link} take {_time(here.all_reduce_time)} "
        f"of each token, {here.all_reduce_share:.0%} of a step of {_time(here.step_time)}"
    )


def _parallelism(
    question: Question, supply: Supply, candidate: Candidate, evaluation: Evaluation, here: Factors
) -> Iterator[str]:
    layout, in_flight = candidate.layout, here.in_flight
    if layout.gpus == 1:
        yield f"not split: a step takes {_time(here.step_time)} with {in_flight} in flight."
    else:
        alone = replace(layout, tensor_parallel=1, pipeline_parallel=1)
        fitted = "" if evaluation.fit(alone).verdict == OK else ", if it fitted there"
        yield (
            f"{_split(layout)}: a step takes {_time(here.step_time)} with {in_flight} in flight, "
            f"{layout.gpus * here.parallel_efficiency:.1f} times as fast as on one GPU{fitted} "
            f"({here.parallel_efficiency:.0%} efficient)."
        )
    if layout.tensor_parallel > 1:
        yield from _against_half(layout, evaluation)
    wider = _wider(question, supply, layout)
    if wider is not None and evaluation.fit(wider).verdict == OK:
        yield f"tp{wider.tensor_parallel} would take {_time(evaluation.factors(wider, in_flight).step_time)}."
    if layout.tensor_parallel > 1:
        staged = replace(
            layout,
            tensor_parallel=layout.tensor_parallel // 2,
            pipeline_parallel=layout.pipeline_parallel * 2,
        )
        if staged.pipeline_parallel <= question.model.layers and evaluation.fit(staged).verdict == OK:
            took = _time(evaluation.factors(staged, in_flight).step_time)
            yield f"{_split(staged)} on as many GPUs would take {took}: stages do not shorten a token."
    if layout.pipeline_parallel > 1:
        yield "Predictions with pipeline stages rest on few measurements."


def _against_half(layout: Layout, evaluation: Evaluation) -> Iterator[str]:
    """What a GPU carries here and with half as many per group: splitting costs time, but frees room for KV."""
    half = replace(layout, tensor_parallel=layout.tensor_parallel // 2)
    if evaluation.fit(half).verdict != OK:
        return
    here, there = (evaluation.capacity(each, "screen").load / each.gpus for each in (layout, half))
    if there > 0:
        yield f"Each GPU carries {here / there:.2f} times what it would at tp{half.tensor_parallel}."
    else:
        yield f"At tp{half.tensor_parallel} hardly any load would miss the objectives."


def _batch(candidate: Candidate, here: Factors) -> str:
    assert candidate.latency is not None
    assert candidate.fit is not None
    room = f"{here.in_flight_limit} fit ({candidate.fit.kv_tokens_mid:,} tokens of KV room)"
    if here.in_flight_limited_by != "KV room":
        room = f"maxBatchSize admits {here.in_flight_limit} ({candidate.fit.kv_tokens_mid:,} tokens of KV room)"
    count = f"{candidate.latency.in_flight:.1f}" if candidate.latency.stable else "more and more"
    return (
        f"{count} requests in flight per group at the planned load, {room}; "
        f"from {here.batch_pays_until} in flight on a step takes twice as long as for one, and batching stops paying"
    )


def _bandwidth(question: Question, supply: Supply, candidate: Candidate, evaluation: Evaluation, here: Factors) -> str:
    text = (
        f"{here.weights_share:.0%} of a step reads weights, {here.kv_share:.0%} KV cache; {here.compute_share:.0%} is "
        f"compute, {here.all_reduce_share:.0%} communication, {here.overhead_share:.0%} overhead"
    )
    wider = _wider(question, supply, candidate.layout)
    if wider is None or evaluation.fit(wider).verdict != OK:
        return text
    faster = here.step_time / evaluation.factors(wider, here.in_flight).step_time
    return f"{text}; twice the GPUs have twice the bandwidth, but steps only {faster:.2f} times as fast"


def _failure(question: Question, supply: Supply, candidate: Candidate) -> str:
    layout, groups, needed = candidate.layout, candidate.groups, candidate.needed
    demand = question.demand(layout, supply.pool)
    lost = (
        f"one lost GPU takes down its group of {layout.gpus}" if layout.gpus > 1 else "one lost GPU is one lost group"
    )
    restored = format_duration(FailureModel().failover_seconds)
    if groups == 1:
        return f"{lost}, which is all there is: nothing serves for about {restored}"
    left = f"{groups - 1} of {groups} groups serve on at {candidate.load_after_group_loss:.0%} of what they carry"
    short = "" if groups - 1 >= needed else f", {needed} are needed: short for about {restored}"
    stand = supply.lay_out(demand, groups, needed, question.spec.replica_groups.spread.topology_key)
    domains = supply.domain_of(stand)
    level = supply.pool.spec.failure_domain_key.rpartition("/")[2]
    losses = worst_losses(stand, domains, level)
    if not any(domains.values()):  # an unlabelled node may stand anywhere
        losses.pop(level, None)
    kept = ", ".join(f"any {name} keeps {loss.groups_left}" for name, loss in losses.items())
    return f"{lost}; {left}{short}; losing {kept} of {groups} groups"


def _wider(question: Question, supply: Supply, layout: Layout) -> Layout | None:
    wider = replace(layout, tensor_parallel=2 * layout.tensor_parallel)
    possible = wider.tensor_parallel in tensor_parallels(question.model, supply)
    return wider if possible and wider.gpus <= supply.pool.spec.gpus_per_node else None


def _split(layout: Layout) -> str:
    parts = [f"tp{layout.tensor_parallel}"] if layout.tensor_parallel > 1 else []
    return " ".join([*parts, *([f"pp{layout.pipeline_parallel}"] if layout.pipeline_parallel > 1 else [])])


def _time(seconds: float) -> str:
    return format_duration(seconds)
