"""A move as a state machine: make before break, judged before it is final, taken back once if it is worse.

    Reserving -> Starting -> WarmingUp -> Flipping -> Judging -> Draining -> Completed
        |            |           |           |           |
        +------------+-----------+-> Abandoned           +-> Reverting -> RolledBack

Invariants:
- the new groups get requests all at once, when every one of them is proven: one of them alone would get the share of
  requests of a group that carries more; together they carry what the decision was made for (`may_flip`);
- an old group loses its requests only when the new ones were seen to get theirs, and stays until the verdict;
- where the move stands is read from the ReplicaGroups alone; every order may be the last one before a crash;
- it ends in one of three results, exactly once; who is ended is remembered before its marks are taken away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from berth import labels
from berth.core.actions import Mark
from berth.core.groups import AWAITING_FLIP, Judgement, State
from berth.core.moves.course import Convoy, Course, laid_out_as
from berth.core.moves.verdict import Verdict
from berth.core.observed import Group
from berth.core.timestamps import timestamp

Phase = Literal["Reserving", "Starting", "WarmingUp", "Flipping", "Replacing", "Judging", "Draining", "Reverting"]
Result = Literal["Completed", "RolledBack", "Abandoned"]
DRAINING: Final = "Draining"
ASKED_FOR: Final = "taken back on request"


@dataclass(frozen=True)
class Ended:
    """How a move ended."""

    course: Course
    result: Result
    reason: str


@dataclass(frozen=True)
class Step:
    """What a look at a move says."""

    phase: Phase
    since: float | None = None
    """Unix seconds at which the phase began, where that is known."""
    deadline: float | None = None
    """Unix seconds at which the phase is given up."""
    marks: tuple[Mark, ...] = ()
    retire: tuple[Group, ...] = ()
    ended: Ended | None = None
    brings: bool = False
    """More groups of the new placement are to be made, and lost ones replaced."""
    message: str = ""


@dataclass(frozen=True)
class Situation:
    """What a step is decided on. Times in Unix seconds."""

    convoy: Convoy
    groups: Sequence[Group]
    judgements: Mapping[str, Judgement]
    deadline_seconds: float
    """update.deadline."""
    spec_hash: str
    needed: int = 0
    """Groups of the placement in force that must serve."""
    wanted_by_user: bool = True
    """The spec still allows the move to go on."""
    changes_allowed: bool = True
    take_back: bool = False
    """A person asks for it."""
    shortage: str = ""
    """Why the next new group could not be placed."""
    verdict: Verdict = field(default_factory=Verdict)
    now: float = 0.0

    def routed(self, groups: Iterable[Group]) -> list[Group]:
        """Those that get requests: they serve, and their label was seen."""
        return [
            group
            for group in groups
            if self.judgements[group.name].serving and group.leader is not None and group.leader.serving
        ]


def step(situation: Situation) -> Step:
    """Where the move stands, and the next orders for it."""
    convoy = situation.convoy
    if convoy.taken_back:
        return _reverting(situation)
    return _after_flip(situation) if convoy.flipped else _before_flip(situation)


def may_flip(fresh: int, staying: int, capacity_to: float, capacity_from: float, load: float | None) -> bool:
    """Whether `fresh` new groups may get requests beside `staying` old ones: capacity = smallest capacity / share.

    A Service gives every group the same share, so the weakest kind decides. Together they carry the load, or at least
    no less than the old ones alone: who leaves a pool because it is slow carries too little as it is. With unknown
    capacities it is the number that the decision asked for.
    """
    if not load or capacity_to <= 0 or capacity_from <= 0:
        return True
    weakest = min(capacity_to, capacity_from) if staying else capacity_to
    return weakest * (fresh + staying) >= min(load, capacity_from * staying)


# --- before -----------------------------------------------------------------------------------------------------------
def _before_flip(situation: Situation) -> Step:
    convoy, course, now = situation.convoy, situation.convoy.course, situation.now
    deadline = course.began_at + situation.deadline_seconds
    proven = [each for each in convoy.incoming if situation.judgements[each.name].reason == AWAITING_FLIP]
    phase = _phase_before_flip(situation, len(proven))
    why_not = _why_abandoned(situation, phase, deadline)
    if why_not:
        return _take_back(situation, "Abandoned", why_not)
    here = [group for group in situation.groups if group.alive and laid_out_as(group, course.start)]
    staying = situation.routed(group for group in here if not group.role)
    ready = len(proven) >= course.to.groups and may_flip(
        len(proven), len(staying), course.capacity_to, course.capacity_from, course.load
    )
    if not ready or not situation.changes_allowed:
        message = situation.shortage or f"{len(proven)} of {course.to.groups} new groups are proven"
        return Step(phase, course.began_at, deadline, brings=situation.changes_allowed, message=message)
    at = timestamp(now)
    marks = [Mark(group, {labels.ROLE: labels.INCUMBENT}, {labels.FLIPPED_AT: at}) for group in proven]
    return Step("Flipping", now, now + situation.deadline_seconds, tuple(marks))


def _phase_before_flip(situation: Situation, proven: int) -> Phase:
    incoming = situation.convoy.incoming
    if len(incoming) < situation.convoy.course.to.groups:
        return "Reserving"
    if any(situation.judgements[group.name].state in (State.RESERVED, State.STARTING) for group in incoming):
        return "Starting"
    return "WarmingUp" if proven < len(incoming) else "Flipping"


def _why_abandoned(situation: Situation, phase: Phase, deadline: float) -> str:
    if situation.convoy.course.spec_hash != situation.spec_hash:
        return "the spec changed"
    if situation.take_back or not situation.wanted_by_user:
        return "no longer wanted"
    if situation.now < deadline or not situation.changes_allowed:
        return ""
    if phase == "Reserving":
        return f"no capacity by the deadline: {situation.shortage or 'groups of the new placement are missing'}"
    waiting = [each for each in map(situation.judgements.get, (g.name for g in situation.convoy.incoming)) if each]
    slow = next((each.message for each in waiting if each.reason != AWAITING_FLIP), "")
    return f"the new groups did not serve by the deadline{': ' + slow if slow else ''}"


# --- after ------------------------------------------------------------------------------------------------------------
def _after_flip(situation: Situation) -> Step:
    convoy, course, now = situation.convoy, situation.convoy.course, situation.now
    assert convoy.flipped_at is not None
    deadline = convoy.flipped_at + situation.deadline_seconds
    if convoy.incoming:  # a crash in the middle of the flip: the others follow
        at = timestamp(convoy.flipped_at)
        late = [Mark(group, {labels.ROLE: labels.INCUMBENT}, {labels.FLIPPED_AT: at}) for group in convoy.incoming]
        return Step("Flipping", convoy.flipped_at, deadline, tuple(late))
    old = [group for group in situation.groups if group.alive and not group.role and laid_out_as(group, course.start)]
    fresh = [group for group in situation.groups if group.alive and laid_out_as(group, course.to)]
    routed = situation.routed(fresh)
    if old:
        if len(routed) >= course.needed and situation.changes_allowed:
            marks = tuple(Mark(each, {labels.MOVE_ID: course.id, labels.ROLE: labels.OUTGOING}, {}) for each in old)
            return Step("Flipping", convoy.flipped_at, deadline, marks)
        if situation.take_back:
            return _take_back(situation, "RolledBack", ASKED_FOR)
        if now >= deadline:
            return _take_back(situation, "Abandoned", f"{len(routed)} of {course.needed} needed groups got requests")
        return Step("Flipping", convoy.flipped_at, deadline, message=f"{len(routed)} new groups get requests")
    if convoy.outgoing:
        return _judging(situation, len(routed), deadline)
    leaving = [each for each in situation.groups if each.holds_gpus and laid_out_as(each, course.start)]
    if leaving:
        return Step(DRAINING, None, None, message=f"{len(leaving)} old groups are on their way out")
    return Step(DRAINING, ended=Ended(course, "Completed", situation.verdict.words or course.reason))


def _judging(situation: Situation, routed: int, deadline: float) -> Step:
    convoy, verdict = situation.convoy, situation.verdict
    if not situation.changes_allowed:
        return Step("Judging", convoy.flipped_at, None, message="changes are paused")
    if situation.take_back:
        return _take_back(situation, "RolledBack", ASKED_FOR)
    if routed < convoy.course.needed:
        return _take_back(situation, "Abandoned", f"{routed} of {convoy.course.needed} needed groups serve")
    outdated = convoy.course.spec_hash != situation.spec_hash or not situation.wanted_by_user
    if verdict.worse and not outdated:
        return _take_back(situation, "RolledBack", verdict.words)
    if verdict.kept or outdated or situation.now >= deadline:
        return Step(DRAINING, situation.now, None, retire=convoy.outgoing)
    return Step("Judging", convoy.flipped_at, deadline, message=verdict.words)


# --- back -------------------------------------------------------------------------------------------------------------
def _take_back(situation: Situation, result: Result, why: str) -> Step:
    """The mark on the new groups decides, and says how it ends; the old ones lose theirs at the next step."""
    course = situation.convoy.course
    fresh = [group for group in situation.groups if group.move_id == course.id and group.move_record]
    fresh += [each for each in situation.groups if each.alive and each not in fresh and laid_out_as(each, course.to)]
    role = {labels.MOVE_ID: course.id, labels.ROLE: labels.RETURNING}
    marks = tuple(Mark(each, role, {labels.MOVE_RESULT: f"{result}: {why}"}) for each in fresh)
    return Step("Reverting", situation.now, None, marks, message=why)


def _reverting(situation: Situation) -> Step:
    """Old groups first: the new ones keep their requests until the old ones were seen to have theirs."""
    convoy, course = situation.convoy, situation.convoy.course
    late = (*convoy.incoming, *convoy.incumbent)
    role = {labels.ROLE: labels.RETURNING}
    marks = [Mark(group, role, {labels.MOVE_RESULT: convoy.told}) for group in late]
    marks += [Mark(group, {labels.MOVE_ID: None, labels.ROLE: None}, {}) for group in convoy.outgoing]
    if marks:
        return Step("Reverting", marks=tuple(marks))
    # Of whatever placement: where the spec names neither of the two any more, groups of a third one come meanwhile.
    here = [each for each in situation.groups if each.alive and not each.role and not laid_out_as(each, course.to)]
    if situation.routed(convoy.returning) and len(situation.routed(here)) < max(situation.needed, len(here)):
        return Step("Reverting", message="waiting for the old groups to get requests again")
    result, _, why = convoy.told.partition(": ")
    kind: Result = "RolledBack" if result == "RolledBack" else "Abandoned"
    return Step("Reverting", retire=convoy.returning, ended=Ended(course, kind, why))
