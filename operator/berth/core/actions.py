"""What a plan may ask for: small frozen orders, each safe to repeat and safe to be the last one before a crash.

The executor carries them out in the order given. Creates go by POST, metadata and status by server-side apply with the
object's UID, deletes with UID preconditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from berth.core.observed import Group, Member


@dataclass(frozen=True)
class Ensure:
    """Create the object, or bring the fields named in it back to these values."""

    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Create:
    """Create a member of `group`; one of this name that is already ours is as good."""

    group: Group
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Reserve:
    """Hold capacity for a new incarnation and create its ReplicaGroup, or report the shortage."""

    group: int
    incarnation: int
    reason: str
    incoming: bool = False
    """For the placement that a move goes to, not for the one in force."""


@dataclass(frozen=True)
class Mark:
    """Write labels and annotations of a ReplicaGroup, None to take one away: what survives a wiped status."""

    group: Group
    labels: Mapping[str, str | None]
    annotations: Mapping[str, str | None]


@dataclass(frozen=True)
class Record:
    """Write the status of a ReplicaGroup."""

    group: Group
    status: Mapping[str, Any]


@dataclass(frozen=True)
class SetServing:
    """Let requests reach a leader, or stop them."""

    member: Member
    serving: bool


@dataclass(frozen=True)
class Restore:
    """Put labels of ours back on a pod that lost them."""

    member: Member


@dataclass(frozen=True)
class Ungate:
    """Let the scheduler bind a member of a complete group."""

    member: Member


@dataclass(frozen=True)
class Drain:
    """Ask a leader to finish what it has and take nothing new."""

    member: Member


@dataclass(frozen=True)
class Resume:
    """Let a leader that drains take requests again."""

    member: Member


@dataclass(frozen=True)
class DeleteMember:
    """Delete one pod; `grace_seconds` None means the pod's own."""

    member: Member
    grace_seconds: int | None


@dataclass(frozen=True)
class DeleteGroup:
    """Delete a ReplicaGroup that has no members left."""

    group: Group


@dataclass(frozen=True)
class DeleteConfigMap:
    """Delete a ConfigMap that no incarnation refers to any more."""

    name: str
    uid: str


Write = (
    Ensure
    | Create
    | Reserve
    | Mark
    | Record
    | SetServing
    | Restore
    | Ungate
    | DeleteMember
    | DeleteGroup
    | DeleteConfigMap
)
"""To the API server."""
Word = Drain | Resume
"""To a leader."""
Action = Write | Word
