"""Does a model fit, and how many tokens of KV cache are left: always a range, because the reserve is one.

Per GPU: weights of the fullest pipeline stage + reserve (contexts, communication buffers, fragmentation) + activations
of the largest iteration + KV cache. The engine gives a fraction of what is left to the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from berth.estimator.coefficients import condition, fitted
from berth.estimator.copies import ModelCopy, Numbers, model_copy
from berth.estimator.hardware import GIB, NVLINK, GPUType
from berth.estimator.models import ModelSpec
from berth.estimator.runtimes import BACKENDS

KV_FRACTION: Final = 0.95
"""Share of free memory that engines get for KV cache (`free_gpu_memory_fraction`)."""
BLOCK_TOKENS: Final = 32
"""Tokens per KV block of current TensorRT-LLM."""

OK: Final = "ok"
MARGINAL: Final = "marginal"
DOES_NOT_FIT: Final = "does-not-fit"
UNSUPPORTED: Final = "unsupported"

REQUESTS_TO_FIT: Final = 4
"""A copy fits when this many requests fit its KV cache even at the high reserve."""
RESERVE_SEEN: Final = (0.9 * GIB, 5.1 * GIB)
"""Lowest and highest reserve: runtime generations took 1.5 to 6.5 GiB with their activations, which are 0.6 to 1.4."""


def activation_bytes(copy: ModelCopy, max_num_tokens: Numbers) -> Numbers:
    """Bytes per GPU of the largest iteration's activations: four hidden states, gate and up projection, in 16 bit.

    Reproduces 1.4 GiB (tensor parallel 1) and 0.7 GiB (4) for a 70B at 8192 tokens.
    """
    return 2 * max_num_tokens * (4 * copy.hidden + 2 * copy.feed_forward_width / copy.tensor_parallel)


def kv_tokens(copy: ModelCopy, reserve: Numbers, max_num_tokens: Numbers, fraction: Numbers = KV_FRACTION) -> Numbers:
    """Tokens of KV cache that the whole copy has room for; negative if not even the rest fits."""
    free = copy.memory - copy.stage_weights - reserve - activation_bytes(copy, max_num_tokens)
    return free * np.where(free > 0, fraction, 1.0) / (copy.kv_bytes * copy.stage_layers)


def whole_blocks(tokens: Numbers, block: int = BLOCK_TOKENS) -> Numbers:
    """Tokens rounded up to whole KV blocks, as admission does."""
    return np.ceil(np.asarray(tokens) / block) * block


def requests_in_flight(room: Numbers, prompt: Numbers, max_output: Numbers, max_batch_size: Numbers) -> Numbers:
    """Requests that admission lets in: each reserves prompt + requested maximum output, in whole blocks.

    Source: TensorRT-LLM's default capacity policy, guaranteed no evict.
    """
    return np.clip(np.floor(np.maximum(room, 0) / whole_blocks(prompt + max_output)), 0, max_batch_size)


@dataclass(frozen=True)
class Fit:
    """Verdict and memory account of one copy; GiB are per GPU of the fullest stage, tokens per copy."""

    verdict: str
    """ok, marginal (too few requests fit if the reserve is high), does-not-fit or unsupported."""
    reason: str
    """Why the verdict is not ok; empty if it is."""
    weights_gib: float
    activations_gib: float
    reserve_gib: tuple[float, float, float]
    """Low, mid, high."""
    usable_gib: float
    kv_bytes_per_token: float
    """Of the whole copy, replicated heads included."""
    kv_tokens_low: int
    kv_tokens_mid: int
    kv_tokens_high: int

    def kv_tokens(self, band: str = "mid") -> int:
        return {"low": self.kv_tokens_low, "mid": self.kv_tokens_mid, "high": self.kv_tokens_high}[band]


def fit(
    model: ModelSpec,
    gpu: GPUType,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    precision: str = "bf16",
    kv_precision: str | None = None,
    *,
    max_batch_size: int = 256,
    max_num_tokens: int = 8192,
    backend: str = "pytorch",
    tokens_per_request: int = 2048,
) -> Fit:
    """Whether one copy runs on these GPUs with this backend, and its room for KV.

    `tokens_per_request` (prompt + requested maximum output) decides between ok and marginal. Without `kv_precision`
    the KV cache is 16 bit. ValueError names a precision or backend that is not known.
    """
    copy = copy_for_backend(model, gpu, tensor_parallel, pipeline_parallel, precision, kv_precision, backend)
    reason = unsupported(model, gpu, tensor_parallel, pipeline_parallel, precision, kv_precision, backend)
    runtime = BACKENDS[backend]
    reserve = float(fitted().resolve(condition(model, gpu, tensor_parallel, precision, runtime)).reserve)
    account = account_for(copy, reserve, max_num_tokens)
    if reason:
        return replace(account, verdict=UNSUPPORTED, reason=reason)
    return judge(account, min(max_batch_size, REQUESTS_TO_FIT), tokens_per_request)


def copy_for_backend(
    model: ModelSpec,
    gpu: GPUType,
    tensor_parallel: int,
    pipeline_parallel: int,
    precision: str,
    kv_precision: str | None,
    backend: str,
) -> ModelCopy:
    """The copy as our backend lays it out: built engines keep the whole input embedding on every GPU."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")
    copy = model_copy(model, gpu, tensor_parallel, pipeline_parallel, precision, kv_precision)
    if backend != "tensorrt":
        return copy
    replicated = (copy.tensor_parallel - 1) * copy.head_parameters
    return replace(copy, embedding_parameters=copy.embedding_parameters + replicated)


def unsupported(
    model: ModelSpec,
    gpu: GPUType,
    tensor_parallel: int,
    pipeline_parallel: int,
    precision: str,
    kv_precision: str | None,
    backend: str,
) -> str:
    """Why this split or precision cannot run at all; empty if it can."""
    if tensor_parallel < 1 or model.heads % tensor_parallel:
        return f"tensorParallel {tensor_parallel} does not divide the {model.heads} attention heads of {model.name}"
    if model.kv_heads % tensor_parallel and tensor_parallel % model.kv_heads:
        return f"tensorParallel {tensor_parallel} does not split the {model.kv_heads} key/value heads of {model.name}"
    if tensor_parallel > gpu.link_domain and gpu.link == NVLINK:
        return f"tensorParallel {tensor_parallel} exceeds the {gpu.link_domain} GPUs that {gpu.link} joins"
    if not 1 <= pipeline_parallel <= model.layers:
        return f"pipelineParallel {pipeline_parallel} must be from 1 to the {model.layers} layers of {model.name}"
    return gpu.why_not(precision, backend, kv_precision) or ""


def account_for(copy: ModelCopy, reserve: float, max_num_tokens: float) -> Fit:
    """The memory account of a copy, with verdict ok."""
    activations = float(activation_bytes(copy, max_num_tokens))
    low, mid, high = min(reserve, RESERVE_SEEN[0]), reserve, max(reserve, RESERVE_SEEN[1])
    rooms = [int(kv_tokens(copy, r, max_num_tokens)) for r in (high, mid, low)]
    weights = float(copy.stage_weights)
    return Fit(
        verdict=OK,
        reason="",
        weights_gib=weights / GIB,
        activations_gib=activations / GIB,
        reserve_gib=(low / GIB, mid / GIB, high / GIB),
        usable_gib=float(copy.memory) / GIB,
        kv_bytes_per_token=float(copy.kv_bytes * copy.layers * copy.tensor_parallel),
        kv_tokens_low=max(rooms[0], 0),
        kv_tokens_mid=max(rooms[1], 0),
        kv_tokens_high=max(rooms[2], 0),
    )


def judge(account: Fit, requests: int, tokens_per_request: float) -> Fit:
    """The account with its verdict: do `requests` requests fit at the high reserve, does one at the low one?"""
    needed = float(whole_blocks(tokens_per_request))
    if account.kv_tokens_low >= requests * needed:
        return account
    room = f"usable {account.usable_gib:.1f} GiB"
    if account.kv_tokens_high < needed:
        if account.kv_tokens_high == 0:
            return replace(
                account, verdict=DOES_NOT_FIT, reason=f"does not fit: weights {account.weights_gib:.1f} GiB, {room}"
            )
        reason = f"no request of {tokens_per_request:.0f} tokens fits the KV room of {account.kv_tokens_high} tokens"
        return replace(account, verdict=DOES_NOT_FIT, reason=reason)
    least = f"{account.kv_tokens_low} to {account.kv_tokens_high} tokens of KV room"
    reason = f"{least}, {requests} requests of {tokens_per_request:.0f} need {requests * needed:.0f}"
    return replace(account, verdict=MARGINAL, reason=reason)
