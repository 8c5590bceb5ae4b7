"""Candidates to draw laws over: catalogued models and GPUs, splits that divide the heads, precisions that run."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from berth.estimator.hardware import GPU_TYPES
from berth.estimator.models import catalogue
from berth.estimator.performance import Candidate

MODELS = sorted(catalogue())
GPUS = sorted(GPU_TYPES)


@st.composite
def candidates(draw: st.DrawFn, runnable: bool = True) -> Candidate:
    """With `runnable`, only those that can run and have room for KV."""
    found = Candidate(
        model=catalogue()[draw(st.sampled_from(MODELS))],
        gpu=GPU_TYPES[draw(st.sampled_from(GPUS))],
        tensor_parallel=draw(st.sampled_from([1, 2, 4, 8])),
        pipeline_parallel=draw(st.sampled_from([1, 1, 2, 4])),
        precision=draw(st.sampled_from(["bf16", "fp16", "fp8", "int4-awq"])),
        kv_precision=draw(st.sampled_from([None, "fp8"])),
        backend=draw(st.sampled_from(["pytorch", "tensorrt", "simulated"])),
        max_batch_size=draw(st.sampled_from([1, 16, 256, 1024])),
        max_num_tokens=draw(st.sampled_from([2048, 8192])),
    )
    return fitting(found) if runnable else found


def fitting(candidate: Candidate) -> Candidate:
    """The candidate, on as many GPUs and in such a precision that it certainly runs."""
    account = candidate.fit()
    if account.verdict == "ok":
        return candidate
    return replace(
        candidate,
        model=catalogue()["llama-3.1-8b"],
        gpu=candidate.gpu if candidate.gpu.compute_capability >= 8 else GPU_TYPES["A100-SXM-40"],
        tensor_parallel=min(candidate.tensor_parallel, 8 if candidate.gpu.memory_gib > 30 else 4),
        pipeline_parallel=max(candidate.pipeline_parallel, 2),
        precision="bf16",
        kv_precision=None,
    )
