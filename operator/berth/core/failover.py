"""How a failover went, phase by phase, as seconds since the failure. Pure.

The record stands in the failed ReplicaGroup's own status: each phase is written once, when it is first seen, and stays.
A group that was only suspected has one too, which goes when it answers again: a false alarm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from berth import labels
from berth.core.failures import IN_PLACE, UNREACHABLE, was_suspected
from berth.core.groups import Judgement, State
from berth.core.observed import Group, NodeFacts
from berth.core.timestamps import precise, unix_seconds

DETECTED: Final = "detectedAfter"
CUT: Final = "trafficCutAfter"
REPLACED: Final = "replacedAfter"
RESTORED: Final = "restoredAfter"
PHASES: Final = {DETECTED: "detected", CUT: "traffic_cut", REPLACED: "replaced", RESTORED: "restored"}
"""Field of the status -> label `phase` of the histogram."""
_DURATION: Final = re.compile("[0-9]{1,12}[.][0-9]s")
"""As `_seconds` writes it."""


def failover_of(
    group: Group,
    judgement: Judgement,
    successors: Sequence[tuple[Group, Judgement]],
    facts: Mapping[str, NodeFacts],
    now: float,
) -> dict[str, str]:
    """The record of one group after this look; empty while nothing happened to it.

    `successors` are the later incarnations of its slot.
    """
    known = _recorded(group)
    if judgement.reason == UNREACHABLE:
        return known or _begun(_silent_since(group, facts, now), now, cut=True)
    evidence = judgement.evidence or group.recorded_evidence
    failed = judgement.state is State.FAILED
    in_place = evidence.get("cause") == IN_PLACE and group.lifecycle == labels.COMMITTED
    if not failed and not in_place:
        return known if DETECTED not in known and not judgement.serving else {}
    if judgement.evidence is not None:
        at = unix_seconds(evidence.get("occurredAt"))
        served = any(member.serving for member in group.members)
        suspected = known if failed and DETECTED not in known else {}
        known = suspected or _begun(now if at is None else at, now, cut=served)
        known[DETECTED] = _seconds(now - (unix_seconds(known["at"]) or now))
        return known
    since = unix_seconds(known.get("at"))
    if since is None:
        return known
    if failed and any(each.lifecycle != labels.RESERVED for each, _ in successors):
        known.setdefault(REPLACED, _seconds(now - since))
    back = successors if failed else [(group, judgement)]
    if any(each.serving and _routed(candidate) for candidate, each in back):
        known.setdefault(RESTORED, _seconds(now - since))
    return known


def news(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(phase, seconds) of what the record `after` has and `before` had not.

    A suspicion is none: its cut is told with the failure, and under its reason, or never if it was a false alarm.
    """
    if DETECTED not in after:
        return []
    same = before.get("at") == after.get("at") and DETECTED in before
    found = []
    for field, phase in PHASES.items():
        value = after.get(field)
        if value is not None and not (same and field in before):
            found.append((phase, float(str(value).removesuffix("s"))))
    return found


def is_false_alarm(group: Group, judgement: Judgement) -> bool:
    """It was cut off on suspicion, and serves again without having failed."""
    return judgement.serving and was_suspected(group)


def latest(groups: Iterable[Group], records: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    """`status.lastFailover`: the record of the last failure of all groups, suspicions left out."""
    failed = [group for group in groups if DETECTED in records.get(group.name, {})]
    if not failed:
        return None
    last = max(failed, key=lambda group: (records[group.name]["at"], group.name))
    record = records[last.name]
    reason = last.failure_reason or str(last.recorded_evidence.get("cause") or "")
    return {"group": f"g{last.group}", **({"reason": reason} if reason else {}), **record}


def _recorded(group: Group) -> dict[str, str]:
    """What stands in the group's status, without what somebody else wrote there: no phase without a beginning."""
    known: Mapping[str, Any] = group.recorded.get("failover") or {}
    if unix_seconds(known.get("at")) is None:
        return {}
    return {
        "at": known["at"],
        **{field: known[field] for field in PHASES if _DURATION.fullmatch(known.get(field) or "")},
    }


def _begun(at: float, now: float, *, cut: bool) -> dict[str, str]:
    return {"at": precise(at), **({CUT: _seconds(now - at)} if cut else {})}


def _silent_since(group: Group, facts: Mapping[str, NodeFacts], now: float) -> float:
    node = facts.get(group.leader.node or "") if group.leader else None
    return node.silent_since if node is not None and node.silent_since is not None else now


def _routed(group: Group) -> bool:
    return group.leader is not None and group.leader.serving and group.leader.token_restarts == group.leader.restarts


def _seconds(value: float) -> str:
    return f"{max(0.0, value):.1f}s"
