"""The record of a move under way, and where its groups say it stands.

A move is begun once the first ReplicaGroup of the new placement exists: that object, and each one made for the move
later, carries the whole record in an annotation. What happened since is in labels that Berth changes: `berth.dev/role`

    incoming    new, gets no requests yet          outgoing    old, without requests, kept until the verdict
    incumbent   new, gets requests                 returning   new, on its way out again: the move is taken back

So a wiped status loses nothing, and a group made later for any other reason has no role.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from pydantic import ValidationError

from berth import labels
from berth.api.placement import Allocation, CopyShape
from berth.core.moves.identity import layout_of, placement_hash
from berth.core.moves.memory import ended_ids
from berth.core.observed import Group, Snapshot
from berth.core.timestamps import timestamp, unix_seconds


@dataclass(frozen=True)
class Course:
    """What was decided when the move was begun; never changed afterwards."""

    id: str
    start: Allocation
    to: Allocation
    cause: str
    """Objectives, Cost or Requested."""
    reason: str
    """For people."""
    began_at: float
    """Unix seconds."""
    spec_hash: str
    """Of the spec it was decided for; another one ends it."""
    needed: int
    """Groups of `to` that must serve before `start` may leave."""
    capacity_from: float = 0.0
    """Requests per second that one group of `start` answers at the objectives; 0: not known."""
    capacity_to: float = 0.0
    cooldown: float = 0.0
    """Seconds after its end in which no other one is begun."""
    load: float | None = None
    """Requests per second measured when it was begun; None: not measured."""
    misses: float | None = None
    """Share of requests that missed an objective then."""
    swap: bool = False
    """Groups change places one by one: there is no room for both sides."""
    leaves: int = 0
    """Groups of `start` that had to serve when it was begun; 0: not known."""

    @property
    def placement_hash(self) -> str:
        return placement_hash(self.to)

    def dump(self) -> str:
        """As it stands in the annotation."""
        record = {
            **asdict(self),
            "start": _dump(self.start),
            "to": _dump(self.to),
            "began_at": timestamp(self.began_at),
        }
        if not self.swap:
            del record["swap"]
        return json.dumps({key: value for key, value in record.items() if value is not None}, sort_keys=True)

    @classmethod
    def load_from(cls, text: str) -> Self | None:
        """The record in an annotation; None where somebody else wrote something else there."""
        try:
            raw = json.loads(text)
            known = {key: raw[key] for key in cls.__dataclass_fields__ if key in raw}
            began_at = unix_seconds(raw["began_at"])
            start, to = Allocation.model_validate(raw["start"]), Allocation.model_validate(raw["to"])
            if began_at is None or not isinstance(raw["needed"], int) or not all(map(_is_number, _figures(raw))):
                return None
            if not isinstance(raw.get("swap", False), bool) or not isinstance(raw.get("leaves", 0), int):
                return None
            return cls(**{**known, "start": start, "to": to, "began_at": began_at})
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
            return None


@dataclass(frozen=True)
class Convoy:
    """The groups of one move, by their part in it, and the course they carry."""

    course: Course
    incoming: tuple[Group, ...]
    incumbent: tuple[Group, ...]
    outgoing: tuple[Group, ...]
    returning: tuple[Group, ...]
    flipped_at: float | None
    """Unix seconds at which the new groups were given requests."""
    taken_back: bool
    """The old groups are the ones in force again."""
    told: str
    """How it ends, `<result>: <words>`, once it is taken back."""
    made: int
    """Groups made for it so far, lost ones included."""

    @property
    def flipped(self) -> bool:
        """Whether the new placement is the one in force."""
        return (self.course.swap or self.flipped_at is not None) and not self.taken_back

    @property
    def in_force(self) -> Allocation:
        return self.course.to if self.flipped else self.course.start

    @property
    def needed(self) -> int | None:
        """Groups of the placement in force that must serve, as the move was decided on; None: not known."""
        return (self.course.needed if self.flipped else self.course.leaves) or None

    def aside(self, groups: Iterable[Group]) -> frozenset[str]:
        """Names of living groups of the placement that is not in force, as far as it is a side of its own."""
        if self.course.swap:
            return frozenset()
        other = self.course.start if self.flipped else self.course.to
        return frozenset(group.name for group in groups if group.alive and laid_out_as(group, other))


def convoy_of(groups: Iterable[Group], ended: Iterable[str]) -> Convoy | None:
    """The move these groups take part in; None if they do not, or if it is among the `ended` ones."""
    over = set(ended)
    marked = [group for group in groups if group.move_id and group.move_id not in over]
    readable = [(group, Course.load_from(group.move_record)) for group in marked if group.move_record]
    course = next((course for group, course in readable if course is not None and course.id == group.move_id), None)
    if course is None:
        return None
    mine = [group for group in marked if group.move_id == course.id]

    def having(role: str) -> tuple[Group, ...]:
        return tuple(group for group in mine if group.alive and group.role == role)

    told = next((group.move_result for group in mine if group.move_result), "")
    return Convoy(
        course,
        having(labels.INCOMING),
        having(labels.INCUMBENT),
        having(labels.OUTGOING),
        having(labels.RETURNING),
        min((group.flipped_at for group in mine if group.flipped_at is not None), default=None),
        bool(told) if course.swap else any(group.role == labels.RETURNING for group in mine),
        told,
        sum(bool(group.move_record) for group in mine),
    )


def without_strays(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups, without roles of moves that no group has a record of: somebody else wrote those, or lost the record.

    Such a role would keep a group from requests for ever. It counts as drift, and is taken off like other drift.
    """
    recorded = {group.move_id for group in groups if group.move_id and _is_record(group.move_record)}
    return tuple(
        _unmarked(group) if group.alive and (group.move_id or group.role) and group.move_id not in recorded else group
        for group in groups
    )


def _unmarked(group: Group) -> Group:
    marks = dict.fromkeys((labels.MOVE_ID, labels.ROLE))
    record = dict.fromkeys((labels.MOVE, labels.FLIPPED_AT, labels.MOVE_RESULT))
    return replace(
        group,
        move_id="",
        role="",
        move_record="",
        flipped_at=None,
        move_result="",
        lost_labels={**group.lost_labels, **marks},
        lost_annotations={**group.lost_annotations, **record},
    )


def _is_record(text: str) -> bool:
    """Whether it is a record of a move, if only of a release that writes others than this one."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def convoy_in(snapshot: Snapshot) -> Convoy | None:
    """The move that the deployment's groups take part in."""
    return convoy_of(snapshot.groups, ended_ids(snapshot))


def laid_out_as(group: Group, shape: CopyShape) -> bool:
    """Whether the group is a copy of this layout, whatever its batch limits."""
    return layout_of(group.allocation) == layout_of(shape)


def _dump(allocation: Allocation) -> dict[str, Any]:
    return allocation.model_dump(mode="json", exclude_none=True)


def _figures(raw: Mapping[str, Any]) -> Sequence[Any]:
    names = ("capacity_from", "capacity_to", "cooldown", "load", "misses")
    return [raw[name] for name in names if name in raw]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
