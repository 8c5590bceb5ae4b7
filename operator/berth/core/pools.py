"""What a GPUPool has: which nodes are its own, what is free on them, and when it must not be planned with.

A node belongs to a pool if it carries the labels of `nodeSelector` and, where GPU feature discovery has written a
product, exactly the product of the pool's GPU type: a shared, partitioned or merely similar GPU is not the same GPU.
A node that belongs to two pools makes both unusable, since both would count its GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

from berth.api.gpupool import GPUPool
from berth.core.capacity import free
from berth.core.conditions import Condition, merge
from berth.core.nodes import NodeView, Toleration, has_labels, held_back
from berth.core.stock import Stock
from berth.core.usage import Usage
from berth.estimator import hardware

PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
COUNT_LABEL: Final = "nvidia.com/gpu.count"
MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
REPLICAS_LABEL: Final = "nvidia.com/gpu.replicas"
MIG_PREFIX: Final = "nvidia.com/mig-"
VGPU_LABEL: Final = "nvidia.com/vgpu.present"

OVERLAP: Final = "Overlap"
UNSUPPORTED_ALLOCATION: Final = "UnsupportedAllocation"
PRODUCT_MISMATCH: Final = "ProductMismatch"

_NAMED: Final = 3
_MEMORY_TOLERANCE: Final = 0.1
_OTHER_PRODUCTS: Final = {
    # Drivers before release 470 name the product without the brand.
    "A100-SXM4-40GB": "A100-SXM-40",
    "A100-SXM4-80GB": "A100-SXM-80",
    "A100-PCIE-40GB": "A100-PCIe-40",
    # Written by GPU simulators for Kubernetes.
    "NVIDIA-A100-PCIE-80GB": "A100-PCIe-80",
}
_PRODUCTS: Final = {gpu.product: gpu.name for gpu in hardware.GPU_TYPES.values()} | _OTHER_PRODUCTS


def gpu_type_of(labels: Mapping[str, str]) -> str | None:
    """The GPU type that a node's product label names exactly; None when it has no label.

    Raises ValueError with the reason when the label names something that Berth does not serve on.
    """
    product = labels.get(PRODUCT_LABEL)
    if product is None:
        return None
    if "-MIG-" in product or any(label.startswith(MIG_PREFIX) for label in labels):
        raise ValueError(f"{product} is partitioned (MIG): turn MIG off to serve on whole GPUs")
    if product.endswith("-SHARED") or labels.get(REPLICAS_LABEL, "1") not in ("0", "1"):
        raise ValueError(f"{product} is shared between pods (time-slicing or MPS): turn sharing off")
    if labels.get(VGPU_LABEL) == "true":
        raise ValueError(f"{product} is a virtual GPU: serve on whole GPUs")
    if product not in _PRODUCTS:
        raise ValueError(f"{product} is not a GPU type that Berth knows")
    gpu = hardware.GPU_TYPES[_PRODUCTS[product]]
    memory = labels.get(MEMORY_LABEL, "")
    if memory.isdecimal() and abs(int(memory) / 1024 / gpu.memory_gib - 1) > _MEMORY_TOLERANCE:
        raise ValueError(
            f"{product} has {int(memory) / 1024:.1f} GiB by label {MEMORY_LABEL}, {gpu.name} has {gpu.memory_gib} GiB"
        )
    return gpu.name


def why_namespace_not_allowed(pool: GPUPool, namespace: str) -> str | None:
    """Why deployments of this namespace must not use the pool; None when they may."""
    names = pool.spec.allowed_namespaces.names
    if not names or namespace in names:
        return None
    return (
        f"pool {pool.metadata.name} is not open to namespace {namespace}: "
        "add it to allowedNamespaces.names of the GPUPool or use another pool"
    )


def tolerations_of(pool: GPUPool) -> tuple[Toleration, ...]:
    """The pool's tolerations as the planner reads them."""
    return tuple(Toleration(t.key or "", t.operator, t.value or "", t.effect or "") for t in pool.spec.tolerations)


def why_not_of_pool(pool: GPUPool, node: NodeView) -> str | None:
    """Why a node that the selector matches is still not of this pool; None when it is."""
    try:
        found = gpu_type_of(node.labels)
    except ValueError as error:
        return str(error)
    if found is None or pool.spec.gpu not in hardware.GPU_TYPES or found == pool.spec.gpu:
        return None
    return f"{node.labels[PRODUCT_LABEL]} is {found}, the pool's gpu is {pool.spec.gpu}"


def nodes_of(pool: GPUPool, nodes: Iterable[NodeView]) -> list[NodeView]:
    """The nodes of the pool, by name; `nodes` were read with the pool's `resourceName`."""
    mine = (n for n in nodes if has_labels(n, pool.spec.node_selector) and why_not_of_pool(pool, n) is None)
    return sorted(mine, key=lambda node: node.name)


@dataclass(frozen=True)
class PoolState:
    """A pool as of now. GPU figures are None when the device plugin does not serve its GPUs: unknown is not 0."""

    nodes: tuple[NodeView, ...]
    healthy_nodes: int
    capacity: int | None
    allocatable: int | None
    free: int | None
    unhealthy: int | None
    free_per_node: Mapping[str, int]
    conditions: tuple[Condition, ...]

    def status(self, stored: Mapping[str, Any], generation: int, now: float) -> dict[str, Any]:
        """The `status` to write; `stored` is the one read back, whose other conditions are kept (`now`: Unix time)."""
        mine = {condition.type for condition in self.conditions}
        before = [c for c in stored.get("conditions") or () if isinstance(c, Mapping)]
        kept = [dict(c) for c in before if c.get("type") not in mine]
        gpus = {
            "capacity": self.capacity,
            "allocatable": self.allocatable,
            "free": self.free,
            "unhealthy": self.unhealthy,
        }
        return {
            "nodes": len(self.nodes),
            "healthyNodes": self.healthy_nodes,
            "gpus": {name: count for name, count in gpus.items() if count is not None},
            # An owned map that becomes empty would be applied as null, which the CRD refuses.
            **({"freePerNode": dict(self.free_per_node)} if self.free_per_node else {}),
            "conditions": sorted(
                [*kept, *merge(self.conditions, before, generation, now)], key=lambda c: str(c.get("type"))
            ),
        }


def pool_status(
    pool: GPUPool, all_pools: Iterable[GPUPool], nodes: Sequence[NodeView], used: Mapping[str, Usage]
) -> PoolState:
    """Compute a pool's state from all nodes (read with its `resourceName`) and what is taken on them.

    With a `gpuBudget`, `used` holds only what Berth itself takes.
    """
    mine = nodes_of(pool, nodes)
    tolerations = tolerations_of(pool)
    healthy = [n for n in mine if held_back(n, tolerations) is None]
    silent = _silent(mine)
    served = len(silent) < len(mine) or not mine
    free_gpus = sum(free(n, used).gpus for n in healthy)
    if pool.spec.gpu_budget is not None:
        held = sum(used[n.name].gpus for n in mine if n.name in used)
        free_gpus = min(free_gpus, max(0, pool.spec.gpu_budget - held))
    return PoolState(
        nodes=tuple(mine),
        healthy_nodes=len(healthy),
        capacity=sum(n.gpu_capacity for n in mine) if served else None,
        allocatable=sum(n.gpu_allocatable for n in mine) if served else None,
        free=free_gpus if served else None,
        unhealthy=sum(n.unhealthy_gpus for n in mine) if served else None,
        free_per_node=Stock.of(mine, used).free_per_node(tolerations) if served else {},
        conditions=(
            _overlap(pool, mine, ((other, nodes_of(other, nodes)) for other in all_pools)),
            _unsupported_allocation(pool, silent),
            _product_mismatch(pool, nodes),
        ),
    )


def why_not_usable(
    pool: GPUPool, mine: Sequence[NodeView], theirs: Iterable[tuple[GPUPool, Sequence[NodeView]]]
) -> str | None:
    """Why nothing may be planned in the pool, whose nodes are `mine`; None when it can be used.

    `theirs` are other pools with the nodes of each. What is taken has no part in it, so it is cheap.
    """
    silent = _silent(mine)
    fatal = [_overlap(pool, mine, theirs)]
    if mine and len(silent) == len(mine):
        fatal.append(_unsupported_allocation(pool, silent))
    return next((condition.message for condition in fatal if condition.status), None)


def overlapping(pools: Iterable[GPUPool]) -> dict[str, str]:
    """Of pools whose nodes nobody has looked at: those that overlap whatever the nodes are, and why they must not.

    The same GPUs, and all labels of one `nodeSelector` in the other: each node of the narrower pool is one of both.
    """
    why: dict[str, str] = {}
    for one, other in permutations(pools, 2):
        mine, theirs = (dict(each.spec.node_selector).items() for each in (one, other))
        same_gpus = (one.spec.gpu, one.spec.resource_name) == (other.spec.gpu, other.spec.resource_name)
        if same_gpus and (mine <= theirs or theirs <= mine):
            why[one.metadata.name] = f"nodeSelector takes nodes that pool {other.metadata.name} takes too: narrow it"
    return why


def _silent(nodes: Iterable[NodeView]) -> list[NodeView]:
    """Ready, and no device plugin has told of GPUs."""
    return [node for node in nodes if node.ready and node.gpu_capacity == 0]


def _overlap(
    pool: GPUPool, mine: Sequence[NodeView], theirs: Iterable[tuple[GPUPool, Sequence[NodeView]]]
) -> Condition:
    names = {n.name for n in mine}
    shared: dict[str, list[str]] = {}
    for other, nodes in sorted(theirs, key=lambda each: each[0].metadata.name):
        same = other.metadata.name == pool.metadata.name
        if same or other.spec.resource_name != pool.spec.resource_name or other.metadata.deletion_timestamp:
            continue
        both = [n.name for n in nodes if n.name in names]
        if both:
            shared[other.metadata.name] = both
    if not shared:
        return Condition(OVERLAP, False, "NoOverlap")
    told = "; ".join(f"pool {other} also has {_listed(both)}" for other, both in shared.items())
    return Condition(
        OVERLAP,
        True,
        "NodesInSeveralPools",
        f"{told}: nothing is planned in either until a nodeSelector is narrowed",
    )


def _unsupported_allocation(pool: GPUPool, silent: Sequence[NodeView]) -> Condition:
    if not silent:
        return Condition(UNSUPPORTED_ALLOCATION, False, "DevicePlugin")
    return Condition(
        UNSUPPORTED_ALLOCATION,
        True,
        "NoDevicePlugin",
        f"{_listed([n.name for n in silent])} offer no {pool.spec.resource_name}: their GPUs are served by dynamic "
        "resource allocation, which is not supported, or the device plugin is not running",
    )


def _product_mismatch(pool: GPUPool, nodes: Sequence[NodeView]) -> Condition:
    selected = sorted((n for n in nodes if has_labels(n, pool.spec.node_selector)), key=lambda n: n.name)
    wrong = [f"{n.name}: {why}" for n in selected if (why := why_not_of_pool(pool, n)) is not None]
    if not wrong:
        return Condition(PRODUCT_MISMATCH, False, "ProductsMatch")
    return Condition(
        PRODUCT_MISMATCH, True, "OtherGPU", f"left out: {_listed(wrong, '; ')}: narrow nodeSelector or correct gpu"
    )


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more
