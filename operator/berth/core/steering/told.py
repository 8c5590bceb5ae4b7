"""From one pass to one look and back: what the operator observed as a situation, and what comes of it as a decision.

Looks have a clock of their own, that of the measured windows: Unix seconds times `Measured.pace`. It is the clock on
the wall but where decisions are shown or tested; here is the only place where one becomes the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError

from berth import labels
from berth.api.placement import Allocation, DecidedAllocation
from berth.core.accept import wanted_groups
from berth.core.calibration.learn import Calibration, made_with, recalled, stored, worth_writing
from berth.core.measurement.measured import Measured
from berth.core.moves.decision import Advise, Move
from berth.core.moves.memory import recall
from berth.core.moves.rules import State
from berth.core.observed import Snapshot
from berth.core.placement import record
from berth.core.placement.decide import Decision
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.core.placement.size import Candidate
from berth.core.placement.supply import Supply
from berth.core.steering.day import Day
from berth.core.steering.policy import past_of, policy_of
from berth.core.steering.reading import reading_of
from berth.core.steering.steer import Reviewed, Situation, Steering
from berth.core.timestamps import unix_seconds

_LONGEST: Final = 1024


@dataclass(frozen=True)
class Kept:
    """What is kept of a deployment between looks, in memory; losing it costs time, never a wrong step."""

    day: Day = field(default_factory=Day)
    reviewed: Reviewed | None = None
    calibration: Calibration = field(default_factory=Calibration)
    """As learned last; status has it too, but not to the last hour."""


def situation_of(
    snapshot: Snapshot,
    decision: Decision,
    asked: Question,
    supplies: Mapping[str, Supply],
    kept: Kept,
    neighbours: float | None,
) -> Situation:
    """Of a deployment whose decision has an allocation on a pool of `supplies`."""
    assert decision.allocation is not None
    spec = snapshot.deployment.spec
    status: Mapping[str, Any] = snapshot.raw.get("status") or {}
    wanted = wanted_groups(snapshot.deployment, decision.allocation)
    allocation = decision.allocation.model_copy(update={"groups": wanted})
    pace = pace_of(snapshot.measured)
    policy = policy_of(spec)
    if spec.scaling.mode == "Manual":
        policy = replace(policy, prefers_cost=False)  # how much there is to save is the user's number
    calibration = kept.calibration
    hash_now = made_with(spec, (status.get("resolved") or {}).get("image"))
    if calibration.made_with != hash_now:
        calibration = _timed(recalled(status.get("calibration") or (), hash_now), pace)
    alive = [group for group in snapshot.groups if group.alive]
    trial = _trial(status)
    decided_at = unix_seconds((status.get("placement") or {}).get("decidedAt")) or 0.0
    return Situation(
        now=snapshot.now * pace,
        pace=pace,
        uid=snapshot.deployment.metadata.uid,
        asked=asked,
        supplies=supplies,
        in_force=allocation,
        groups_for_traffic=decision.groups_for_traffic,
        policy=policy,
        past=past_of(recall(snapshot), pace),
        state=state_of(snapshot, allocation.groups),
        reading=reading_of(snapshot.measured, _names(snapshot, allocation), _names(snapshot, trial)),
        trial=trial,
        day=kept.day,
        calibration=calibration,
        changed_at=max([decided_at, *(group.created_at for group in alive)]) * pace,
        scales=spec.scaling.mode == "Auto" and spec.pause == "None",
        nodes=tuple(member.node for group in alive for member in group.members if member.node),
        neighbours=neighbours,
        reviewed=kept.reviewed,
    )


def pace_of(measured: Measured | None) -> float:
    """How many times faster than the clock on the wall looks see time pass."""
    return measured.pace if measured is not None else 1.0


def _timed(calibration: Calibration, pace: float) -> Calibration:
    """On a clock so many times faster."""
    places = tuple(replace(place, at=place.at * pace) for place in calibration.places)
    return replace(calibration, places=places)


def _trial(status: Mapping[str, Any]) -> Allocation | None:
    """What a move under way goes to; None where there is none, or it cannot be read."""
    current = (status.get("moves") or {}).get("current") or {}
    try:
        found = [DecidedAllocation.model_validate(each) for each in current.get("to") or ()]
    except ValidationError:
        return None
    return Allocation(**{name: getattr(found[0], name) for name in Allocation.model_fields}) if found else None


def _names(snapshot: Snapshot, allocation: Allocation | None) -> frozenset[str]:
    """Groups that run as `allocation` says."""
    if allocation is None:
        return frozenset()
    layout = Layout.of(allocation)
    return frozenset(group.name for group in snapshot.groups if Layout.of(group.allocation) == layout)


def state_of(snapshot: Snapshot, wanted: int) -> State:
    """Whether groups are lost, come and go, or wait for room: elsewhere there may be some."""
    alive = [group for group in snapshot.groups if group.alive]
    serving = [group for group in alive if group.leader is not None and group.leader.serving]
    taken = {group.group for group in alive}
    without_room = min(len(snapshot.shortages), max(wanted - len(taken), 0))
    lost = any(group.lifecycle == labels.FAILED and group.group not in taken for group in snapshot.groups)
    replacing = any(
        other.lifecycle == labels.FAILED and other.group == group.group
        for group in alive
        if group not in serving
        for other in snapshot.groups
    )
    moves = (snapshot.raw.get("status") or {}).get("moves") or {}
    return State(
        failing_over=lost or replacing,
        changing=len(serving) != len(alive)
        or len(taken) + without_room != wanted
        or len(alive) != len(taken)
        or len({group.template_hash for group in alive}) > 1
        or any(group.lifecycle == labels.RETIRING for group in snapshot.groups),
        waiting=without_room > 0,
        moving=bool(moves.get("current")),
    )


def steered(decision: Decision, situation: Situation, found: Steering, status: Mapping[str, Any]) -> Decision:
    """The decision with the number of groups, and what status says of all this."""
    assert decision.allocation is not None
    changed = dict(decision.status)
    if situation.scales:
        sized = found.sized
        decision = replace(
            decision,
            allocation=decision.allocation.model_copy(update={"groups": sized.groups}),
            groups_for_traffic=sized.for_traffic,
        )
        placement = dict(changed.get("placement") or {})
        if placement.get("groupsForTraffic") != sized.for_traffic:
            placement["groupsForTraffic"] = sized.for_traffic
        if found.scaled:
            placement["reason"] = found.scaled[:_LONGEST]
        changed["placement"] = placement
    known = status.get("calibration") or []
    learned = stored(_timed(found.calibration, 1 / situation.pace), situation.asked.model.name)
    changed["calibration"] = learned if worth_writing(known, learned) else known
    candidates = _candidates(situation, found)
    if candidates is not None:
        changed["candidates"] = candidates
    if not changed["calibration"]:
        del changed["calibration"]
    verdict = found.verdict
    if isinstance(verdict, Move):
        found = replace(found, verdict=replace(verdict, cooldown=verdict.cooldown / situation.pace))
    return replace(decision, status=changed, steering=found)


def _candidates(situation: Situation, found: Steering) -> list[dict[str, Any]] | None:
    """`status.candidates` with the advised placement first, or without an advice that no longer holds; None: as it is.

    The condition PlacementOutdated and its Event follow from the list.
    """
    before, weighed = situation.reviewed, found.weighed
    advised = before.verdict.move.to if before is not None and isinstance(before.verdict, Advise) else None
    verdict = found.verdict
    now = verdict.move.to if isinstance(verdict, Advise) else None
    if weighed is None or now == advised:
        return None
    here = Layout.of(situation.in_force)
    stay = replace(weighed.stay, groups=weighed.stay.groups or situation.in_force.groups)
    others = [each for each in weighed.answer.candidates if each.layout != here]
    first: list[Candidate] = [stay]
    if now is not None:
        there = Layout.of(now)
        first = [*(option.candidate for option in weighed.options if option.candidate.layout == there), stay]
        others = [each for each in others if each.layout != there]
    shown = record.selection([*first, *others], stay)
    supplies = dict(situation.supplies)
    return [
        record.dump(entry)
        for entry in record.candidates_status(weighed.asked, supplies, weighed.evaluation, shown, stay)
    ]
