"""What a person asks for once, in the annotation `berth.dev/request` of an LLMDeployment. Never an edit of its spec.

    failover g1                       give the group up and replace it now
    move a100-40 bf16 tp4 [pp2] [x3]  run there: pool, variant, split, number of groups (absent: as many as it takes)
    rollback                          take the move under way back

A last word `@...` makes the same request another one: `failover g1 @2026-01-31T12:00:00Z`. Each text is dealt with
once, however long the annotation stays. What came of it is in `status.request`, and as long as the annotation asks for
it also on every ReplicaGroup: an answer that only status had would be lost with it, and the request carried out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ValidationError

from berth import labels
from berth.api.common import seconds
from berth.api.placement import MAX_GROUPS, CopyShape
from berth.api.status import RequestStatus
from berth.core.actions import Mark
from berth.core.moves.course import convoy_in
from berth.core.moves.decision import Move
from berth.core.moves.memory import ended_ids
from berth.core.observed import Snapshot
from berth.core.render.names import digest
from berth.core.timestamps import timestamp, unix_seconds
from berth.errors import InvalidSpec

LONGEST: Final = 256
"""Characters of a request."""
_FIELD: Final = f"annotation {labels.REQUEST}"
_USAGE: Final = "write 'failover g1', 'move POOL VARIANT tp4 [pp2] [x3]' or 'rollback'"
_PART: Final = re.compile(r"(tp|pp|x)([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Request:
    """One request. `group` is of failover, `to` and `groups` are of move."""

    text: str
    verb: Literal["failover", "move", "rollback"]
    group: int | None = None
    to: CopyShape | None = None
    groups: int | None = None


@dataclass(frozen=True)
class Reply:
    """What came of it: `Waiting` is looked at again, the others are the end of it."""

    result: Literal["Done", "Refused", "Waiting"]
    message: str


def spoken(text: str) -> str:
    """A request without what only tells it from an earlier one."""
    return " ".join(word for word in text.split() if not word.startswith("@"))


def parse(text: str) -> Request:
    """Raises InvalidSpec with what is wrong and how it is written."""
    if len(text) > LONGEST:
        raise InvalidSpec("InvalidRequest", f"{_FIELD}: is longer than {LONGEST} characters: {_USAGE}")
    match spoken(text).split():
        case ["rollback"]:
            return Request(text, "rollback")
        case ["failover", group] if re.fullmatch("g(0|[1-9][0-9]{0,3})", group):
            return Request(text, "failover", group=int(group[1:]))
        case ["move", pool, variant, *parts]:
            return _move(text, pool, variant, parts)
    raise InvalidSpec("InvalidRequest", f"{_FIELD}: {text!r} is no request: {_USAGE}")


def _move(text: str, pool: str, variant: str, parts: list[str]) -> Request:
    found = [_PART.fullmatch(part) for part in parts]
    numbers = {each[1]: int(each[2]) for each in found if each}
    if None in found or len(numbers) < len(parts):
        raise InvalidSpec("InvalidRequest", f"{_FIELD}: {text!r} does not say how a copy is split: {_USAGE}")
    if numbers.get("x", 1) > MAX_GROUPS or max(numbers.get("tp", 1), numbers.get("pp", 1)) > 64:
        raise InvalidSpec("InvalidRequest", f"{_FIELD}: {text!r}: at most tp64, pp64 and x{MAX_GROUPS}")
    shape = CopyShape(
        pool=pool, variant=variant, tensor_parallel=numbers.get("tp", 1), pipeline_parallel=numbers.get("pp", 1)
    )
    return Request(text, "move", to=shape, groups=numbers.get("x"))


@dataclass(frozen=True)
class Wish:
    """What is asked for at this pass: by a person, or (a move without a request) by Berth's own steering."""

    request: Request | None = None
    move: Move | None = None
    reply: Reply | None = None
    """Said already before anything was planned."""


NOTHING: Final = Wish()


def text_of(snapshot: Snapshot) -> str:
    """The request as it stands in the annotation, at most LONGEST + 1 characters of it."""
    return snapshot.deployment.metadata.annotations.get(labels.REQUEST, "").strip()[: LONGEST + 1]


def pending(snapshot: Snapshot) -> Request | None:
    """The request that is still to be dealt with. Raises InvalidSpec where it cannot be read."""
    text = text_of(snapshot)
    return parse(text) if text and not _is_final(last_answer(snapshot), text) else None


def last_answer(snapshot: Snapshot) -> Mapping[str, Any]:
    """`status.request` as it was left: the latest of what status says and what the groups remember."""
    told = (snapshot.raw.get("status") or {}).get("request") or {}
    remembered = map(_read, sorted({group.answered for group in snapshot.groups if group.answered}))
    return max((told, *(each for each in remembered if _at(each) <= snapshot.now)), key=_at)


def answered_at(snapshot: Snapshot) -> float:
    """When a request was answered last (Unix seconds); what happened earlier does not answer the pending one."""
    return _at(last_answer(snapshot))


def remember(snapshot: Snapshot) -> list[Mark]:
    """Writes the answer that status has on the groups, while the annotation still asks for what it answers.

    Groups that failed remember it too: they may be all there is, for a moment.
    """
    answer = last_answer(snapshot)
    if not _is_final(answer, text_of(snapshot)):
        return []
    memory = json.dumps(dict(answer), sort_keys=True)
    staying = (each for each in snapshot.groups if each.lifecycle != labels.RETIRING and not each.deleting)
    return [Mark(group, {}, {labels.ANSWERED: memory}) for group in staying if group.answered != memory]


def move_id(snapshot: Snapshot, asked: Request) -> str:
    """Of the move that a request stands for."""
    return digest({"uid": snapshot.deployment.metadata.uid, "request": asked.text}, 8)


def reply_before_move(snapshot: Snapshot, asked: Request) -> Reply | None:
    """The answer to a move that is under way, has ended, or has waited for too long; None for one that may begin now.

    Before anything is planned: what is refused must not begin in the same pass.
    """
    mine, convoy, before = move_id(snapshot, asked), convoy_in(snapshot), last_answer(snapshot)
    if convoy is not None and convoy.course.id == mine:
        return Reply("Done", f"move {mine} has begun")
    if mine in ended_ids(snapshot):
        if before.get("text", asked.text) == asked.text:
            return Reply("Done", f"move {mine} has begun")
        again = "add a last word that begins with @ to ask for it again"
        return Reply("Refused", f"the same words were carried out before, as move {mine}: {again}")
    waits = (before.get("text"), before.get("result")) == (asked.text, "Waiting")
    if waits and snapshot.now - _at(before) >= seconds(snapshot.deployment.spec.update.deadline):
        return Reply("Refused", f"abandoned at update.deadline: {before.get('message', '')}")
    return None


def reply_to_move(snapshot: Snapshot, shortage: str) -> Reply:
    """To one that may begin; that it has is seen at the next pass."""
    why_not = "changes are paused" if snapshot.deployment.spec.pause != "None" else "the deployment is not at rest"
    return Reply("Waiting", shortage or why_not)


def request_status(snapshot: Snapshot, reply: Reply) -> dict[str, Any]:
    """`status.request` after a look at it."""
    before, text = last_answer(snapshot), text_of(snapshot)
    same = (before.get("text"), before.get("result")) == (text, reply.result)
    at = before["at"] if same and before.get("at") else timestamp(snapshot.now)
    return {"text": text, "result": reply.result, "message": reply.message[:1024], "at": at}


def _is_final(answer: Mapping[str, Any], text: str) -> bool:
    return bool(text) and answer.get("text") == text and answer.get("result") != "Waiting"


def _at(answer: Mapping[str, Any]) -> float:
    return unix_seconds(answer.get("at")) or 0.0


def _read(memory: str) -> Mapping[str, Any]:
    """What a group remembers; nothing where somebody else wrote something else there."""
    try:
        return RequestStatus.model_validate_json(memory).model_dump(exclude_none=True)
    except ValidationError:
        return {}
