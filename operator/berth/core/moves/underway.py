"""How a move shows in one pass: what is in force, what is brought in, what is left alone, which orders follow.

begin       the first groups of the new placement are reserved: from then on the move is a fact
under way   `machine.step` decides by what its groups show
ended       status remembers it; one pass later its marks are taken off the groups
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from berth import labels
from berth.api.common import seconds
from berth.api.llmdeployment import LLMDeploymentSpec
from berth.api.placement import Allocation
from berth.api.status import MAX_RECENT_MOVES
from berth.core.actions import Action, Reserve
from berth.core.groups import Judgement, retire
from berth.core.moves import machine, swap
from berth.core.moves.course import Convoy, Course, convoy_in, laid_out_as
from berth.core.moves.decision import HOLDS, Hold, Move
from berth.core.moves.decision import Verdict as Decided
from berth.core.moves.memory import ended_ids
from berth.core.moves.verdict import Verdict, verdict
from berth.core.observed import Group, Snapshot
from berth.core.placement.question import spec_hash
from berth.core.rollout import NewGroup, Rollout
from berth.core.timestamps import timestamp
from berth.core.wanted import Defaults, Wanted, resolve_allocation
from berth.errors import InvalidSpec


@dataclass(frozen=True)
class Underway:
    """A move at this moment; `incoming` is what its new groups are made of, None once none is made any more."""

    course: Course
    convoy: Convoy | None
    """None: it begins now."""
    incoming: Wanted | None
    refusal: str = ""
    """Why the new groups can no longer be made."""

    @property
    def flipped(self) -> bool:
        return self.convoy is not None and self.convoy.flipped

    def aside(self, groups: Sequence[Group]) -> frozenset[str]:
        return self.convoy.aside(groups) if self.convoy is not None else frozenset()

    def exchanging(self, groups: Sequence[Group]) -> bool:
        """Whether groups of both sides carry the traffic together: those that come, of a swap, cannot alone yet."""
        if self.convoy is None or not self.course.swap:
            return False
        mine = [each for each in groups if each.alive and laid_out_as(each, self.convoy.in_force)]
        arrived = sum(group.leader is not None and group.leader.serving for group in mine)
        return arrived < (self.course.needed if self.convoy.flipped else self.course.leaves)

    def newcomers(self, groups: Sequence[Group]) -> frozenset[str]:
        """Names of living groups that are brought in."""
        return frozenset(group.name for group in groups if group.alive and group.role == labels.INCOMING)


def underway(snapshot: Snapshot, defaults: Defaults, asked: Move | None) -> Underway | None:
    """The move that is under way, else the one that is asked for and may begin now."""
    convoy = convoy_in(snapshot)
    if convoy is None and asked is None:
        return None
    course = convoy.course if convoy is not None else _begin(snapshot, asked)
    if course is None:
        return None
    if course.swap or (convoy is not None and (convoy.flipped or convoy.taken_back)):
        return Underway(course, convoy, None)
    try:
        incoming = resolve_allocation(snapshot, defaults, course.to, course.needed)
    except InvalidSpec as error:
        return Underway(course, convoy, None, str(error)) if convoy is not None else None
    return Underway(course, convoy, incoming)


def _begin(snapshot: Snapshot, asked: Move | None) -> Course | None:
    """Only from a deployment in which nothing else is going on, and that may have more groups for a while."""
    spec = snapshot.deployment.spec
    quiet = all(group.alive for group in snapshot.groups if group.members) and not any(
        group.move_id for group in snapshot.groups
    )
    if asked is None or not quiet or spec.pause != "None" or asked.swap != (spec.update.surge == "Never"):
        return None
    if asked.id in ended_ids(snapshot):
        return None
    routed = sum(group.leader is not None and group.leader.serving for group in snapshot.groups if group.alive)
    if asked.swap and routed < asked.start.groups:
        return None
    return course_of(asked, spec, snapshot.now, _load(snapshot), _misses(snapshot))


def course_of(asked: Move, spec: LLMDeploymentSpec, now: float, load: float | None, misses: float | None) -> Course:
    """The record of a move that begins now, at this load and share of misses."""
    return Course(
        id=asked.id,
        start=asked.start,
        to=asked.to,
        cause=asked.cause,
        reason=asked.reason,
        began_at=now,
        spec_hash=spec_hash(spec),
        needed=max(asked.needed, spec.replica_groups.min_available),
        capacity_from=asked.capacity_from,
        capacity_to=asked.capacity_to,
        cooldown=asked.cooldown,
        load=load,
        misses=misses,
        swap=asked.swap,
        leaves=asked.leaves,
    )


def _load(snapshot: Snapshot) -> float | None:
    """Requests per second of the last hour."""
    measured = snapshot.measured
    return measured.deployment.slow.requests_per_second if measured is not None and measured.fresh else None


def _misses(snapshot: Snapshot) -> float | None:
    """Share of the last hour's requests that missed an objective; the worse of the objectives."""
    measured = snapshot.measured
    if measured is None or not measured.fresh:
        return None
    window = measured.deployment.slow
    shares = [share for share in (window.first_token_share, window.per_token_share) if share is not None]
    return 1 - min(shares) if shares else None


def look(
    move: Underway,
    snapshot: Snapshot,
    judgements: Mapping[str, Judgement],
    revision: str,
    needed: int,
    take_back: bool = False,
) -> machine.Step | None:
    """Where the move stands; None for one that only begins.

    `revision` is the template hash in force; `needed` groups of it must serve.
    """
    if move.convoy is None:
        return swap.begin(move.course, snapshot.groups) if move.course.swap else None
    spec = snapshot.deployment.spec
    shortage = next((each.message for slot, each in sorted(snapshot.shortages.items())), "")
    judged = Verdict()
    if move.flipped and move.convoy.flipped_at is not None:
        judged = verdict(move.course, move.convoy.flipped_at, snapshot.measured, revision, snapshot.now)
    follow = swap.step if move.course.swap else machine.step
    return follow(
        machine.Situation(
            convoy=move.convoy,
            groups=snapshot.groups,
            judgements=judgements,
            deadline_seconds=seconds(spec.update.deadline),
            spec_hash=spec_hash(spec),
            needed=needed,
            wanted_by_user=spec.placement.mode == "Auto" and not move.refusal,
            changes_allowed=spec.pause == "None",
            take_back=take_back,
            shortage=shortage,
            verdict=judged,
            now=snapshot.now,
        )
    )


def orders(move: Underway, step: machine.Step | None, rollout: Rollout, now: float) -> list[Action]:
    """What follows from a look: marks first, then who leaves, then who comes."""
    found: list[Action] = []
    if step is not None:
        found += step.marks
        for group in step.retire:
            found += retire(group, now)
    if move.incoming is not None and (step is None or step.brings):
        found += [_reserve(new) for new in rollout.create]
    return found


def _reserve(new: NewGroup) -> Reserve:
    return Reserve(new.group, new.incarnation, "Move", incoming=True)


def moves_status(
    before: Mapping[str, Any], move: Underway | None, step: machine.Step | None, decided: Decided | None, now: float
) -> dict[str, Any]:
    """`status.moves`, which was `before`; `decided` is what was decided now, None where nothing was looked at."""
    recent = list(before.get("recent") or ())
    found = {key: value for key, value in before.items() if key not in ("current", "recent", "hold")}
    hold = _hold(before.get("hold") or {}, decided, now)
    if hold and step is None:
        found["hold"] = hold
    if step is not None and step.ended is not None:
        ended, course = step.ended, step.ended.course
        entry = {
            "id": course.id,
            "finishedAt": timestamp(now),
            "result": ended.result,
            "reason": f"{course.reason}; {ended.reason}"[:1024],
            "placementHash": course.placement_hash,
        }
        recent = [entry, *recent][:MAX_RECENT_MOVES]
        found["nextAllowedAt"] = timestamp(now + course.cooldown)
    elif move is not None and step is not None:
        found["current"] = _current(move, step, before.get("current") or {}, now)
    if recent:
        found["recent"] = recent
    return found


def _hold(before: Mapping[str, Any], decided: Decided | None, now: float) -> dict[str, Any]:
    """The words stay as long as the reason does: figures change at every look."""
    if decided is None:
        return dict(before)
    if not isinstance(decided, Hold):
        return {}
    if before.get("reason") == decided.reason:
        return dict(before)
    hold = {"reason": decided.reason, "message": (decided.message or HOLDS[decided.reason])[:1024]}
    return {**hold, "since": timestamp(now)}


def _current(move: Underway, step: machine.Step, before: Mapping[str, Any], now: float) -> dict[str, Any]:
    same = (before.get("id"), before.get("phase")) == (move.course.id, step.phase)
    current = {
        "id": move.course.id,
        "phase": step.phase,
        "from": [shown(move.course.start)],
        "to": [shown(move.course.to)],
        "since": before["since"] if same and before.get("since") else timestamp(now),
    }
    return {**current, "deadline": timestamp(step.deadline)} if step.deadline is not None else current


def shown(allocation: Allocation) -> dict[str, Any]:
    """As it stands in status."""
    return allocation.model_dump(by_alias=True, exclude_none=True, mode="json")
