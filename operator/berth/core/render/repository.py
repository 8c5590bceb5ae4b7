"""The ConfigMap of a group: Triton's model repository and the engine library, as the pods mount them.

Invariants: immutable and named by its content, so an operator upgrade cannot change what a running group reads;
files keep the paths the launcher's contract fixes (docs/designs/006-launcher.md), keys are flat because ConfigMaps are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from berth.api.common import Backend
from berth.api.llmdeployment import LLMDeployment
from berth.api.model import Variant
from berth.api.placement import Allocation
from berth.core.accept import resolve_model
from berth.engine import bundle
from berth.errors import InvalidSpec
from berth.estimator.models import ModelSpec
from berth.estimator.precision import precision

LIBRARY: Final = bundle.LIBRARY_PATH
REPOSITORY: Final = bundle.REPOSITORY_PATH
MODELS: Final = REPOSITORY.rpartition("/")[0]
MODEL_CONFIG: Final = f"{REPOSITORY}/{bundle.MODEL_CONFIG}"
WEIGHTS: Final = "/weights"
RAY_PORT: Final = 6379

KV_CACHE_FRACTION: Final = 0.9
"""Share of the GPU memory left after loading that becomes KV cache; TensorRT-LLM's own default."""


def key(path: str) -> str:
    """The ConfigMap key of the file at `path` in the container."""
    return bundle.config_map_key(path.removeprefix("/"))


def files(engine_files: Mapping[str, str], model_config: Mapping[str, Any]) -> dict[str, str]:
    """Content by path in the container: the engine library, Triton's model, and this model's configuration (JSON)."""
    text = json.dumps(model_config, indent=1, sort_keys=True) + "\n"
    return {**dict(sorted(engine_files.items())), MODEL_CONFIG: text}


def items(paths: Mapping[str, str], folder: str) -> list[dict[str, str]]:
    """`items` of a ConfigMap volume mounted at `folder`: its files, at their places below it."""
    prefix = f"{folder}/"
    return [{"key": key(path), "path": path.removeprefix(prefix)} for path in paths if path.startswith(prefix)]


def model_configuration(
    deployment: LLMDeployment, variant: Variant, allocation: Allocation, gpu: str, members: int
) -> dict[str, Any]:
    """Content of model.yaml for the variant's backend."""
    backend: Backend = variant.backend or deployment.spec.engine.backend
    model = resolve_model(deployment)
    content: dict[str, Any] = {"limits": _limits(deployment, model)}
    if backend == "simulated":
        return content | {"engine": "simulated", "simulated": simulated_options(model, variant, allocation, gpu)}
    content |= {"engine": "tensorrt_llm", "llm": _llm(backend, variant, allocation, members)}
    if members > 1 and deployment.spec.engine.multi_node.launcher == "Ray":
        content["llm"]["orchestrator_type"] = "ray"
        content["ray"] = {"port": RAY_PORT, "nodes": members, "gpus_per_node": allocation.gpus // members}
    return content


def _limits(deployment: LLMDeployment, model: ModelSpec) -> dict[str, int]:
    """What one request may ask for; without traffic the engine's own limit for answers holds."""
    limits = {"max_input_tokens": model.max_context}
    if deployment.spec.traffic is not None:
        limits["max_output_tokens"] = deployment.spec.traffic.output_tokens.max_requested
    return limits


def _llm(backend: Backend, variant: Variant, allocation: Allocation, members: int) -> dict[str, Any]:
    """Arguments of `tensorrt_llm.LLM`; what a built engine has fixed is left to it."""
    cache: dict[str, Any] = {"enable_block_reuse": True, "free_gpu_memory_fraction": KV_CACHE_FRACTION}
    arguments: dict[str, Any] = {
        **_weights(backend, variant),
        "backend": backend,
        "tensor_parallel_size": allocation.tensor_parallel,
        "pipeline_parallel_size": allocation.pipeline_parallel,
        "gpus_per_node": allocation.gpus // members,
        "kv_cache_config": cache,
    }
    if backend == "pytorch":
        cache["dtype"] = "fp8" if variant.kv_precision == "fp8" else "auto"
        arguments["enable_chunked_prefill"] = True
    if allocation.max_batch_size is not None:
        arguments["max_batch_size"] = allocation.max_batch_size
    if allocation.max_num_tokens is not None:
        arguments["max_num_tokens"] = allocation.max_num_tokens
    return arguments


def _weights(backend: Backend, variant: Variant) -> dict[str, str]:
    claim, hub = variant.source.persistent_volume_claim, variant.source.hugging_face
    if claim is not None:
        return {"model": f"{WEIGHTS}/{claim.path}" if claim.path else WEIGHTS}
    if hub is None or backend == "tensorrt":
        raise InvalidSpec(
            "InvalidSpec",
            f"spec.model.variants: {variant.name} has built engines (backend tensorrt), which live on a volume: "
            "give source.persistentVolumeClaim",
        )
    return {"model": hub.repository, **({"revision": hub.revision} if hub.revision else {})}


def simulated_options(model: ModelSpec, variant: Variant, allocation: Allocation, gpu: str) -> dict[str, Any]:
    """The copy as the simulated engine is told of it."""
    weights = precision(variant.precision)
    # Embeddings and the output head stay in 16 bit under every precision.
    weight_bytes = model.body_parameters * weights.weight_bytes + model.embedding_parameters * 2
    kv_bytes = model.kv_bytes_per_token(precision(variant.effective_kv_precision).kv_bytes)
    parameters = {
        "model": model.name,
        "parameters_b": round(model.parameters / 1e9, 3),
        "active_parameters_b": round((model.active_parameters + model.embedding_parameters) / 1e9, 3),
        "precision": variant.precision,
        "gpu": gpu,
        "tensor_parallel": allocation.tensor_parallel,
        "pipeline_parallel": allocation.pipeline_parallel,
        "weight_gib": round(weight_bytes / 2**30, 3),
        "kv_bytes_per_token": round(kv_bytes),
        "max_batch_size": allocation.max_batch_size,
        "max_num_tokens": allocation.max_num_tokens,
    }
    return {name: value for name, value in parameters.items() if value is not None}
