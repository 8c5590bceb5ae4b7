"""The fitted coefficients, resolved for one condition: GPU, precision, runtime, kind of model.

A coefficient is a base value times one factor per level that was fitted: `compute` has factors by GPU and arithmetic
and by runtime generation, for example. A level that the data never showed has factor 1, so an unknown GPU or runtime
is predicted by the base. `benchmarks/fit_estimator.py` writes the data file and records what it was fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Final

from berth.estimator.hardware import NVLINK, GPUType
from berth.estimator.models import ModelSpec
from berth.estimator.precision import Precision
from berth.estimator.precision import precision as precision_of
from berth.estimator.runtimes import Runtime, attention_kernel
from berth.estimator.steps import Coefficients

Condition = Mapping[str, str]
"""Kind of level (`gpu`, `generation`, ...) to the level that holds."""

LEVELS: Final[Mapping[str, tuple[str, ...]]] = {
    "bandwidth": ("gpu", "generation", "weights", "scales"),
    "kv_bandwidth": ("gpu", "generation"),
    "compute": ("arithmetic", "generation", "mixture", "scales"),
    "attention_compute": ("gpu", "generation"),
    "softness": (),
    "narrowing": (),
    "ungrouped_attention": ("kernel",),
    "replicated_activations": ("generation",),
    "split_activations": (),
    "all_reduce": ("link",),
    "all_reduce_wait": ("link", "generation"),
    "layer_overhead": ("gpu", "host", "style", "generation", "version"),
    "step_overhead": ("style", "generation"),
    "sequence_overhead": ("style", "generation", "version"),
    "interference": ("generation",),
    "reserve": ("generation",),
}
"""Which kinds of level each coefficient has factors for."""


_BLOCK_SCALED: Final = ("qwen3", "deepseek-v3", "deepseek-r1", "kimi-k2")
"""Models whose FP8 checkpoints have a scale per block of 128 x 128 weights and quantise activations as they come: other
kernels than those of one scale per matrix. Source: the quantization_config of their config.json."""


def condition(model: ModelSpec, gpu: GPUType, tensor_parallel: int, precision: str, runtime: Runtime) -> Condition:
    """The level of every kind that holds for this model on these GPUs under this runtime."""
    chip = gpu.name.split("-")[0]
    weights = precision_of(precision)
    return {
        "gpu": chip,
        "weights": _weights(weights, runtime),
        "scales": "blocks" if weights.name == "fp8" and model.name.startswith(_BLOCK_SCALED) else "",
        "arithmetic": f"{chip}/{weights.arithmetic}",
        "generation": runtime.generation,
        "version": runtime.version,
        "style": runtime.style,
        "host": f"eager/{gpu.architecture}" if runtime.style == "eager" else "",
        "mixture": "experts" if model.experts else "dense",
        "kernel": attention_kernel(runtime, model.heads / model.kv_heads),
        "link": "NVLink" if gpu.link == NVLINK else f"PCIe x{tensor_parallel}",
    }


def _weights(weights: Precision, runtime: Runtime) -> str:
    """Both kinds of int4 run on the same kernels today; early eager runtimes had slow ones of their own for each."""
    if weights.weight_bytes >= 2:
        return ""
    if runtime.style == "eager":
        return f"{weights.name}/eager"
    return weights.name.split("-")[0]


_HIDING: Final = {"eager": 3.0}
"""Launching kernels one by one keeps the host busy while the GPU works: the shorter all but disappears. Engines and
graphs leave gaps on the GPU itself, which add up."""


_PREFILL_FIRST: Final = frozenset({"sglang", "tgi", "vllm-2023", "vllm-2024"})
"""Runtimes that, where they are left as they come, run the prompts that wait before any further step of decoding, and
not in one batch with it (vLLM's documentation of chunked prefill until 0.6, SGLang's of `enable_mixed_chunk`, the calls
of TGI's router)."""


_TRITON_GPTQ: Final = frozenset({"", "tgi-0.9", "tgi-1.0", "tgi-1.1"})
"""Versions of TGI that multiply by GPTQ weights in Triton in two of the four matrices of a layer, those that are split
by column (text-generation-inference, issue 1098: until 1.1.0)."""
_TRITON_LAUNCH: Final = 73e-6
"""Seconds of the host that starting a product takes more in Triton than in PyTorch: 96 against 23 us (triton, issue
459)."""


def structure(condition: Condition) -> Mapping[str, float]:
    """The coefficients that are not fitted: what a runtime does, not how well."""
    gptq = condition["generation"] == "tgi" and condition["weights"] == "int4-gptq/eager"
    return {
        "hiding": _HIDING.get(condition["style"], 1.0),
        "matrix_launches": 2 * _TRITON_LAUNCH if gptq and condition["version"] in _TRITON_GPTQ else 0.0,
        "prompts_apart": float(condition["generation"] in _PREFILL_FIRST),
    }


def lock_step(condition: Condition) -> float:
    """Share of `Coefficients.interference` that such a scheduler leaves in a benchmark of equal requests.

    All requests of a burst decode together and end together, so the next prompts come as a burst again. A request sees
    the prompts that run after its own, on average half of them; the rest is in the time to first token. Where prompts
    and decoding share iterations, those first in a burst get ahead and the burst spreads out.
    """
    return 0.5 if condition["generation"] in _PREFILL_FIRST else 1.0


@dataclass(frozen=True)
class FittedCoefficients:
    """The data file: base values, factors by level, error quantiles, and where all of it comes from."""

    base: Mapping[str, float]
    factors: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Coefficient, kind of level, level: factor."""
    errors: Mapping[str, Any]
    """Quantiles of published/predicted in grouped cross-validation, for low and high."""
    provenance: Mapping[str, Any]

    def resolve(self, condition: Condition) -> Coefficients:
        values = {**self.base, **structure(condition)}
        for name, kinds in self.factors.items():
            for kind, levels in kinds.items():
                values[name] *= levels.get(condition.get(kind, ""), 1.0)
        values["interference"] *= lock_step(condition)
        return Coefficients(**{field.name: values[field.name] for field in fields(Coefficients)})

    def knows(self, runtime: Runtime) -> bool:
        """Whether measurements of this runtime's generation were fitted."""
        return runtime.generation in self.factors["layer_overhead"]["generation"]


@cache
def fitted() -> FittedCoefficients:
    """The coefficients that come with this release."""
    data = json.loads(resources.files("berth.estimator").joinpath("data/coefficients.json").read_text())
    return FittedCoefficients(data["base"], data["factors"], data["errors"], data["provenance"])
