"""Allocations: which copies of a model run where. Shared by the spec, the status and ReplicaGroups."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from berth.api.common import KvPrecision, Precision
from berth.api.schema import DnsLabel, Int, Model, Rule

MAX_GROUPS = 1000
"""Most replica groups of one deployment."""
MAX_GPUS_PER_COPY = 256
"""Most GPUs of one model copy, tensorParallel x pipelineParallel."""

PoolName = DnsLabel
VariantName = DnsLabel
Parallelism = Annotated[Int, Field(ge=1, le=64)]


class CopyShape(Model):
    """How one model copy is laid out, without the number of copies."""

    rules = (
        Rule(
            f"(has(self.tensorParallel) ? self.tensorParallel : 1) * "
            f"(has(self.pipelineParallel) ? self.pipelineParallel : 1) <= {MAX_GPUS_PER_COPY}",
            f"tensorParallel x pipelineParallel must be at most {MAX_GPUS_PER_COPY} GPUs: lower one of them",
            lambda shape: shape.gpus <= MAX_GPUS_PER_COPY,
        ),
        Rule(
            "!has(self.maxNumTokens) || !has(self.maxBatchSize) || self.maxNumTokens >= self.maxBatchSize",
            "maxNumTokens must not be below maxBatchSize, since each running request generates one token per step: "
            "raise maxNumTokens or lower maxBatchSize",
            lambda shape: (
                not shape.max_num_tokens or not shape.max_batch_size or shape.max_num_tokens >= shape.max_batch_size
            ),
        ),
    )

    pool: PoolName
    """GPUPool the groups run on."""
    variant: VariantName
    """Variant of the model that is served, by name."""
    tensor_parallel: Parallelism = 1
    """GPUs that share every layer; must divide the attention heads and stay inside a node."""
    pipeline_parallel: Parallelism = 1
    """Stages the layers are split into; may cross nodes."""
    max_batch_size: Annotated[Int, Field(ge=1, le=65_536)] | None = None
    """Most requests in flight per group; absent: resolved once per revision."""
    max_num_tokens: Annotated[Int, Field(ge=1, le=1_048_576)] | None = None
    """Most prompt and generated tokens of one engine step; absent: resolved once per revision."""

    @property
    def gpus(self) -> int:
        """GPUs of one model copy."""
        return self.tensor_parallel * self.pipeline_parallel


class Allocation(CopyShape):
    """A number of equal groups on one pool."""

    groups: Annotated[Int, Field(ge=1, le=MAX_GROUPS)] = 1
    """Replica groups, that is copies of the model."""


class DecidedAllocation(Allocation):
    """An allocation in status, with what follows from its variant."""

    precision: Precision | None = None
    """Precision of the weights."""
    kv_precision: KvPrecision | None = None
    """Precision of the KV cache."""
