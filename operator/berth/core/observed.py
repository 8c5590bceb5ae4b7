"""What one pass sees of one LLMDeployment: frozen, complete, parsed; made at the edge, read by the pure core.

Invariants: nothing here is ever read from the network by the core; a field that is `None` means *unknown*, and unknown
is never grounds for removing anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from berth import labels
from berth.api.llmdeployment import LLMDeployment
from berth.api.replicagroup import GroupAllocation
from berth.core.conditions import READY
from berth.core.measurement.measured import Measured
from berth.core.nodes import NodeView
from berth.core.timestamps import unix_seconds


@dataclass(frozen=True)
class Termination:
    """How a container ended, as the kubelet tells it."""

    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    message: str = ""
    finished_at: float | None = None
    """Unix seconds."""


@dataclass(frozen=True)
class Member:
    """One pod of a replica group."""

    name: str
    uid: str
    index: int
    created_at: float
    phase: str = "Pending"
    node: str | None = None
    ip: str | None = None
    gated: bool = False
    ready: bool = False
    deleting: bool = False
    restarts: int = 0
    down: bool = False
    """Its container has ended and was not started again yet: that life counts as ended before `restarts` does so."""
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    """The scheduler's own words, empty when it has not refused the pod."""
    pod_reason: str = ""
    """`status.reason` of the pod, as Evicted, UnexpectedAdmissionError."""
    pod_message: str = ""
    last_termination: Termination | None = None
    serving: bool = False
    """The serving label says "true"."""
    token_restarts: int | None = None
    """Restart count at which this container was last seen to answer with a token; None = never."""
    lost_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of ours that it was made with and no longer carries."""
    deleted_at: float | None = None
    """Unix seconds until which its containers may go on (`deletionTimestamp`); None while it is not being deleted."""
    deletion_asked_at: float | None = None
    """Unix seconds at which somebody asked for that."""

    @property
    def leader(self) -> bool:
        return self.index == 0

    @property
    def ends(self) -> int:
        """How many lives of its container have ended."""
        return self.restarts + self.down

    @property
    def ended(self) -> bool:
        return self.phase in ("Failed", "Succeeded")


@dataclass(frozen=True)
class AcceptedRestart:
    """A restart in place that was forgiven: up to which restart count, and when (Unix seconds)."""

    restarts: int
    at: float


@dataclass(frozen=True)
class Group:
    """One incarnation of a replica group: its ReplicaGroup object and the pods it controls."""

    name: str
    uid: str
    group: int
    incarnation: int
    lifecycle: str
    allocation: GroupAllocation
    template_hash: str
    wanted_members: int
    created_at: float
    pool: str
    planned_nodes: tuple[str, ...] = ()
    config_map: str = ""
    image: str = ""
    deleting: bool = False
    failed_at: float | None = None
    failure_reason: str = ""
    failure_message: str = ""
    retired_at: float | None = None
    accepted_restart: AcceptedRestart | None = None
    move_id: str = ""
    """The move it takes part in."""
    role: str = ""
    """Its part: one of labels.ROLES."""
    move_record: str = ""
    """The record of the move, on groups made for it."""
    flipped_at: float | None = None
    """Since when it has requests in place of others (Unix seconds)."""
    move_result: str = ""
    """How the move ends, once it is taken back."""
    answered: str = ""
    """The last answer to a person's request, as it was when the group was marked with it."""
    ended_moves: str = ""
    """What is to be remembered of the deployment's moves, as it was when the group was marked with it."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """The ReplicaGroup's status as it was read back."""
    members: tuple[Member, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The object, with the labels and annotations it lost filled in."""
    lost_labels: Mapping[str, str | None] = field(default_factory=dict)
    """What has to be written to put them right; None: taken off."""
    lost_annotations: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def recorded_uids(self) -> frozenset[str]:
        """The pods this incarnation was made of, as recorded."""
        return frozenset(self.recorded.get("memberUIDs") or ())

    @property
    def recorded_evidence(self) -> Mapping[str, Any]:
        """Why it failed, as recorded; empty while nothing was."""
        return self.recorded.get("evidence") or {}

    @property
    def waiting_since(self) -> float | None:
        """Since when it does not serve, by Berth's own clock; None before that was recorded, or while it serves."""
        conditions = self.recorded.get("conditions") or ()
        ready: Mapping[str, Any] = next((each for each in conditions if each.get("type") == READY), {})
        return unix_seconds(ready.get("lastTransitionTime")) if ready.get("status") == "False" else None

    @property
    def leader(self) -> Member | None:
        return next((member for member in self.members if member.leader), None)

    @property
    def alive(self) -> bool:
        """Counts towards what the deployment has: neither failed nor on its way out."""
        return self.lifecycle in (labels.RESERVED, labels.COMMITTED) and not self.deleting

    @property
    def holds_gpus(self) -> bool:
        return self.alive or bool(self.members)


@dataclass(frozen=True)
class Answer:
    """What the leader said last, for one container life (pod UID, restart count)."""

    uid: str
    restarts: int
    token_at: float | None = None
    """Unix seconds of the last token; None = it has not produced one yet."""
    in_flight: int | None = None
    message: str = ""
    """Why there is no token, in the server's words."""
    at: float = 0.0
    """Unix seconds at which the leader was last reached; 0 = never."""
    misses: int = 0
    """Attempts in a row that did not reach it."""
    frozen_for: float = 0.0
    """Seconds for which it was seen with work outstanding and without progress."""
    draining: bool = False
    """It takes no new requests, as far as it said last."""
    canary_missed: bool = False
    """A token was asked for while it was frozen, and none came."""

    @property
    def reached(self) -> bool:
        return self.at > 0

    @property
    def unreachable(self) -> bool:
        """Two attempts: one may have been cut short by a pause of Berth itself."""
        return self.misses >= 2


class Ask(StrEnum):
    """What to ask a leader."""

    FIRST = "first token"
    """Whether it produces one."""
    PROGRESS = "progress"
    """Whether it still does what it was seen to do."""
    DRAINED = "drained"
    """How much it still has to finish."""


class Contact(StrEnum):
    """What a node's Lease says, by changes that Berth saw on its own clock."""

    FRESH = "fresh"
    LATE = "late"
    """A renewal is overdue: not enough to give anything up, enough to look harder."""
    SILENT = "silent"
    """Two renewals are overdue."""
    UNKNOWN = "unknown"
    """Not observed, or not for long enough."""


@dataclass(frozen=True)
class Sickness:
    """What is wrong with a pod's GPUs, in words, and since when that is reported (Unix seconds)."""

    words: str
    since: float


@dataclass(frozen=True)
class NodeFacts:
    """What Berth found out about a node over time. The default is a node about which nothing bad is known."""

    gone: bool = False
    """The API server says that there is no such node: looked up, not inferred from the local copy."""
    contact: Contact = Contact.UNKNOWN
    silent_since: float | None = None
    """Unix seconds of the last renewal that was seen, for a node that is late or silent."""
    sick: Mapping[str, Sickness] = field(default_factory=dict)
    """By pod UID, reported for long enough to be believed."""
    frozen: bool = False
    """Evacuations are frozen: silence proves nothing just now."""


@dataclass(frozen=True)
class Shortage:
    """Why a group could not be placed just now."""

    reason: str
    message: str
    until: float | None = None
    """Not to be tried before (Unix seconds)."""


@dataclass(frozen=True)
class Snapshot:
    """Everything one pass decides on. `now` is Unix seconds."""

    deployment: LLMDeployment
    raw: Mapping[str, Any]
    """The object, without the fields of status that this release cannot read: what is there has the API's types."""
    groups: tuple[Group, ...]
    stray_incarnations: Mapping[int, int]
    """By slot: the highest incarnation of pods whose ReplicaGroup is gone; their names are still taken."""
    answers: Mapping[str, Answer]
    """Last answers by pod UID."""
    children: Mapping[tuple[str, str], Mapping[str, Any]]
    """Services, PodDisruptionBudgets and ConfigMaps of this deployment by (kind, name)."""
    pools: Mapping[str, Mapping[str, Any]]
    """Every GPUPool object by name."""
    shortages: Mapping[int, Shortage]
    """What the arbiter said to the last attempt, by group number."""
    missing_claims: frozenset[str]
    """PersistentVolumeClaims that the spec names and the namespace lacks."""
    now: float
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    """The nodes its groups stand on or are planned for, by name, as far as they are known."""
    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    """What was found out about these nodes over time, by name."""
    frozen: str = ""
    """Why evacuations are frozen where this deployment runs, in words; empty while they are not."""
    measured: Measured | None = None
    """What leaders said of their requests; None where nobody measures."""
    foreign_budgets: tuple[str, ...] = ()
    """PodDisruptionBudgets of others that select pods of its groups."""
