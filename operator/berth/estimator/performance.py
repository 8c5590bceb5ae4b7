"""What the planner asks of one model copy: an engine model for queueing, figures at a load, and the factors behind.

Everything comes as low, mid and high *performance*: `low` has slower steps and less KV room, `high` the opposite. The
bands are the error quantiles of grouped cross-validation, not guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from berth.estimator import batching
from berth.estimator.coefficients import condition, fitted
from berth.estimator.copies import ModelCopy
from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.hardware import GPUType
from berth.estimator.memory import BLOCK_TOKENS, Fit, copy_for_backend, fit, requests_in_flight
from berth.estimator.models import ModelSpec
from berth.estimator.runtimes import BACKENDS
from berth.estimator.steps import Coefficients, StepParts, step_parts

BANDS: Final = ("low", "mid", "high")
REQUEST_OVERHEAD: Final = 0.015
"""Seconds per request outside the engine: network, tokenizer, scheduling. A round guess: published harnesses differ
from below 1 ms (in process) to over 50 ms, and a deployment's own measurements replace it."""


@dataclass(frozen=True)
class Range:
    """Low, mid and high of a figure, low <= mid <= high whatever the figure means."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """One way to run a model: the part of an allocation that decides speed and memory."""

    model: ModelSpec
    gpu: GPUType
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    precision: str = "bf16"
    kv_precision: str | None = None
    backend: str = "pytorch"
    max_batch_size: int = 256
    max_num_tokens: int = 8192

    @property
    def copy(self) -> ModelCopy:
        return copy_for_backend(
            self.model,
            self.gpu,
            self.tensor_parallel,
            self.pipeline_parallel,
            self.precision,
            self.kv_precision,
            self.backend,
        )

    @property
    def coefficients(self) -> Coefficients:
        runtime = BACKENDS[self.backend]
        return fitted().resolve(condition(self.model, self.gpu, self.tensor_parallel, self.precision, runtime))

    def fit(self, tokens_per_request: int = 2048) -> Fit:
        return fit(
            self.model,
            self.gpu,
            self.tensor_parallel,
            self.pipeline_parallel,
            self.precision,
            self.kv_precision,
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_num_tokens,
            backend=self.backend,
            tokens_per_request=tokens_per_request,
        )


def engine_model(candidate: Candidate, band: str = "mid") -> EngineModel:
    """The candidate as queueing and simulation see it, at low, mid or high performance.

    ValueError if it cannot run or has no room for KV: ask `fit` first.
    """
    account = candidate.fit()
    if account.verdict == "unsupported" or not account.kv_tokens(band):
        raise ValueError(account.reason or "no room for KV")
    slowdown = step_slowdown(band)
    copy, coefficients = candidate.copy, candidate.coefficients

    def step(decodes: Floats, context: Floats, prefill: Floats, pairs: Floats) -> Floats:
        result: Floats = slowdown * np.asarray(step_parts(copy, coefficients, decodes, context, prefill, pairs).total)
        return result

    return EngineModel(
        step=step,
        kv_tokens=account.kv_tokens(band),
        max_batch_size=candidate.max_batch_size,
        max_num_tokens=candidate.max_num_tokens,
        request_overhead=REQUEST_OVERHEAD,
        block_tokens=BLOCK_TOKENS,
    )


def step_slowdown(band: str) -> float:
    """Factor on step times for low, mid or high performance."""
    low, high = fitted().errors["tpot"]["known"]
    return float({"low": high, "mid": 1.0, "high": low}[band])


@dataclass(frozen=True)
class Factors:
    """The five factors of a placement at one load, as numbers; times in seconds per token."""

    step_time: float
    all_reduce_time: float
    all_reduce_share: float
    """Communication: share of the step spent waiting for other GPUs."""
    weights_share: float
    """Memory bandwidth: share of the step spent reading weights."""
    kv_share: float
    compute_share: float
    overhead_share: float
    parallel_efficiency: float
    """Tensor against pipeline parallelism: step time on one such GPU / (GPUs x step time), memory permitting."""
    in_flight: int
    in_flight_limit: int
    """Batch: requests that fit at once, and what stops more of them."""
    in_flight_limited_by: str
    batch_pays_until: int
    """Requests at which a step takes twice as long as for one: from there on batching gains less than it costs."""
    gpus: int
    """Failure mode: GPUs whose single loss takes this copy down."""
    limited_by: str


def factors(candidate: Candidate, in_flight: int, prompt: float, output: float, max_output: float) -> Factors:
    """The factors of `candidate` with `in_flight` requests in service, prompts interleaved as in steady state."""
    copy, coefficients = candidate.copy, candidate.coefficients
    room = candidate.fit(int(prompt + max_output)).kv_tokens_mid
    limit = int(requests_in_flight(room, prompt, max_output, candidate.max_batch_size))
    n = max(min(in_flight, limit), 1)
    parts = _mean_step(copy, coefficients, n, prompt, output)
    total = float(parts.total)
    matrices = float(parts.matrices + parts.head)
    memory_side = float(parts.weights) / max(float(parts.weights + parts.compute), 1e-30)
    shares = {
        "memory bandwidth": (matrices * memory_side + float(parts.kv_cache)) / total,
        "compute": (matrices * (1 - memory_side) + float(parts.attention + parts.activations)) / total,
        "communication": float(parts.all_reduce) / total,
        "overhead": float(parts.overhead) / total,
    }
    alone = Candidate(
        candidate.model, candidate.gpu, 1, 1, candidate.precision, candidate.kv_precision, candidate.backend
    )
    single = float(_mean_step(alone.copy, alone.coefficients, n, prompt, output).total)
    gpus = candidate.tensor_parallel * candidate.pipeline_parallel
    batch_limit = limit >= candidate.max_batch_size
    return Factors(
        step_time=total,
        all_reduce_time=float(parts.all_reduce),
        all_reduce_share=shares["communication"],
        weights_share=matrices * memory_side / total,
        kv_share=float(parts.kv_cache) / total,
        compute_share=shares["compute"],
        overhead_share=shares["overhead"],
        parallel_efficiency=single / (gpus * total),
        in_flight=n,
        in_flight_limit=limit,
        in_flight_limited_by="maxBatchSize" if batch_limit else "KV room",
        batch_pays_until=_batch_pays_until(copy, coefficients, prompt + output / 2),
        gpus=gpus,
        limited_by="KV room" if in_flight >= limit and not batch_limit else max(shares, key=lambda name: shares[name]),
    )


def _mean_step(copy: ModelCopy, coefficients: Coefficients, n: float, prompt: float, output: float) -> StepParts:
    prefill = n * prompt / output
    return step_parts(copy, coefficients, float(n), n * (prompt + output / 2), prefill, prefill * (prompt + 1) / 2)


def _batch_pays_until(copy: ModelCopy, coefficients: Coefficients, context: float) -> int:
    batches = np.unique(np.round(np.geomspace(1, 4096, 200)))
    steps = np.asarray(batching.decode_step(copy, coefficients, batches, context))
    return int(batches[np.searchsorted(steps, 2 * steps[0]) - 1])


@dataclass(frozen=True)
class Performance:
    """Closed-form means of one copy with a steady number of requests in flight."""

    in_flight: Range
    output_tokens_per_second: Range
    time_per_output_token: Range
    time_to_first_token: Range
    """Of a request that is admitted at once, request overhead included."""
    limited_by: str


def performance(candidate: Candidate, clients: float, prompt: float, output: float, max_output: float) -> Performance:
    """Means with `clients` requests wanting service (infinite: saturation), seconds and tokens per second."""
    account = candidate.fit(int(prompt + max_output))
    copy, coefficients = candidate.copy, candidate.coefficients
    budget = float(candidate.max_num_tokens)

    def at(band: str) -> tuple[float, float, float, float]:
        limit = requests_in_flight(account.kv_tokens(band), prompt, max_output, candidate.max_batch_size)
        n = max(min(float(limit), clients), 1.0)
        slowdown = step_slowdown(band)
        rate = n / (slowdown * float(batching.iteration_time(copy, coefficients, n, prompt, output, budget)))
        tpot = slowdown * float(batching.time_per_output_token(copy, coefficients, n, prompt, output, budget))
        ttft = (
            slowdown * float(batching.time_to_first_token(copy, coefficients, n, prompt, output, budget))
            + REQUEST_OVERHEAD
        )
        return n, rate, tpot, ttft

    columns = zip(*(at(band) for band in BANDS), strict=True)
    n, rate, tpot, ttft = (Range(min(c), c[1], max(c)) for c in columns)
    known = factors(candidate, int(n.mid), prompt, output, max_output)
    return Performance(n, rate, tpot, ttft, known.limited_by)
