"""Which changes of status are only how far a start has come: told together, or when there is time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from berth.core.groups import State

PROGRESS_SECONDS: Final = 1.0
"""Progress is told at most this often; a start that is over sooner tells its end alone."""
BUSY_SECONDS: Final = 60.0
"""The same while many deployments wait for their turn: starting one goes before telling how far others are."""
_PROGRESS: Final = frozenset({"summary", "groups", "groupCounts", "conditions"})
_STARTING: Final = frozenset({State.RESERVED, State.STARTING, State.WARMING})
_ON_THE_WAY: Final = _STARTING | {State.SERVING}


def only_progress(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether `before` is as good as `after` for a moment: no condition turned, no group is in trouble."""
    others = (before.keys() | after.keys()) - _PROGRESS
    return (
        all(before.get(name) == after.get(name) for name in others)
        and _said(before) == _said(after)
        and all(state in _ON_THE_WAY for status in (before, after) for state in status.get("groupCounts") or ())
    )


def only_a_step(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """The same of a ReplicaGroup's status: nothing but another step on the way to the first token."""
    others = (before.keys() | after.keys()) - {"state", "conditions"}
    return (
        {before.get("state"), after.get("state")} <= _STARTING
        and all(before.get(name) == after.get(name) for name in others)
        and _standing(before) == _standing(after)
    )


def _standing(status: Mapping[str, Any]) -> list[Any]:
    return [each.get("status") for each in status.get("conditions") or ()]


def _said(status: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What conditions say, but for their words."""
    return {
        str(each.get("type")): (each.get("status"), each.get("reason"), each.get("observedGeneration"))
        for each in status.get("conditions") or ()
    }
