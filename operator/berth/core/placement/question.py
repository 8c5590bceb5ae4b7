"""What a deployment asks of its placement: the part of its spec that decides it, read once and in numbers.

`spec_hash` is over exactly that part. Everything else (pause, moves, drain times, pod settings, images, number of
replicas in Manual scaling, where weights come from) may change without the placement being decided anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal

from berth.api.common import number, seconds
from berth.api.demand import Limits, Traffic
from berth.api.gpupool import GPUPool, GPUPoolSpec
from berth.api.llmdeployment import LLMDeployment, LLMDeploymentSpec
from berth.api.model import Variant
from berth.api.placement import MAX_GROUPS
from berth.api.schema import Model
from berth.core.accept import resolve_model
from berth.core.capacity import Demand
from berth.core.placement.layouts import Layout
from berth.core.render import group_demand
from berth.core.render.names import digest
from berth.errors import InvalidSpec
from berth.estimator.latency import Objectives
from berth.estimator.models import ModelSpec
from berth.estimator.traffic import TokenLengths, TrafficProfile

Prefer = Literal["Cost", "Latency", "Throughput"]
_LENGTH_GRID: Final = 0.1


@dataclass(frozen=True)
class Question:
    """A model, traffic and objectives that look for a placement."""

    deployment: LLMDeployment
    model: ModelSpec
    traffic: TrafficProfile
    objectives: Objectives
    availability: float | None
    """Target in 0..1."""
    _demands: dict[Layout, tuple[GPUPoolSpec, Demand]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def spec(self) -> LLMDeploymentSpec:
        return self.deployment.spec

    def demand(self, layout: Layout, pool: GPUPool) -> Demand:
        """What one group of the layout asks of the pool, which is the same for all loads. Raises InvalidSpec."""
        asked_of, demand = self._demands.get(layout, (None, None))
        if demand is None or asked_of is not pool.spec:
            demand = group_demand(self.deployment, layout.allocation(1), pool)
            self._demands[layout] = pool.spec, demand
        return demand

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.spec.model.variants

    @property
    def prefer(self) -> Prefer:
        return self.spec.objectives.prefer

    @property
    def limits(self) -> Limits:
        return self.spec.objectives.limits

    @property
    def fewest(self) -> int:
        """Groups there are at least, whatever the traffic needs. In Manual scaling the user counts, not the plan."""
        scaling = self.spec.scaling
        return max(scaling.min if scaling.mode == "Auto" else 1, self.spec.replica_groups.min_available, 1)

    @property
    def most(self) -> int:
        """Groups there are at most."""
        scaling = self.spec.scaling
        return scaling.max if scaling.mode == "Auto" and scaling.max is not None else MAX_GROUPS

    @property
    def output_tokens_per_second(self) -> float | None:
        """Generated tokens that open traffic demands per second; closed traffic takes what it gets."""
        rate = self.traffic.requests_per_second
        return None if rate is None else rate * self.traffic.output_tokens.mean


def question(deployment: LLMDeployment) -> Question:
    """Raises InvalidSpec where the spec contradicts itself or the model."""
    spec = deployment.spec
    model = resolve_model(deployment)
    if spec.traffic is None:
        raise InvalidSpec("InvalidSpec", "spec.traffic: required unless placement.mode is Fixed: add it")
    traffic = traffic_profile(spec.traffic)
    longest = spec.traffic.input_tokens.max + spec.traffic.output_tokens.max_requested
    if longest > model.max_context:
        raise InvalidSpec(
            "TrafficExceedsContext",
            f"spec.traffic: the longest prompt and the largest requested answer have {longest} tokens together, "
            f"{model.name} has a context of {model.max_context}: lower inputTokens.max or outputTokens.maxRequested",
        )
    wanted = spec.objectives
    first, token = wanted.time_to_first_token, wanted.time_per_output_token
    bounds = {
        "time_to_first_token": seconds(first.p95) if first else None,
        "time_per_output_token": seconds(token.p95) if token else None,
    }
    return Question(
        deployment=deployment,
        model=model,
        traffic=traffic,
        objectives=Objectives(**{name: bound for name, bound in bounds.items() if bound is not None}),
        availability=number(wanted.availability) if wanted.availability is not None else None,
    )


def traffic_profile(traffic: Traffic) -> TrafficProfile:
    """`spec.traffic` as the estimator reads it. Raises InvalidSpec where its figures contradict each other."""
    prompt, answer = traffic.input_tokens, traffic.output_tokens
    peak_input, peak_output = traffic.peak_input_to_mean, traffic.peak_output_to_mean
    rate = traffic.requests_per_second
    try:
        return TrafficProfile(
            input_tokens=TokenLengths(prompt.mean, prompt.p95, prompt.max, prompt.p99, field="inputTokens"),
            output_tokens=TokenLengths(answer.mean, answer.p95, answer.max_requested, field="outputTokens"),
            requests_per_second=number(rate) if rate is not None else None,
            concurrency=traffic.concurrency,
            peak_to_mean=number(traffic.peak_to_mean),
            peak_input_to_mean=number(peak_input) if peak_input is not None else None,
            peak_output_to_mean=number(peak_output) if peak_output is not None else None,
            cached_input_fraction=number(traffic.cached_input_fraction),
        )
    except ValueError as error:
        raise InvalidSpec("InvalidSpec", f"spec.traffic.{error}") from None


def measured_traffic(
    planned: TrafficProfile, load: float, prompt: float | None, answer: float | None
) -> TrafficProfile:
    """The planned traffic with the measured load and mean lengths (None: unknown); the shape of everything else stays.

    Mean lengths are taken in steps of a tenth: the models are asked anew for another shape, not for every reading.
    """
    prompts, answers = _steps(planned.input_tokens, prompt), _steps(planned.output_tokens, answer)
    return with_load(_with_lengths(planned, prompts, answers), load)


def with_load(traffic: TrafficProfile, load: float) -> TrafficProfile:
    """The same traffic, more or less of it: requests per second, for closed traffic clients."""
    if traffic.closed:
        return replace(traffic, concurrency=max(1, round(load)))
    return replace(traffic, requests_per_second=load)


def _steps(lengths: TokenLengths, mean: float | None) -> int:
    return round(math.log(mean / lengths.mean) / _LENGTH_GRID) if mean is not None and mean > 0 else 0


@lru_cache(maxsize=1024)
def _with_lengths(planned: TrafficProfile, prompts: int, answers: int) -> TrafficProfile:
    """The same object for the same steps: what is remembered of it is found at once."""
    return replace(
        planned,
        input_tokens=_longer(planned.input_tokens, prompts),
        output_tokens=_longer(planned.output_tokens, answers),
    )


def _longer(lengths: TokenLengths, steps: int) -> TokenLengths:
    """By so many steps; what clients may ask for at most stays."""
    if not steps:
        return lengths
    factor = math.exp(steps * _LENGTH_GRID)
    grown = [min(each * factor, lengths.max) for each in (lengths.mean, lengths.p95, lengths.p99 or lengths.p95)]
    try:
        return replace(lengths, mean=grown[0], p95=grown[1], p99=grown[2] if lengths.p99 is not None else None)
    except ValueError:  # such a mean contradicts the longest length
        return lengths


def spec_hash(spec: LLMDeploymentSpec) -> str:
    """10 hexadecimal digits; changes when a change of the spec asks for another decision: see the module."""
    model = spec.model
    return digest(
        {
            "model": {"name": model.name, "architecture": _given(model.architecture)},
            "variants": {variant.name: _given(variant, without={"source"}) for variant in model.variants},
            "backend": spec.engine.backend,
            "traffic": _given(spec.traffic),
            "objectives": _given(spec.objectives),
            "scaling": _given(spec.scaling),
            "minAvailable": spec.replica_groups.min_available,
            "spread": _given(spec.replica_groups.spread),
            "pools": sorted(spec.placement.pools),
        },
        10,
    )


def _given(model: Model | None, without: set[str] | None = None) -> dict[str, Any] | None:
    if model is None:
        return None
    return model.model_dump(mode="json", exclude=without, exclude_defaults=True, exclude_none=True)
