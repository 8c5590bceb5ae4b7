"""GPUPool: nodes with the same GPU type, link and price. Cluster-scoped."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from berth.api.common import Conditions, ObjectMeta, Toleration, parse
from berth.api.model import GpuType
from berth.api.quantities import Quantity
from berth.api.schema import (
    QUALIFIED_KEYS,
    DnsLabel,
    Int,
    LabelKey,
    LabelValue,
    ListSet,
    Matches,
    Model,
    Rule,
    Satisfies,
    immutable,
)
from berth.api.status import Count

DEFAULT_NODE_MTBF_DAYS = 47
"""Pessimistic default: MTBF of 8-GPU jobs on Meta's research clusters (arXiv 2410.21680)."""


class AllowedNamespaces(Model):
    """Namespaces whose deployments may use the pool."""

    names: Annotated[tuple[DnsLabel, ...], Field(max_length=256), ListSet()] = ()
    """Names; empty: all namespaces."""


class GPUPoolSpec(Model):
    """Which nodes, which GPUs, at which price."""

    gpu: Annotated[GpuType, Satisfies((immutable("gpu"),))]
    """GPU type, such as H100-SXM-80 or A100-SXM-40; immutable."""
    node_selector: Annotated[dict[str, LabelValue], Field(min_length=1, max_length=16), Satisfies((QUALIFIED_KEYS,))]
    """Labels that all nodes of the pool have; pools must not overlap."""
    resource_name: Annotated[
        str,
        Field(min_length=3, max_length=316),
        Matches(
            "[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
            "must be an extended resource such as nvidia.com/gpu: correct it",
        ),
        Satisfies((immutable("resourceName"),)),
    ]
    """Extended resource that counts the GPUs, such as nvidia.com/gpu; immutable."""
    gpus_per_node: Annotated[Int, Field(ge=1, le=64)]
    """GPUs of one node."""
    interconnect: Literal["NVLink", "NVLinkBridge", "PCIe"] | None = None
    """Link between the GPUs of a node; absent: as usual for the GPU type."""
    price_per_gpu_hour: Annotated[int | str, Quantity("0", "100000", above=True)] | None = Field(
        None, alias="pricePerGPUHour"
    )
    """Price of one GPU for one hour; absent: unknown, cost is then not compared."""
    currency: Annotated[
        str,
        Field(min_length=3, max_length=3),
        Matches("[A-Z]{3}", "must be a currency code such as USD: correct it"),
    ] = "USD"
    """Currency of the price, ISO 4217."""
    billing: Literal["PerGPU", "PerNode", "Reserved"] = "PerGPU"
    """PerGPU: only used GPUs are paid. PerNode: a node with one used GPU is paid whole. Reserved: paid anyway."""
    failure_domain_key: LabelKey = "topology.kubernetes.io/zone"
    """Node label whose value is the node's failure domain."""
    node_mtbf_days: Annotated[Int, Field(ge=1, le=36_500)] = Field(DEFAULT_NODE_MTBF_DAYS, alias="nodeMTBFDays")
    """Mean days between failures of one node."""
    provisioning: Literal["Static", "Autoscaled"] = "Static"
    """Static: nodes exist. Autoscaled: nodes come when pods wait; no scheduling gates and no own capacity check."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Namespaces whose deployments may use the pool; empty: all."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Tolerations the pods need on these nodes."""
    gpu_budget: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Most GPUs Berth may use here; absent: all. With a budget, pods of others are not counted."""


class Gpus(Model):
    """Numbers of GPUs."""

    capacity: Count | None = None
    """GPUs the nodes have."""
    allocatable: Count | None = None
    """GPUs the nodes offer."""
    free: Count | None = None
    """GPUs that nobody uses or has reserved."""
    unhealthy: Count | None = None
    """GPUs the nodes have but do not offer."""


class GPUPoolStatus(Model):
    """What the pool has and what is free."""

    nodes: Count | None = None
    """Nodes that match the selector."""
    healthy_nodes: Count | None = None
    """Nodes that are ready and schedulable."""
    gpus: Gpus | None = None
    """Numbers of GPUs."""
    free_per_node: Annotated[dict[str, Count], Field(max_length=65)] = Field(default_factory=dict)
    """Number of nodes by their free GPUs: {"8": 3, "4": 1}."""
    conditions: Conditions = ()
    """Standard conditions: Overlap, UnsupportedAllocation, EvacuationsFrozen and others."""


class GPUPool(Model):
    """Nodes with the same GPU type, link and price."""

    rules = (
        Rule(
            "size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be at most 63 lower case letters, digits and '-', since it becomes a label: "
            "choose another name",
            lambda pool: re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pool.metadata.name) is not None,
        ),
    )

    api_version: Literal["berth.dev/v1alpha1"] = "berth.dev/v1alpha1"
    kind: Literal["GPUPool"] = "GPUPool"
    metadata: ObjectMeta
    spec: GPUPoolSpec
    """Which nodes, which GPUs, at which price."""
    status: GPUPoolStatus = GPUPoolStatus()
    """What is free; written by Berth alone."""


def parse_gpupool(obj: Any, *, known_fields_only: bool = False) -> GPUPool:
    """Read a GPUPool as stored or written by a person; see `berth.api.common.parse`."""
    return parse(GPUPool, obj, known_fields_only=known_fields_only)
