"""Engine models of Llama-3.1-70B from the closed forms of the performance model, for tests of queueing alone.

Deliberately independent of `berth.estimator`'s own performance model: tests of queueing must not move when its
coefficients do. Hardware figures are the vendors' data sheets; all-reduce times are those that NVIDIA measured for
TensorRT-LLM's kernel, here as latency plus bytes over bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from berth.estimator.engine_model import EngineModel, Floats

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 80, 8192, 64, 8, 128, 128_256
BODY = 68.45e9
GIB = 2**30


@dataclass(frozen=True)
class DenseStep:
    """Step time of a 70B on `tp` GPUs: weights and KV reads, matrix products, all-reduces, per-layer overhead."""

    tp: int
    bandwidth: float
    flops: float
    flops16: float
    prefill_efficiency: float
    weight_bytes: float
    kv_bytes: float
    reduce_latency: float
    reduce_bandwidth: float

    def __call__(self, decodes: Floats, context: Floats, prefill: Floats, pairs: Floats) -> Floats:
        read = (self.weight_bytes * BODY + 2.0 * VOCABULARY * HIDDEN) / (self.tp * self.bandwidth * 0.81)
        attention = context * (2 * LAYERS * KV_HEADS * HEAD_SIZE * self.kv_bytes) / (self.tp * self.bandwidth * 0.81)
        decode_math = 2 * decodes * (BODY + VOCABULARY * HIDDEN) / (self.tp * self.flops * 0.43)
        prefill_math = 2 * prefill * BODY / (self.tp * self.flops * self.prefill_efficiency)
        prefill_attention = 4 * pairs * LAYERS * HEADS * HEAD_SIZE / (self.tp * self.flops16 * 0.67)
        matrices = np.hypot(read, decode_math + prefill_math)
        message = (decodes + prefill) * HIDDEN * 2.0
        reduce = 2 * LAYERS * (self.reduce_latency + message / self.reduce_bandwidth) if self.tp > 1 else 0.0
        return np.asarray(matrices + attention + prefill_attention + reduce + LAYERS * 64e-6 + decodes * 8.1e-6)


def _engine(step: DenseStep, memory_gib: float, *, max_batch_size: int = 256) -> EngineModel:
    weights = (step.weight_bytes * BODY + 4.0 * VOCABULARY * HIDDEN) / step.tp
    room = 0.95 * (memory_gib * GIB - weights - 3.5 * GIB)
    kv = 2 * LAYERS * KV_HEADS * HEAD_SIZE * step.kv_bytes / step.tp
    return EngineModel(
        step=step,
        kv_tokens=int(room / kv),
        max_batch_size=max_batch_size,
        max_num_tokens=8192,
        request_overhead=0.03,
    )


def h100_fp8(tp: int) -> EngineModel:
    """Llama-3.1-70B in FP8 with FP8 KV on `tp` H100 SXM."""
    return _engine(DenseStep(tp, 3.35e12, 1979e12, 989e12, 0.58, 1, 1, 2.8e-6, 220e9), 79.6)


def a100_40_bf16(tp: int) -> EngineModel:
    """Llama-3.1-70B in BF16 on `tp` A100 SXM with 40 GB."""
    return _engine(DenseStep(tp, 1.555e12, 312e12, 312e12, 0.67, 2, 2, 4.2e-6, 90e9), 39.4)


ENGINES = {
    "H100 TP2 FP8": h100_fp8(2),
    "H100 TP1 FP8": h100_fp8(1),
    "A100-40 TP4 BF16": a100_40_bf16(4),
    "A100-40 TP8 BF16": a100_40_bf16(8),
}
