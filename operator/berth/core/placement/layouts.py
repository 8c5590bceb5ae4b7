"""Ways to run one model copy: pool x variant x tensor parallel x pipeline parallel x batch limits.

What is searched:
- tensor parallelism in powers of two that divide the attention heads, divide or are a multiple of the KV heads, and
  stay inside a node and inside the GPUs that its link joins;
- pipeline parallelism where tensor parallelism cannot go: over links slower than NVLink, and over nodes when no copy
  fits one node (`across_nodes`), or where the variant was built for it;
- batch limits in two steps: every layout is compared with `FIRST_LIMITS`, finalists try `TOKEN_BUDGETS`, then
  `BATCH_SIZES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from berth.api.model import Variant
from berth.api.placement import Allocation, CopyShape
from berth.core.placement.supply import Supply
from berth.estimator.hardware import NVLINK
from berth.estimator.models import ModelSpec

BATCH_SIZES: Final = (8, 16, 32, 64, 128, 256, 512)
TOKEN_BUDGETS: Final = (2048, 8192)
FIRST_LIMITS: Final = (256, 2048)
"""Large enough not to bind, with the smaller activations of the smaller budget."""
_TENSOR_PARALLEL: Final = (1, 2, 4, 8, 16, 32, 64)
_PIPELINE_PARALLEL: Final = (2, 4, 8)


@dataclass(frozen=True, order=True)
class Layout:
    """How one copy runs. Hashable: the key under which everything about it is remembered; ordered, to settle ties."""

    pool: str
    variant: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_batch_size: int = FIRST_LIMITS[0]
    max_num_tokens: int = FIRST_LIMITS[1]

    @classmethod
    def of(cls, shape: CopyShape) -> Layout:
        """The layout of an allocation; absent batch limits are the engine's own, which are large."""
        return cls(
            shape.pool,
            shape.variant,
            shape.tensor_parallel,
            shape.pipeline_parallel,
            shape.max_batch_size or BATCH_SIZES[-1],
            shape.max_num_tokens or TOKEN_BUDGETS[-1],
        )

    @property
    def gpus(self) -> int:
        """GPUs of one group: what one fault takes down."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def shape(self) -> Layout:
        """The same without its batch limits."""
        return replace(self, max_batch_size=FIRST_LIMITS[0], max_num_tokens=FIRST_LIMITS[1])

    def allocation(self, groups: int) -> Allocation:
        values: dict[str, Any] = {field: getattr(self, field) for field in CopyShape.model_fields}
        return Allocation(**values, groups=groups)

    def __str__(self) -> str:
        text = f"{self.pool} {self.variant} tp{self.tensor_parallel}"
        return f"{text} pp{self.pipeline_parallel}" if self.pipeline_parallel > 1 else text


def in_one_node(model: ModelSpec, supply: Supply, variant: Variant) -> Iterator[Layout]:
    """Layouts whose copy stands on one node."""
    per_node = supply.pool.spec.gpus_per_node
    slow_link = supply.gpu.link != NVLINK
    for tensor in tensor_parallels(model, supply):
        stages = (1, *_PIPELINE_PARALLEL) if slow_link or variant.pipeline_parallel else (1,)
        for pipeline in stages:
            if tensor * pipeline <= per_node and pipeline <= model.layers and _built_for(variant, tensor, pipeline):
                yield Layout(supply.name, variant.name, tensor, pipeline)


def across_nodes(model: ModelSpec, supply: Supply, variant: Variant) -> Iterator[Layout]:
    """Layouts over several nodes, each filled by tensor parallelism; for models that fit no single one."""
    per_node = supply.pool.spec.gpus_per_node
    widest = max(tensor_parallels(model, supply), default=0)
    for pipeline in _PIPELINE_PARALLEL:
        if widest * pipeline > per_node and pipeline <= model.layers and _built_for(variant, widest, pipeline):
            yield Layout(supply.name, variant.name, widest, pipeline)


def tensor_parallels(model: ModelSpec, supply: Supply) -> list[int]:
    """Degrees of tensor parallelism that split the model evenly and stay where GPUs are close to each other."""
    widest = min(supply.pool.spec.gpus_per_node, supply.gpu.link_domain)
    return [
        tensor
        for tensor in _TENSOR_PARALLEL
        if tensor <= widest
        and model.heads % tensor == 0
        and max(tensor, model.kv_heads) % min(tensor, model.kv_heads) == 0
    ]


def _built_for(variant: Variant, tensor: int, pipeline: int) -> bool:
    return variant.tensor_parallel in (None, tensor) and variant.pipeline_parallel in (None, pipeline)
