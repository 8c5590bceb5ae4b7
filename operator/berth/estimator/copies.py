"""One model copy on its GPUs, as the numbers that memory and step time depend on.

Every field of `ModelCopy` is a number, or an array of the same length in all fields where copies are stacked, so that
one set of formulas serves a planner that looks at one copy and a fit that looks at thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from berth.estimator.hardware import GPUType
from berth.estimator.models import ModelSpec
from berth.estimator.network import all_reduce_table
from berth.estimator.precision import precision as precision_of

Floats = npt.NDArray[np.float64]
Numbers = float | Floats


@dataclass(frozen=True)
class ModelCopy:
    """`tensor_parallel x pipeline_parallel` GPUs that hold one set of weights; bytes and operations per second."""

    layers: Numbers
    hidden: Numbers
    query_width: Numbers
    """Query heads times head size."""
    queries_per_kv: Numbers
    """Query heads that share one key/value head."""
    feed_forward_width: Numbers
    """Intermediate elements of one token: of all its experts and the shared block."""
    dense_parameters: Numbers
    """Weights of one layer that every token uses: attention, router, shared block."""
    expert_parameters: Numbers
    experts: Numbers
    experts_per_token: Numbers
    head_parameters: Numbers
    embedding_parameters: Numbers
    all_reduces: Numbers
    weight_bytes: Numbers
    kv_bytes: Numbers
    """KV cache bytes of one token in one layer on one GPU; heads are replicated where GPUs outnumber them."""
    memory: Numbers
    bandwidth: Numbers
    flops: Numbers
    """Operations per second of the arithmetic that the weights' precision computes in."""
    flops_16bit: Numbers
    link_bandwidth: Numbers
    tensor_parallel: Numbers
    pipeline_parallel: Numbers
    all_reduce: Floats
    """Row of `network.all_reduce_table`."""

    @property
    def gpus(self) -> Numbers:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def stage_layers(self) -> Numbers:
        """Layers of the fullest pipeline stage."""
        return np.ceil(self.layers / self.pipeline_parallel)

    @property
    def layer_parameters(self) -> Numbers:
        return self.dense_parameters + np.maximum(self.experts, 1) * self.expert_parameters

    @property
    def active_layer_parameters(self) -> Numbers:
        return self.dense_parameters + np.maximum(self.experts_per_token, 1) * self.expert_parameters

    @property
    def stage_weights(self) -> Numbers:
        """Bytes of weights on each GPU of the fullest stage, embedding and output head in 16 bit included."""
        body = self.stage_layers * self.layer_parameters * self.weight_bytes
        ends = np.where(self.pipeline_parallel > 1, self.head_parameters, self.embedding_parameters) * 2.0
        result: Numbers = (body + ends) / self.tensor_parallel
        return result

    def layer_bytes_read(self, tokens: Numbers) -> Numbers:
        """Weight bytes of one layer that a pass over `tokens` tokens reads, over all GPUs of the stage."""
        experts = np.maximum(self.experts, 1)
        share = np.where(self.experts > 0, self.experts_per_token / experts, 1.0)
        touched = experts * (1 - (1 - share) ** np.maximum(tokens, 1e-9))
        result: Numbers = (self.dense_parameters + touched * self.expert_parameters) * self.weight_bytes
        return result


def model_copy(
    model: ModelSpec,
    gpu: GPUType,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    precision: str = "bf16",
    kv_precision: str | None = None,
) -> ModelCopy:
    """The copy of `model` on this many GPUs; the KV cache is 16 bit unless said. ValueError for unknown precisions."""
    weights = precision_of(precision)
    kv = precision_of(kv_precision or "bf16")
    kv_heads = max(model.kv_heads / tensor_parallel, 1.0)
    per_token = max(model.experts_per_token, 1)
    return ModelCopy(
        layers=float(model.layers),
        hidden=float(model.hidden),
        query_width=float(model.heads * model.head_dim),
        queries_per_kv=model.heads / model.kv_heads,
        feed_forward_width=float(per_token * model.intermediate + model.shared_intermediate),
        dense_parameters=float(model.attention_parameters + model.shared_parameters),
        expert_parameters=float(model.expert_parameters),
        experts=float(model.experts),
        experts_per_token=float(model.experts_per_token),
        head_parameters=float(model.head_parameters),
        embedding_parameters=float(model.embedding_parameters),
        all_reduces=float(model.all_reduces),
        weight_bytes=weights.weight_bytes,
        kv_bytes=(model.kv_latent or 2 * kv_heads * model.head_dim) * kv.kv_bytes,
        memory=gpu.memory_bytes,
        bandwidth=gpu.bandwidth,
        flops=gpu.flops(weights.arithmetic) or gpu.flops_16bit,
        flops_16bit=gpu.flops_16bit,
        link_bandwidth=gpu.link_bandwidth,
        tensor_parallel=float(tensor_parallel),
        pipeline_parallel=float(pipeline_parallel),
        all_reduce=all_reduce_table(gpu, tensor_parallel),
    )


def stack(copies: Sequence[ModelCopy]) -> ModelCopy:
    """The same fields with one array entry per copy."""
    return ModelCopy(
        **{field.name: np.array([getattr(copy, field.name) for copy in copies]) for field in fields(ModelCopy)}
    )
