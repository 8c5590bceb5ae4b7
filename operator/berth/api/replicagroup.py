"""ReplicaGroup: one incarnation of a replica group. Written by Berth, read by people.

Created before its pods and their controller; its spec is the capacity reservation and never changes. What changes
(lifecycle, moveID, role) are labels, which survive a wiped status.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from berth.api.common import Conditions, KvPrecision, ObjectMeta, Precision, parse
from berth.api.placement import CopyShape
from berth.api.schema import DnsName, Int, LabelValue, Matches, Model, Rule, Satisfies, immutable
from berth.api.status import Count, Failover, Name, Time, Words

MAX_MEMBERS = 64
MAX_INCARNATION = 1_000_000

GroupState = Literal["Reserved", "Starting", "Warming", "Serving", "Draining", "Failed"]
"""Life of an incarnation; it ends by being deleted."""


class GroupAllocation(CopyShape):
    """The layout of this model copy, with the precisions its variant had when it was created."""

    precision: Precision | None = None
    """Precision of the weights."""
    kv_precision: KvPrecision | None = None
    """Precision of the KV cache."""


class ReplicaGroupSpec(Model):
    """Which copy of the model this is, and the GPUs it holds. Immutable."""

    rules = (
        Rule(
            "(has(self.allocation.tensorParallel) ? self.allocation.tensorParallel : 1) * "
            "(has(self.allocation.pipelineParallel) ? self.allocation.pipelineParallel : 1) % self.members == 0",
            "members must divide tensorParallel x pipelineParallel, since all hold equally many GPUs: correct it",
            lambda spec: spec.allocation.gpus % spec.members == 0,
        ),
        Rule(
            "!has(self.plannedNodes) || size(self.plannedNodes) == 0 || size(self.plannedNodes) == self.members",
            "plannedNodes must name one node per member, or none: correct it",
            lambda spec: len(spec.planned_nodes) in (0, spec.members),
        ),
    )

    group: Annotated[
        str,
        Field(min_length=2, max_length=8),
        Matches("g(0|[1-9][0-9]*)", "must be g0, g1, ...: correct it"),
    ]
    """Group of the deployment: g0, g1, ..."""
    incarnation: Annotated[Int, Field(ge=1, le=MAX_INCARNATION)]
    """Which life of the group this is, from 1."""
    allocation: GroupAllocation
    """Where and how the copy runs."""
    members: Annotated[Int, Field(ge=1, le=MAX_MEMBERS)]
    """Pods of the group."""
    planned_nodes: Annotated[tuple[DnsName, ...], Field(max_length=MAX_MEMBERS)] = ()
    """Node per member, in order; empty where another scheduler or an autoscaler decides."""
    template_hash: Annotated[LabelValue, Field(min_length=1)]
    """Hash of everything that decides the pods' content."""

    @property
    def gpus_per_member(self) -> int:
        """GPUs of each pod."""
        return self.allocation.gpus // self.members


class Evidence(Model):
    """Why an incarnation failed, recorded before anything is deleted."""

    cause: Words | None = None
    """One stable CamelCase word."""
    message: Annotated[str, Field(max_length=4096)] | None = None
    """For people, with the container's last words."""
    member: Count | None = None
    """Index of the member that failed first."""
    node: Name | None = None
    """Its node."""
    exit_code: Int | None = None
    """Exit code of its container."""
    signal: Count | None = None
    """Signal that ended its container."""
    gpu: Words | None = None
    """The GPU at fault, where known."""
    xid: Count | None = None
    """The GPU driver's error number, where known."""
    restart_count: Count | None = None
    """Restarts of its container."""
    occurred_at: Time | None = None
    """When it happened, as far as is known."""
    observed_at: Time | None = None
    """When it was seen."""


class ReplicaGroupStatus(Model):
    """How the incarnation stands."""

    state: GroupState | None = None
    """Reserved, Starting, Warming, Serving, Draining or Failed."""
    member_uids: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_MEMBERS)] = Field(
        (), alias="memberUIDs"
    )
    """UIDs of the pods, in order of their index."""
    conditions: Conditions = ()
    """Standard conditions."""
    evidence: Evidence | None = None
    """Why it failed."""
    failover: Failover | None = None
    """How the failover went, or that one is suspected."""


class ReplicaGroup(Model):
    """One incarnation of a replica group of an LLMDeployment."""

    api_version: Literal["berth.dev/v1alpha1"] = "berth.dev/v1alpha1"
    kind: Literal["ReplicaGroup"] = "ReplicaGroup"
    metadata: ObjectMeta
    spec: Annotated[ReplicaGroupSpec, Satisfies((immutable("spec"),))]
    """Which copy of the model this is; immutable."""
    status: ReplicaGroupStatus = ReplicaGroupStatus()
    """How it stands; written by Berth alone."""


def parse_replicagroup(obj: Any, *, known_fields_only: bool = False) -> ReplicaGroup:
    """Read a ReplicaGroup as stored; see `berth.api.common.parse`."""
    return parse(ReplicaGroup, obj, known_fields_only=known_fields_only)
