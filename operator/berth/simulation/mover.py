"""A move in the simulation: the production state machine on simulated groups, from the first group to the last.

Groups are shown to `berth.core.moves.machine` as the operator would observe them, and its marks are written onto them.
What a pass takes, seconds, is nothing here: steps follow one another until nothing more is ordered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from berth import labels
from berth.api.common import seconds
from berth.api.llmdeployment import LLMDeploymentSpec
from berth.api.replicagroup import GroupAllocation
from berth.core import observed
from berth.core.actions import Mark
from berth.core.groups import AWAITING_FLIP, Judgement, State
from berth.core.moves import machine, swap
from berth.core.moves.course import Course, convoy_of
from berth.core.moves.decision import Move
from berth.core.moves.verdict import SETTLING_SECONDS, Verdict, weighed
from berth.core.placement.layouts import Layout
from berth.core.placement.question import spec_hash
from berth.core.steering.reading import Reading
from berth.core.timestamps import unix_seconds
from berth.simulation.service import Group

_STEPS: Final = 12
"""More than a move has; a bound for a loop that ends by itself."""
_MINUTE: Final = 60.0


@dataclass
class Moving:
    """One move under way."""

    move: Move
    course: Course
    spec: LLMDeploymentSpec
    begun: int
    shortage: str = ""

    def step(self, groups: Sequence[Group], minute: int, reading: Reading | None, needed: int) -> machine.Step | None:
        """What the machine says now; None before the first group of the new placement exists."""
        now = minute * _MINUTE
        shown = {group.name: _shown(group, minute) for group in groups}
        convoy = convoy_of(shown.values(), ())
        if convoy is None:
            return swap.begin(self.course, shown.values()) if self.course.swap else None
        follow = swap.step if self.course.swap else machine.step
        return follow(
            machine.Situation(
                convoy=convoy,
                groups=tuple(shown.values()),
                judgements={group.name: _judged(group, minute) for group in groups},
                deadline_seconds=seconds(self.spec.update.deadline),
                spec_hash=spec_hash(self.spec),
                needed=needed,
                shortage=self.shortage,
                verdict=self._verdict(convoy.flipped_at, reading, now),
                now=now,
            )
        )

    @property
    def deadline(self) -> float:
        """Minutes since the beginning by which the first group has to have a place."""
        return self.begun + seconds(self.spec.update.deadline) / _MINUTE

    def joins(self, group: Group) -> None:
        """A group that was made for it."""
        group.move_id, group.role, group.move_record = self.course.id, labels.INCOMING, self.course.dump()

    def missing(self, groups: Sequence[Group]) -> int:
        """Groups of the new placement that are still to be made."""
        return self.course.to.groups - sum(group.role == labels.INCOMING for group in groups)

    def _verdict(self, flipped_at: float | None, reading: Reading | None, now: float) -> Verdict:
        """As the operator comes to it, by the windows since the flip."""
        if flipped_at is None or reading is None:
            return Verdict(words="metrics are missing or stale")
        if now - flipped_at < SETTLING_SECONDS:
            return Verdict(words="the new groups have just got requests")
        span = reading.slow
        if not span.requests_per_second:
            return Verdict(words="the new groups have had no requests")
        return weighed(self.course, span.requests_per_second, span.misses, span.effective)


def carry_out(
    moving: Moving,
    groups: Sequence[Group],
    minute: int,
    look: Callable[[], tuple[Reading | None, int]],
    remove: Callable[[Group], None],
    start: Callable[[Layout], Group | None],
    flipped: Callable[[], None],
) -> machine.Ended | None:
    """All that can be done of the move at this minute; how it ended, once it has.

    `groups` changes under `remove` and `start`; `look` gives the reading and the groups needed, `flipped` is called
    when other groups have the requests than before.
    """
    for _ in range(_STEPS):
        step = moving.step(groups, minute, *look())
        if step is None or step.brings:
            made = _bring(moving, groups, start)
            if step is None and not made:
                return _no_room(moving, minute)
            if made:
                continue
        assert step is not None
        routed = {group.name for group in groups if group.routed}
        judged = any(group.flipped_at is not None for group in groups)
        by_name = {group.name: group for group in groups}
        for mark in step.marks:
            _write(by_name[mark.group.name], mark)
        if moving.course.swap and not judged and any(group.flipped_at is not None for group in groups):
            flipped()
        for gone in step.retire:
            remove(by_name[gone.name])
        if routed != {group.name for group in groups if group.routed} and not step.retire:
            flipped()
        if step.ended is not None:
            return step.ended
        exchanged = (
            moving.course.swap and step.phase != "Judging" and _exchange(moving, step, groups, minute, remove, start)
        )
        if not step.marks and not step.retire and not exchanged:
            return None
    return None


def _exchange(
    moving: Moving,
    step: machine.Step,
    groups: Sequence[Group],
    minute: int,
    remove: Callable[[Group], None],
    start: Callable[[Layout], Group | None],
) -> bool:
    """What the rollout does of a swap, one group at a time: one leaves, one comes in its place and is waited for."""
    course = moving.course
    to = course.start if step.phase == "Reverting" else course.to
    arriving = [group for group in groups if group.layout.shape == Layout.of(to).shape]
    leaving = [group for group in groups if group not in arriving]
    moving.shortage = ""
    if len(groups) < course.start.groups and len(arriving) < to.groups:
        group = start(Layout.of(to))
        if group is None:
            moving.shortage = "no room, or the engine does not load there"
            return False
        group.routed = True
        return True
    if leaving and all(_serves(group, minute) for group in groups) and len(groups) > course.leaves:
        remove(leaving[-1])
        return True
    return False


def _bring(moving: Moving, groups: Sequence[Group], start: Callable[[Layout], Group | None]) -> bool:
    """Whether a group was made of those that are missing."""
    moving.shortage = ""
    made = False
    for _ in range(max(moving.missing(groups), 0)):
        group = start(Layout.of(moving.course.to))
        if group is None:
            moving.shortage = "no room, or the engine does not load there"
            break
        moving.joins(group)
        made = True
    return made


def _no_room(moving: Moving, minute: int) -> machine.Ended | None:
    """As long as no group was made nothing has begun; whoever asked for it gives up at the deadline."""
    if minute < moving.deadline:
        return None
    return machine.Ended(moving.course, "Abandoned", f"no capacity by the deadline: {moving.shortage}")


def _shown(group: Group, minute: int) -> observed.Group:
    """As the operator observes it."""
    shape = group.layout.allocation(1)
    allocation = GroupAllocation(
        pool=shape.pool,
        variant=shape.variant,
        tensor_parallel=shape.tensor_parallel,
        pipeline_parallel=shape.pipeline_parallel,
    )
    leader = observed.Member(group.name, group.name, 0, 0.0, phase="Running", serving=_serves(group, minute))
    return observed.Group(
        name=group.name,
        uid=group.name,
        group=0,
        incarnation=1,
        lifecycle=labels.COMMITTED,
        allocation=allocation,
        template_hash=str(group.layout),
        wanted_members=1,
        created_at=0.0,
        pool=group.layout.pool,
        move_id=group.move_id,
        role=group.role,
        move_record=group.move_record,
        flipped_at=group.flipped_at,
        move_result=group.move_result,
        members=(leader,),
    )


def _serves(group: Group, minute: int) -> bool:
    return group.routed and group.serves_from <= minute and group.lost_at is None


def _judged(group: Group, minute: int) -> Judgement:
    if _serves(group, minute):
        return Judgement(State.SERVING, "Serving", "")
    if group.serves_from > minute:
        return Judgement(State.STARTING, "Loading", "the model is being loaded")
    if group.role == labels.INCOMING:
        return Judgement(State.WARMING, AWAITING_FLIP, "answers with tokens")
    return Judgement(State.DRAINING, "AwaitingVerdict", "without requests until the move is judged")


def _write(group: Group, mark: Mark) -> None:
    """Labels and annotations as they are written, and what follows for the Service."""
    if labels.MOVE_ID in mark.labels:
        group.move_id = mark.labels[labels.MOVE_ID] or ""
    if labels.ROLE in mark.labels:
        group.role = mark.labels[labels.ROLE] or ""
        routed: Mapping[str, bool] = {labels.INCUMBENT: True, labels.OUTGOING: False, "": True}
        group.routed = routed.get(group.role, group.routed)
    group.move_record = mark.annotations.get(labels.MOVE) or group.move_record
    if flipped := mark.annotations.get(labels.FLIPPED_AT):
        group.flipped_at = unix_seconds(flipped)
    if result := mark.annotations.get(labels.MOVE_RESULT):
        group.move_result = result
