"""A move without room for both sides (`update.surge: Never`): its groups change places one by one, as in an update.

    Replacing -> Judging -> Completed
        |           |
        +-----------+-> Reverting -> RolledBack or Abandoned

An old group leaves first, where all but one are as many as are needed; then a new one comes in its place, and when that
one gets requests the next one leaves. The rollout does it, which changes a placement like this for an edit of the spec;
here it is said which of the two placements is in force, and when. Back it goes the same way.
Invariants:
- no more GPUs are held than before it began, and by Berth's own doing at most one group less gets requests;
- the record is on every group, old ones included: the one that leaves first takes nothing with it;
- where it stands is read from the groups alone, as in any move.
"""

from __future__ import annotations

from collections.abc import Iterable

from berth import labels
from berth.api.placement import Allocation
from berth.core.actions import Mark
from berth.core.moves.course import Course, laid_out_as
from berth.core.moves.identity import placement_hash
from berth.core.moves.machine import ASKED_FOR, Ended, Result, Situation, Step
from berth.core.observed import Group
from berth.core.timestamps import timestamp


def why_not(start: Allocation, to: Allocation, needed: int, needed_there: int) -> str:
    """Why groups of `start` cannot change places with those of `to` one by one; empty if they can.

    `needed` groups of `start`, or `needed_there` of `to`, carry the load. A Service gives new and old groups the same
    share, so the kind of which more are needed decides how many of both must serve.
    """
    left = start.groups - 1
    if to.groups > start.groups or to.gpus > start.gpus:
        return f"{to.groups} groups of {to.gpus} GPUs there do not fit in the place of {start.groups} of {start.gpus}"
    if left < max(needed, 1):
        return f"without one group {left} would serve, and {needed} are needed"
    if left < needed_there:
        return f"groups there carry less: without one {left} of both kinds would serve, and {needed_there} are needed"
    return ""


def begin(course: Course, groups: Iterable[Group]) -> Step:
    """The first marks; once one of them is written the move is under way."""
    return Step("Replacing", course.began_at, marks=_records(course, groups))


def step(situation: Situation) -> Step:
    """Where it stands, and the next orders for it."""
    convoy, course, now = situation.convoy, situation.convoy.course, situation.now
    if convoy.taken_back:
        return _back(situation, _records(course, situation.groups, convoy.told))
    marks = _records(course, situation.groups, flipped=convoy.flipped_at)
    if situation.take_back:
        return _take_back(situation, "RolledBack", ASKED_FOR)
    if _outdated(situation) and convoy.flipped_at is None:
        return _take_back(situation, "Abandoned", "the spec changed")
    fresh = situation.routed(each for each in situation.groups if each.alive and laid_out_as(each, course.to))
    leaving = [each for each in situation.groups if each.holds_gpus and laid_out_as(each, course.start)]
    if not situation.changes_allowed:
        return Step("Judging" if convoy.flipped_at else "Replacing", marks=marks, message="changes are paused")
    if convoy.flipped_at is None and (leaving or len(fresh) < course.to.groups):
        deadline = course.began_at + situation.deadline_seconds * course.start.groups
        message = f"{len(fresh)} of {course.to.groups} new groups serve"
        message += f": {situation.shortage}" if situation.shortage else ""
        if now >= deadline:
            return _take_back(situation, "Abandoned", f"by the deadline {message}")
        return Step("Replacing", course.began_at, deadline, marks, message=message)
    if convoy.flipped_at is None:
        return Step("Judging", now, now + situation.deadline_seconds, _records(course, situation.groups, flipped=now))
    return _judged(situation, marks, len(fresh))


def _judged(situation: Situation, marks: tuple[Mark, ...], serving: int) -> Step:
    """A group that is lost now is replaced where it was: that says nothing of the placement."""
    convoy, course, verdict = situation.convoy, situation.convoy.course, situation.verdict
    assert convoy.flipped_at is not None
    deadline = convoy.flipped_at + situation.deadline_seconds
    if verdict.worse and not _outdated(situation):
        return _take_back(situation, "RolledBack", verdict.words)
    if verdict.kept or _outdated(situation) or (situation.now >= deadline and serving >= course.needed):
        return Step("Judging", marks=marks, ended=Ended(course, "Completed", verdict.words or course.reason))
    if situation.now >= deadline:
        return _take_back(situation, "Abandoned", f"{serving} of {course.needed} needed groups serve")
    return Step("Judging", convoy.flipped_at, deadline, marks, message=verdict.words)


def _take_back(situation: Situation, result: Result, why: str) -> Step:
    """The old placement is the one in force again."""
    marks = _records(situation.convoy.course, situation.groups, f"{result}: {why}")
    return Step("Reverting", situation.now, None, marks, message=why)


def _back(situation: Situation, marks: tuple[Mark, ...]) -> Step:
    convoy, course = situation.convoy, situation.convoy.course
    here = [each for each in situation.groups if each.alive and laid_out_as(each, course.start)]
    leaving = [each for each in situation.groups if each.holds_gpus and laid_out_as(each, course.to)]
    serving = len(situation.routed(here))
    layouts = {placement_hash(each.allocation) for each in situation.groups if each.holds_gpus}
    over = not leaving and serving >= course.leaves
    if _outdated(situation):  # and what it asks for may be any of both placements, or another one
        over = len(layouts) == 1
    if not over:
        shortage = f": {situation.shortage}" if situation.shortage else ""
        return Step("Reverting", None, None, marks, message=f"{serving} of {course.start.groups} serve again{shortage}")
    result, _, why = convoy.told.partition(": ")
    return Step("Reverting", ended=Ended(course, "RolledBack" if result == "RolledBack" else "Abandoned", why))


def _outdated(situation: Situation) -> bool:
    return situation.convoy.course.spec_hash != situation.spec_hash or not situation.wanted_by_user


def _records(course: Course, groups: Iterable[Group], told: str = "", flipped: float | None = None) -> tuple[Mark, ...]:
    """What living groups do not bear yet, those that came meanwhile among them."""
    found = []
    for group in groups:
        due = {labels.MOVE: course.dump()} if group.move_id != course.id or not group.move_record else {}
        if told and group.move_result != told:
            due[labels.MOVE_RESULT] = told
        if flipped is not None and group.flipped_at is None:
            due[labels.FLIPPED_AT] = timestamp(flipped)
        if group.alive and due:
            found.append(Mark(group, {labels.MOVE_ID: course.id}, due))
    return tuple(found)
