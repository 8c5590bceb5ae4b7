"""GPUPools from node labels: what GPU feature discovery wrote becomes one pool per product and number of GPUs.

Nothing is guessed: a node whose GPUs are shared, partitioned or unknown is left out with the reason, and a price that
is not known is left open. Labels: NVIDIA's GPU feature discovery (`nvidia.com/gpu.product`, `.count`, `.memory`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from berth import labels
from berth.api.gpupool import GPUPoolSpec
from berth.core import quantities
from berth.core.nodes import NodeView, Taint, node_view
from berth.core.pools import COUNT_LABEL, PRODUCT_LABEL, gpu_type_of
from berth.estimator import hardware

RESOURCE_NAME: Final = "nvidia.com/gpu"
_BILLING: Final = get_args(GPUPoolSpec.model_fields["billing"].annotation)


@dataclass(frozen=True)
class Price:
    """What one GPU costs for one hour; `source` is said wherever the price is shown."""

    per_gpu_hour: str
    currency: str = "USD"
    billing: str | None = None
    source: str = ""


_LAMBDA: Final = "list price of Lambda, 2026-09-20"
LIST_PRICES: Final[Mapping[str, Price]] = {
    # On-demand, per GPU of the largest instance: https://lambda.ai/instances, read 2026-09-20. One provider only, so
    # that the ratios between types are those of one market; types it does not list stay without a price.
    "B200-SXM-180": Price("6.69", source=_LAMBDA),
    "H100-SXM-80": Price("3.99", source=_LAMBDA),
    "H100-PCIe-80": Price("3.29", source=_LAMBDA),
    "GH200-96": Price("2.29", source=_LAMBDA),
    "A100-SXM-80": Price("2.79", source=_LAMBDA),
    "A100-SXM-40": Price("1.99", source=_LAMBDA),
    "A10-24": Price("1.29", source=_LAMBDA),
    "RTX-A6000-48": Price("1.09", source=_LAMBDA),
    "V100-SXM-16": Price("0.79", source=_LAMBDA),
}


@dataclass(frozen=True)
class FoundPool:
    """One proposed GPUPool, where its price comes from, and what a person should look at."""

    manifest: Mapping[str, Any]
    nodes: tuple[str, ...]
    price_source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """The proposed pools by name, and the nodes with GPUs that are in none of them, with the reason."""

    pools: tuple[FoundPool, ...]
    left_out: Mapping[str, str]


def parse_prices(raw: Any) -> dict[str, Price]:
    """A price table: GPU type -> price, or -> {pricePerGPUHour, currency, billing}.

    Raises ValueError that names the entry and what is wrong with it.
    """
    if not isinstance(raw, Mapping):
        raise ValueError('the price table must map GPU types to prices, such as H100-SXM-80: "2.49"')
    prices = {}
    for name, entry in raw.items():
        if name not in hardware.GPU_TYPES:
            raise ValueError(f"{name}: not a known GPU type: use one of {', '.join(hardware.GPU_TYPES)}")
        fields = entry if isinstance(entry, Mapping) else {"pricePerGPUHour": entry}
        unknown = sorted(str(field) for field in fields if field not in ("pricePerGPUHour", "currency", "billing"))
        if unknown:
            raise ValueError(f"{name}: unknown field {unknown[0]}: use pricePerGPUHour, currency, billing")
        amount = fields.get("pricePerGPUHour")
        try:
            valid = not isinstance(amount, bool) and 0 < quantities.parse(amount or 0) <= 100_000
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{name}: pricePerGPUHour must be above 0 and at most 100000, got {amount!r}")
        currency, billing = str(fields.get("currency", "USD")), fields.get("billing")
        if not (len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()):
            raise ValueError(f"{name}: currency must be three capital letters such as USD, got {currency!r}")
        if billing is not None and billing not in _BILLING:
            raise ValueError(f"{name}: billing must be one of {', '.join(_BILLING)}, got {billing!r}")
        prices[str(name)] = Price(str(amount), currency, billing, "your price table")
    return prices


def discover(nodes: Iterable[Mapping[str, Any]], prices: Mapping[str, Price] = LIST_PRICES) -> Discovery:
    """Propose GPUPools for raw Kubernetes nodes. Raises ValueError when a node's quantities cannot be read."""
    found: dict[tuple[str, str, int], list[NodeView]] = {}
    left_out: dict[str, str] = {}
    for raw in nodes:
        node = node_view(raw, RESOURCE_NAME)
        if PRODUCT_LABEL not in node.labels:
            if node.gpu_capacity:
                left_out[node.name] = (
                    f"offers {RESOURCE_NAME} but has no label {PRODUCT_LABEL}: run GPU feature discovery"
                )
            continue
        try:
            gpu = gpu_type_of(node.labels)
        except ValueError as error:
            left_out[node.name] = str(error)
            continue
        assert gpu is not None
        count = _gpus_of(node)
        if count == 0:
            left_out[node.name] = f"has no GPUs by label {COUNT_LABEL} and by its capacity"
            continue
        found.setdefault((gpu, node.labels[PRODUCT_LABEL], count), []).append(node)

    kinds = sorted(found)
    pools = []
    for kind in kinds:
        gpu, product, _count = kind
        several_counts = sum((g, p) == (gpu, product) for g, p, _ in kinds) > 1
        products = sorted({p for g, p, _ in kinds if g == gpu})
        pools.append(_propose(kind, found[kind], prices.get(gpu), several_counts, products.index(product)))
    return Discovery(tuple(pools), left_out)


def _gpus_of(node: NodeView) -> int:
    count = node.labels.get(COUNT_LABEL, "")
    return int(count) if count.isdecimal() else node.gpu_capacity


def _propose(
    kind: tuple[str, str, int], nodes: Sequence[NodeView], price: Price | None, several_counts: bool, product_index: int
) -> FoundPool:
    gpu, product, count = kind
    selector = {PRODUCT_LABEL: product}
    name = pool_name(gpu)
    if product_index:
        name += f"-{product_index + 1}"
    if several_counts:
        name += f"-x{count}"
        selector[COUNT_LABEL] = str(count)
    spec: dict[str, Any] = {
        "gpu": gpu,
        "nodeSelector": selector,
        "resourceName": RESOURCE_NAME,
        "gpusPerNode": count,
        "interconnect": hardware.gpu(gpu).link,
    }
    notes = []
    if price is None:
        notes.append(f"no list price is known for {gpu}: set pricePerGPUHour or pass --prices")
    else:
        spec |= {"pricePerGPUHour": price.per_gpu_hour, "currency": price.currency}
        spec |= {"billing": price.billing} if price.billing else {}
    taints = {taint for node in nodes for taint in node.taints}
    if any(taint.key == RESOURCE_NAME for taint in taints):
        spec["tolerations"] = [{"key": RESOURCE_NAME, "operator": "Exists"}]
    notes += [
        f"nodes have taint {taint}: add a toleration if Berth may use them"
        for taint in sorted(taints, key=str)
        if _is_choice(taint)
    ]
    silent = [node.name for node in nodes if node.ready and not node.gpu_capacity]
    if silent:
        notes.append(f"{', '.join(silent)}: GPUs are not offered as {RESOURCE_NAME} (no device plugin, or DRA)")
    manifest = {"apiVersion": labels.API_VERSION, "kind": "GPUPool", "metadata": {"name": name}, "spec": spec}
    return FoundPool(manifest, tuple(sorted(node.name for node in nodes)), price.source if price else "", tuple(notes))


def _is_choice(taint: Taint) -> bool:
    """A taint somebody set on purpose; Kubernetes' own come and go with the state of the node."""
    own = taint.key.startswith("node.kubernetes.io/") or taint.key == RESOURCE_NAME
    return not own and taint.effect in ("NoSchedule", "NoExecute")


def pool_name(gpu: str) -> str:
    """A short name for the pool of a GPU type: h100, h100-pcie, a100-40.

    SXM is the usual form and goes unsaid, memory only where the type exists with several sizes.
    """
    form, _, memory = gpu.rpartition("-")
    sizes = sum(other.rpartition("-")[0] == form for other in hardware.GPU_TYPES)
    parts = [part for part in form.split("-") if part != "SXM"] + ([memory] if sizes > 1 else [])
    return "-".join(parts).lower()
