"""What is remembered of moves that ended: their cool-downs, and where one was taken back.

Status has it, and every group that stays bears it too (annotation `berth.dev/ended-moves`), so that a status that was
lost, or came from an old backup, begins no move again that was judged before. The union of what all of them say counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError

from berth import labels
from berth.api.status import MAX_RECENT_MOVES, MovesStatus
from berth.core.actions import Mark
from berth.core.observed import Snapshot
from berth.core.timestamps import unix_seconds

_LONGEST_REASON: Final = 200
"""Characters of a reason that groups remember: all that is wanted of them is that nothing is tried again."""
_MARKS: Final = (labels.MOVE_ID, labels.ROLE)
_RECORD: Final = (labels.MOVE, labels.FLIPPED_AT, labels.MOVE_RESULT)


def recall(snapshot: Snapshot) -> dict[str, Any]:
    """`status.moves` as it was left, with what only the groups remember."""
    stored = dict((snapshot.raw.get("status") or {}).get("moves") or {})
    told = [_read(text) for text in sorted({group.ended_moves for group in snapshot.groups if group.ended_moves})]
    if not told:
        return stored
    recent: dict[str, Mapping[str, Any]] = {}
    for each in (move for moves in (stored, *told) for move in moves.get("recent") or ()):
        recent.setdefault(str(each["id"]), each)
    newest = sorted(recent.values(), key=lambda each: unix_seconds(each.get("finishedAt")) or 0.0, reverse=True)
    allowed = max((moves.get("nextAllowedAt") for moves in (stored, *told)), key=lambda each: unix_seconds(each) or 0.0)
    found = {"recent": newest[:MAX_RECENT_MOVES], "nextAllowedAt": allowed}
    return stored | {key: value for key, value in found.items() if value}


def ended_ids(snapshot: Snapshot) -> frozenset[str]:
    """Moves that are over."""
    return frozenset(str(each.get("id")) for each in recall(snapshot).get("recent") or ())


def remember(snapshot: Snapshot) -> list[Mark]:
    """Takes the marks of moves that ended off the groups that stay, and writes on them what is to be remembered."""
    ended, memory = ended_ids(snapshot), _memory(recall(snapshot))
    found = []
    for group in snapshot.groups:
        if group.lifecycle == labels.RETIRING or group.deleting:
            continue
        over = group.move_id in ended
        due: dict[str, str | None] = dict.fromkeys(_RECORD) if over else {}
        if memory and group.ended_moves != memory:
            due[labels.ENDED_MOVES] = memory
        if over or due:
            found.append(Mark(group, dict.fromkeys(_MARKS) if over else {}, due))
    return found


def _memory(moves: Mapping[str, Any]) -> str:
    recent = [dict(each) for each in moves.get("recent") or ()]
    for each in recent:
        if each.get("reason"):
            each["reason"] = each["reason"][:_LONGEST_REASON]
    kept = {"recent": recent, "nextAllowedAt": moves.get("nextAllowedAt")}
    return json.dumps({key: value for key, value in kept.items() if value}, sort_keys=True) if recent else ""


@lru_cache(maxsize=4096)
def _read(text: str) -> dict[str, Any]:
    """What a group remembers; nothing where somebody else wrote something else there."""
    try:
        return MovesStatus.model_validate_json(text).model_dump(
            mode="json", by_alias=True, exclude_none=True, include={"recent", "next_allowed_at"}
        )
    except ValidationError:
        return {}
