"""Which changes of a deployment's status are only how far a start has come: those may be told together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from berth.core.groups import State

PROGRESS_SECONDS: Final = 1.0
"""Progress is told at most this often; a start that is over sooner tells its end alone."""
_PROGRESS: Final = frozenset({"summary", "groups", "groupCounts", "conditions"})
_ON_THE_WAY: Final = frozenset({State.RESERVED, State.STARTING, State.WARMING, State.SERVING})


def only_progress(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether `before` is as good as `after` for a moment: no condition turned, no group is in trouble."""
    others = (before.keys() | after.keys()) - _PROGRESS
    return (
        all(before.get(name) == after.get(name) for name in others)
        and _said(before) == _said(after)
        and all(state in _ON_THE_WAY for status in (before, after) for state in status.get("groupCounts") or ())
    )


def _said(status: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What conditions say, but for their words."""
    return {
        str(each["type"]): (each["status"], each["reason"], each.get("observedGeneration"))
        for each in status.get("conditions") or ()
    }
