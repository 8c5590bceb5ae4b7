"""The same rows predicted by aiconfigurator-core (Apache-2.0), where it is installed: an optional second opinion.

    pip install '.[second-opinion]'

It interpolates measured kernels and knows no A100-40, few models, and current runtime versions only. Models whose
geometry it would have to download are left out: nothing is fetched.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from functools import cache
from typing import Any

from berth.estimator.published import CLOSED, SATURATED, STATIC, Measurement

_MODELS = {
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.3-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama/Meta-Llama-3.1-405B",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
_SYSTEMS = {
    "H100-SXM-80": "h100_sxm",
    "H200-SXM-141": "h200_sxm",
    "A100-SXM-80": "a100_sxm",
    "L40S-48": "l40s",
    "B200-SXM-180": "b200_sxm",
}
_BACKENDS = {"trtllm": "trtllm", "vllm": "vllm", "sglang": "sglang"}
_TOKEN_BUDGET = 8192


def available() -> bool:
    return importlib.util.find_spec("aiconfigurator_core") is not None


def predict(m: Measurement, in_flight: float) -> float:
    """Its prediction in the unit of the row, with the in-flight requests of ours; NaN where it has none."""
    model, system, backend = _MODELS.get(m.model.name), _SYSTEMS.get(m.gpu.name), _BACKENDS.get(m.runtime.family)
    if not (model and system and backend) or m.load not in (STATIC, CLOSED, SATURATED) or m.percentile:
        return math.nan
    try:
        engine = _engine(model, system, backend, m.tensor_parallel, m.pipeline_parallel, m.precision, m.kv_precision)
        row = _run(engine, int(in_flight), int(m.prompt), int(m.output), m.load == STATIC or m.clients == 1)
    except Exception as error:  # a missing table or model of a foreign package is no result, whatever it raises
        logging.getLogger(__name__).debug("no second opinion: %s", error)
        return math.nan
    if m.quantity == "throughput":
        return float(row["tokens/s"]) * m.scale
    seconds = {"ttft": row["ttft"], "tpot": row["tpot"], "e2e": row["ttft"] + row["tpot"] * (m.output - 1)}
    return float(seconds[m.quantity]) * 1e-3 * m.scale


@cache
def _engine(model: str, system: str, backend: str, tp: int, pp: int, precision: str, kv_precision: str) -> Any:
    """One backend object per configuration: a shared one answers for another tensor parallelism."""
    logging.disable(logging.WARNING)
    sdk = importlib.import_module
    common = sdk("aiconfigurator_core.sdk.common")
    config = sdk("aiconfigurator_core.sdk.config")
    modes = {"fp8": "fp8", "bf16": "bfloat16", "fp16": "bfloat16", "int8": "int8_wo", "int4-awq": "int4_wo"}
    kv_mode = {"fp8": "fp8", "int8": "int8"}.get(kv_precision, "bfloat16")
    settings = config.ModelConfig(
        tp_size=tp,
        pp_size=pp,
        gemm_quant_mode=common.GEMMQuantMode[modes[precision]],
        kvcache_quant_mode=common.KVCacheQuantMode[kv_mode],
        fmha_quant_mode=common.FMHAQuantMode["bfloat16"],
    )
    return (
        sdk("aiconfigurator_core.sdk.backends.factory").get_backend(backend),
        sdk("aiconfigurator_core.sdk.models").get_model(model, settings, backend),
        sdk("aiconfigurator_core.sdk.perf_database").get_database(system, backend, "current"),
        config,
    )


def _run(engine: Any, batch: int, prompt: int, output: int, static: bool) -> Any:
    backend, model, database, config = engine
    load = config.RuntimeConfig(batch_size=batch, isl=prompt, osl=output)
    if static:
        summary = backend.run_static(model, database, load, "static")
    else:
        summary = backend.run_agg(model, database, load, ctx_tokens=_TOKEN_BUDGET)
    return summary.get_summary_df().iloc[0]
