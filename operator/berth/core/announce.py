"""Events for people: what changed between the stored status and the new one. Pure; only transitions speak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from berth.core import conditions as c
from berth.core.failover import is_false_alarm
from berth.core.failures import IN_PLACE, UNREACHABLE
from berth.core.groups import Judgement, State
from berth.core.observed import Group
from berth.core.placement.tell import describe
from berth.core.requests import spoken


@dataclass(frozen=True)
class Announcement:
    """One Event: `reason` is why (CamelCase), `action` what Berth did or tried, `note` is for people."""

    reason: str
    action: str
    note: str
    warning: bool = False
    group: Group | None = None
    """The group it is about, which then tells it too."""


_GOOD_WHEN_TRUE: Final = (c.ACCEPTED, c.PLACED, c.AVAILABLE, c.READY, c.AVAILABILITY_TARGET_MET)
_BAD_WHEN_TRUE: Final = (
    c.DEGRADED,
    c.STALLED,
    c.PLACEMENT_OUTDATED,
    c.EVACUATIONS_FROZEN,
    c.FOREIGN_PDB_OVERLAP,
)
_TOLD_AT_ONCE: Final = (c.ACCEPTED, c.STALLED, c.EVACUATIONS_FROZEN, c.FOREIGN_PDB_OVERLAP)
"""Bad from the first status on is news, too."""


def announcements(
    before: Mapping[str, Any], after: Mapping[str, Any], judged: Iterable[tuple[Group, Judgement]]
) -> list[Announcement]:
    """What to tell about a pass that turns status `before` into `after`."""
    return [
        *_of_placement(before, after),
        *_of_groups(judged),
        *_of_moves(before, after),
        *_of_requests(before, after),
        *_of_conditions(before, after),
        *_of_disruption(before, after),
        *_of_spread(before, after),
    ]


def _of_placement(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    """A decision of the planner, when it is another than before."""
    placement = after.get("placement") or {}
    known = (before.get("placement") or {}).get("allocations")
    if "specHash" in placement and placement["allocations"] != known:
        layout = ", ".join(map(describe, placement["allocations"]))
        yield Announcement("PlacementDecided", "Plan", f"{layout}: {placement.get('reason', '')}")


def _of_moves(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    """Each phase of a move, and its end."""
    old, new = before.get("moves") or {}, after.get("moves") or {}
    was, now = old.get("current") or {}, new.get("current") or {}
    if now and (now["id"], now["phase"]) != (was.get("id"), was.get("phase")):
        where = f"{describe(now['from'][0])} -> {describe(now['to'][0])}"
        yield Announcement("MovePhase", "Move", f"{now['phase']}: {where} (move {now['id']})")
    known = {each.get("id") for each in old.get("recent") or ()}
    for ended in new.get("recent") or ():
        if ended["id"] not in known:
            good = ended["result"] == "Completed"
            words = f"move {ended['id']}: {ended.get('reason', '')}"
            yield Announcement(f"Move{ended['result']}", "Move", words, warning=not good)


def _of_requests(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    old, new = before.get("request") or {}, after.get("request") or {}
    if new and (new["text"], new["result"]) != (old.get("text"), old.get("result")):
        words = f"{spoken(new['text'])}: {new['message']}"
        yield Announcement(f"Request{new['result']}", "Request", words, warning=new["result"] == "Refused")


def _of_groups(judged: Iterable[tuple[Group, Judgement]]) -> Iterable[Announcement]:
    for group, judgement in judged:
        recorded = group.recorded.get("state")
        if recorded == judgement.state.value:
            continue
        where = f"g{group.group} (incarnation {group.incarnation}, pool {group.pool})"
        if judgement.state is State.FAILED:
            words = f"{where}: {judgement.reason}: {judgement.message}"
            yield Announcement("GroupFailed", "Replace", words, True, group)
        elif judgement.reason == IN_PLACE:
            yield Announcement("GroupRestarted", "Wait", f"{where}: {judgement.message}", True, group)
        elif judgement.reason == UNREACHABLE:
            yield Announcement("GroupUnreachable", "CutTraffic", f"{where}: {judgement.message}", True, group)
        elif is_false_alarm(group, judgement):
            yield Announcement("GroupServing", "Serve", f"{where} answers again and serves", group=group)
        elif judgement.state is State.SERVING and recorded != State.WARMING.value:
            yield Announcement("GroupServing", "Serve", f"{where} serves", group=group)
        elif judgement.state is State.SERVING:
            yield Announcement("GroupServing", "Serve", f"{where} answered with a token and serves", group=group)
        elif judgement.state is State.RESERVED and recorded is None:
            nodes = ", ".join(group.planned_nodes) or "nodes of the scheduler's choice"
            yield Announcement("GroupReserved", "Reserve", f"{where} reserved {nodes}", group=group)


def _of_conditions(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    old = {condition.get("type"): condition for condition in before.get("conditions") or ()}
    for condition in after["conditions"]:
        kind, status = condition["type"], condition["status"]
        known = old.get(kind)
        if known is not None and known.get("status") == status:
            continue
        if condition["reason"] == "GroupFailed":
            continue  # the group itself was told of
        bad = (kind in _GOOD_WHEN_TRUE and status == "False") or (kind in _BAD_WHEN_TRUE and status == "True")
        news = known is not None or (bad and kind in _TOLD_AT_ONCE)
        if news and (bad or kind in (c.ACCEPTED, c.READY)):
            reason = condition["reason"]
            yield Announcement(reason, "Reconcile", f"{kind} is {status}: {condition['message']}", bad)


def _of_disruption(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    """Each new reason is told: that groups leave is good to know, that they cannot is somebody's to mend."""
    was, now = _condition(before, c.DISRUPTED), _condition(after, c.DISRUPTED)
    if now.get("status") == "True" and now["reason"] != was.get("reason"):
        yield Announcement(now["reason"], "Move", now["message"], now["reason"] != "LeavingNodes")


def _of_spread(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[Announcement]:
    """That one loss would be too much, once all stand who should: only then it is the layout and not a failure."""
    if _fragile(after) and not _fragile(before):
        found = _condition(after, c.LOSS_TOLERATED)
        yield Announcement(found["reason"], "Spread", found["message"], True)


def _fragile(status: Mapping[str, Any]) -> bool:
    """More groups serve than are needed, and still one loss leaves too few."""
    ready, tolerated = (_condition(status, kind).get("status") for kind in (c.READY, c.LOSS_TOLERATED))
    return ready == "True" and tolerated == "False" and status.get("replicas", 0) > status.get("needed", 0)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((each for each in status.get("conditions") or () if each.get("type") == kind), {})
