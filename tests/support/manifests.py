"""The deployment that most tests and benchmarks put on a cluster: a small model, placed by its user."""

from __future__ import annotations

from typing import Any

from tests.support.cluster import Manifest


def fixed_deployment(
    name: str, namespace: str, pool: str, *, tp: int = 2, pp: int = 1, groups: int = 2, **spec: Any
) -> Manifest:
    """An LLMDeployment of the simulated engine with placement.mode Fixed; `spec` replaces top-level fields."""
    source = {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}}
    variant = {"name": "bf16", "precision": "bf16", "source": source}
    allocation = {"pool": pool, "variant": "bf16", "tensorParallel": tp, "pipelineParallel": pp, "groups": groups}
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "llama-3.1-8b-instruct", "variants": [variant]},
            "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
            "engine": {"backend": "simulated"},
            **spec,
        },
    }
