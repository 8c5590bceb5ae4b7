"""Pools, deployments and a believable toy instead of the estimator, for tests of the search itself.

`Toy` answers at once and its laws are plain: more GPUs carry more, but less than in proportion; batch limits matter a
little and independently of each other; simulation is never better than the screen. All else is drawn from a seed, so
that no ranking is the obvious one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from berth.api.gpupool import GPUPool, parse_gpupool
from berth.api.llmdeployment import LLMDeployment, parse_llmdeployment
from berth.core.nodes import NodeView
from berth.core.placement.layouts import Layout
from berth.core.placement.supply import Supply, supply_of
from berth.core.usage import Usage
from berth.estimator.latency import Bound, Capacity, Latency, Quantiles
from berth.estimator.memory import DOES_NOT_FIT, OK, Fit
from berth.estimator.performance import Factors
from berth.estimator.queueing import Method

ZONE = "topology.kubernetes.io/zone"
CHAT: Mapping[str, Any] = {
    "requestsPerSecond": "5.4",
    "inputTokens": {"mean": 1155, "p95": 4083, "max": 14050},
    "outputTokens": {"mean": 211, "p95": 500, "maxRequested": 1024},
}
PROMISES: Mapping[str, Any] = {"timeToFirstToken": {"p95": "1500ms"}, "timePerOutputToken": {"p95": "50ms"}}
SOURCE: Mapping[str, Any] = {"persistentVolumeClaim": {"claimName": "models"}}
FP8: Mapping[str, Any] = {"name": "fp8", "precision": "fp8", "kvPrecision": "fp8", "source": SOURCE}
BF16: Mapping[str, Any] = {"name": "bf16", "precision": "bf16", "source": SOURCE}


def deployment(
    *,
    model: str = "llama-3.1-70b-instruct",
    variants: Sequence[Mapping[str, Any]] = (FP8, BF16),
    traffic: Mapping[str, Any] = CHAT,
    objectives: Mapping[str, Any] = PROMISES,
    placement: Mapping[str, Any] | None = None,
    **spec: Any,
) -> LLMDeployment:
    return parse_llmdeployment(
        {
            "apiVersion": "berth.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": "llama", "namespace": "team", "uid": "uid"},
            "spec": {
                "model": {"name": model, "variants": list(variants)},
                "traffic": dict(traffic),
                "objectives": dict(objectives),
                "placement": {"mode": "Auto", **(placement or {})},
                **spec,
            },
        }
    )


def pool(name: str = "h100", gpu: str = "H100-SXM-80", price: str | None = "2.99", **spec: Any) -> GPUPool:
    priced = {} if price is None else {"pricePerGPUHour": price}
    return parse_gpupool(
        {
            "apiVersion": "berth.dev/v1alpha1",
            "kind": "GPUPool",
            "metadata": {"name": name},
            "spec": {
                "gpu": gpu,
                "nodeSelector": {"pool": name},
                "resourceName": "nvidia.com/gpu",
                "gpusPerNode": 8,
                **priced,
                **spec,
            },
        }
    )


def nodes(name: str = "h100", count: int = 4, gpus: int = 8, zones: str = "ab") -> list[NodeView]:
    return [
        NodeView(
            f"{name}-{index}",
            {"pool": name, ZONE: zones[index % len(zones)]},
            gpu_capacity=gpus,
            gpu_allocatable=gpus,
            cpu_millicores=256_000,
            memory_bytes=4 * 2**40,
        )
        for index in range(count)
    ]


def supply(
    name: str = "h100",
    gpu: str = "H100-SXM-80",
    price: str | None = "2.99",
    count: int = 4,
    used: Mapping[str, int] | None = None,
    **spec: Any,
) -> Supply:
    """A pool of `count` nodes with 8 GPUs; `used` are GPUs taken by node."""
    taken = {node: Usage(gpus=gpus) for node, gpus in (used or {}).items()}
    return supply_of(pool(name, gpu, price, **spec), "team", nodes(name, count), taken)


@dataclass
class Toy:
    """See the module. Loads are requests per second at the objectives of the tests."""

    seed: int = 0
    slow: Mapping[str, float] = field(default_factory=dict)
    """Factor on the capacity of a pool."""
    noise: float = 0.0
    asked: list[tuple[Layout, Method]] = field(default_factory=list)

    def fit(self, layout: Layout) -> Fit:
        fits = layout.gpus >= (1, 1, 1, 2, 4)[int(5 * self._draw(layout.shape, "gpus"))]
        tokens = 60_000 * layout.gpus if fits else 0
        verdict = (OK, "") if fits else (DOES_NOT_FIT, "does not fit: weights 131.4 GiB, usable 79.6 GiB")
        return Fit(*verdict, 40.0, 1.0, (1.0, 2.0, 5.0), 79.6, 163840.0, tokens, tokens, tokens)

    def capacity(self, layout: Layout, method: Method) -> Capacity:
        self.asked.append((layout, method))
        shape = layout.shape
        load = (0.4 + 0.8 * self._draw(shape, "speed")) * layout.gpus**1.1 * self.slow.get(layout.pool, 1.0)
        if self._draw(shape, "too slow") < 0.1:
            load = 0.0
        load *= 1 + self.noise * (2 * self._draw(shape, "noise") - 1)
        load *= 0.98 + 0.02 * self._draw(replace(layout, max_batch_size=1), "tokens")
        load *= 0.98 + 0.02 * self._draw(replace(layout, max_num_tokens=1), "batch")
        if method == "simulate":
            load *= 0.9 + 0.1 * self._draw(shape, "simulation")
        bound: Bound = "timePerOutputToken"
        return Capacity(load, load, bound, self._at(0.045 if load else 0.06, 1.0))

    def latency(self, layout: Layout, load: float, method: Method) -> Latency:
        most = self.capacity(layout, method).load
        return self._at(0.01 + 0.04 * load / most if most else 0.06, load / most if most else 9.0)

    def factors(self, layout: Layout, in_flight: float) -> Factors:
        share = 0.1 * (layout.gpus > 1)
        return Factors(
            0.02 / layout.gpus, 0.001, share, 0.5, 0.1, 0.2, 0.1, 0.9, round(in_flight), 40, "KV room", 64,
            layout.gpus, "memory bandwidth",
        )  # fmt: skip

    def throughput_band(self, layout: Layout) -> tuple[float, float]:
        return 0.8, 1.2

    @staticmethod
    def _at(tpot: float, utilisation: float) -> Latency:
        first, token = (Quantiles(each / 2, each, each * 2) for each in (10 * tpot, tpot))
        return Latency(first, token, 8.0, utilisation, utilisation, stable=utilisation <= 1)

    def _draw(self, layout: Layout, purpose: str) -> float:
        return _draw(self.seed, layout, purpose)


@cache
def _draw(seed: int, layout: Layout, purpose: str) -> float:
    """A number in 0..1 that depends on all of these and nothing else."""
    return random.Random(f"{seed} {layout} {layout.max_batch_size} {layout.max_num_tokens} {purpose}").random()
