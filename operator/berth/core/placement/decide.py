"""Sticky decisions: when a deployment is placed anew, and when it stays where it is.

    nothing was ever placed, or everything is lost and there is no room    place it
    the spec asks for something else (`spec_hash`), moves.mode Auto        place it anew, in force wins ties
    the spec asks for something else, moves.mode Advise or Off             stay; say what would be better
    the spec asks for something else in the middle of a move               stay until the move is over
    anything else: prices, capacity, new coefficients, a wiped status      stay

What is in force is what status records, else what live ReplicaGroups are: those are adopted with the spec they have,
so that neither a restored backup nor an upgrade of the operator sends a herd of deployments on a move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from berth.api.gpupool import parse_gpupool
from berth.api.placement import Allocation, CopyShape, DecidedAllocation
from berth.core.accept import check_allocation, resolve_model, usable_pool
from berth.core.moves.course import convoy_in
from berth.core.moves.identity import layout_of
from berth.core.observed import Group, Shortage, Snapshot
from berth.core.placement import record
from berth.core.placement.choose import Answer, choose
from berth.core.placement.evaluate import Estimates, Evaluation, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question, question, spec_hash
from berth.core.placement.size import Candidate, Rejection, Stage, size
from berth.core.placement.supply import Supply
from berth.errors import InvalidSpec

if TYPE_CHECKING:
    from berth.core.steering.steer import Steering

_LONGEST: Final = 1024
"""Characters of a message in status."""
_NOT_OFFERED: Final = Rejection(Stage.UNSUPPORTED, "in force, but not among what the spec allows now")


@dataclass(frozen=True)
class Decision:
    """What is to run where, and the record of it."""

    allocation: Allocation | None
    """None: nothing can be placed."""
    groups_for_traffic: int = 0
    status: Mapping[str, Any] = field(default_factory=dict)
    """`placement`, `candidates` and `availability` of the status, where they are known."""
    shortage: Shortage | None = None
    """Why nothing can be placed: what fails on the closest candidate and what would help."""
    refusal: InvalidSpec | None = None
    """Why nothing can be asked for: the spec contradicts itself, the model or a pool."""
    steering: Steering | None = None
    """What measurements say to it: the number of groups is already theirs, a move is for whoever carries moves out."""


@dataclass(frozen=True)
class InForce:
    """The placement that runs, or is about to."""

    allocation: Allocation
    groups_for_traffic: int | None = None
    spec_hash: str | None = None
    """Absent where it was adopted from live groups."""
    reason: str = "in force when Berth first saw it"
    """Why it is, where nothing recorded says so."""
    moving: bool = False
    """A move is under way."""
    needed: int | None = None
    """Groups that must serve, as the move was decided on: by the traffic that was measured, not the planned one."""


def in_force(snapshot: Snapshot) -> InForce | None:
    """The recorded placement, else the layout of the newest live group with as many groups as live.

    While a move is under way its groups say which of the two it is. A record that names a pool of which there is
    neither an object nor a live group says nothing: the pool was deleted after its groups, or somebody edited it.
    """
    stored = (snapshot.raw.get("status") or {}).get("placement") or {}
    try:
        recorded = [DecidedAllocation.model_validate(each) for each in stored.get("allocations") or ()]
    except ValidationError:
        recorded = []  # a newer release wrote it, or somebody edited it
    live = [group for group in snapshot.groups if group.alive]
    known = snapshot.pools.keys() | {group.allocation.pool for group in live}
    recorded = [each for each in recorded if each.pool in known]
    convoy = convoy_in(snapshot)
    if convoy is not None and not (recorded and layout_of(recorded[0]) == layout_of(convoy.in_force)):
        course = convoy.course
        return InForce(convoy.in_force, None, course.spec_hash, course.reason, moving=True, needed=convoy.needed)
    if recorded:
        found = recorded[0]
        allocation = Allocation(**{name: getattr(found, name) for name in Allocation.model_fields})
        return InForce(allocation, stored.get("groupsForTraffic"), stored.get("specHash"), moving=convoy is not None)
    if not live:
        return None
    newest: Group = max(live, key=lambda group: (group.created_at, group.name))
    shape = {name: getattr(newest.allocation, name) for name in CopyShape.model_fields}
    return InForce(Allocation(**shape, groups=len({group.group for group in live})))


def kept(snapshot: Snapshot) -> Decision | None:
    """The recorded decision if it stands, told from what is stored alone; None if models have to be asked."""
    now = in_force(snapshot)
    if now is None or now.groups_for_traffic is None or not _stays(snapshot, now):
        return None
    return Decision(now.allocation, now.groups_for_traffic, _stored(snapshot))


def decide(snapshot: Snapshot, supplies: Iterable[Supply], memory: Memory) -> Decision:
    """The decision of this pass, with the models asked where it takes them. Raises InvalidSpec."""
    asked = question(snapshot.deployment)
    pools = {supply.name: supply for supply in supplies}
    now = in_force(snapshot)
    stays = now is not None and (now.spec_hash is None or _stays(snapshot, now))
    desk = _Desk(asked, pools, Estimates(asked, pools, memory))
    if now is not None and snapshot.groups and (stays or not _may_move(snapshot)) and not desk.knows(now.allocation):
        return Decision(now.allocation, now.groups_for_traffic or 0, _stored(snapshot))  # what serves, serves on
    if now is not None and stays:
        return _as_it_was(now, desk.keep(now, now.reason))
    allowed = asked.spec.placement.pools
    offered = [supply for name, supply in pools.items() if not allowed or name in allowed]
    answer = choose(asked, offered, desk.evaluation, Layout.of(now.allocation) if now else None)
    if now is not None and snapshot.groups and (answer.chosen is None or not _may_move(snapshot)):
        return desk.keep(now, "in force", answer)
    if answer.chosen is None:
        shortage = Shortage(answer.reason, answer.words)
        return Decision(None, 0, {"candidates": desk.candidates(answer.candidates, None)}, shortage)
    chosen = answer.chosen
    return desk.decided(chosen, chosen.layout.allocation(chosen.groups), answer.words, answer)


def _stays(snapshot: Snapshot, now: InForce) -> bool:
    """Whether nothing asks for another decision."""
    spec = snapshot.deployment.spec
    if spec.pause != "None" and snapshot.groups:
        return True
    if now.spec_hash != spec_hash(spec):
        return now.moving and _still_possible(snapshot, now.allocation)
    if any(group.alive for group in snapshot.groups):
        return True
    return bool(snapshot.groups) and (not snapshot.shortages or not _may_move(snapshot))


def _still_possible(snapshot: Snapshot, allocation: Allocation) -> bool:
    """Whether groups of it can be made by the spec as it is now; a move could not even be ended otherwise."""
    deployment = snapshot.deployment
    try:
        pools = {name: parse_gpupool(raw) for name, raw in snapshot.pools.items() if name == allocation.pool}
        pool = usable_pool(allocation.pool, pools, deployment.metadata.namespace, "status.placement")
        check_allocation(deployment, allocation, pool, resolve_model(deployment), "status.placement")
    except InvalidSpec:
        return False
    return True


def _may_move(snapshot: Snapshot) -> bool:
    return snapshot.deployment.spec.placement.moves.mode == "Auto"


def _as_it_was(now: InForce, decision: Decision) -> Decision:
    """A decision that stays is still of the spec, and of the traffic, that it was made for, whatever is asked now."""
    placement = dict(decision.status["placement"])
    if now.spec_hash is not None:
        placement["specHash"] = now.spec_hash
    if now.needed is not None:
        placement["groupsForTraffic"] = now.needed
        decision = replace(decision, groups_for_traffic=now.needed)
    return replace(decision, status={**decision.status, "placement": placement})


def _stored(snapshot: Snapshot) -> dict[str, Any]:
    status = snapshot.raw.get("status") or {}
    return {name: status[name] for name in ("placement", "candidates", "availability", "calibration") if name in status}


def recorded(
    asked: Question,
    pools: Mapping[str, Supply],
    evaluation: Evaluation,
    answer: Answer,
    chosen: Candidate,
    groups: int,
    reason: str,
) -> Decision:
    """The decision for a candidate of `answer`, with its record."""
    desk = _Desk(asked, pools, evaluation)
    return desk.decided(chosen, chosen.layout.allocation(groups), reason, answer)


# --- what comes of it -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Desk:
    """Where a decision is written down: the question, the pools and what is believed of them."""

    asked: Question
    pools: Mapping[str, Supply]
    evaluation: Evaluation

    def knows(self, allocation: Allocation) -> bool:
        """Whether its pool and its variant still exist."""
        variants = [variant.name for variant in self.asked.variants]
        return allocation.pool in self.pools and allocation.variant in variants

    def keep(self, now: InForce, reason: str, answer: Answer | None = None) -> Decision:
        """The layout in force. If the spec asks for something else (`answer`), with as many groups as it asks for."""
        layout = Layout.of(now.allocation)
        found = next((each for each in answer.candidates if each.layout == layout), None) if answer else None
        groups = now.allocation.groups
        if found is not None and not found.rejected:
            groups = found.groups
        else:
            supply = self.pools[layout.pool]
            sized = size(self.asked, supply, layout, self.evaluation, "simulate", groups=groups)
            found = replace(sized, rejected=found.rejected if found else _NOT_OFFERED if answer else sized.rejected)
        if answer is not None and answer.chosen is None:
            reason = f"{reason}: {answer.words}"
        return self.decided(found, now.allocation.model_copy(update={"groups": groups}), reason, answer)

    def decided(self, chosen: Candidate, allocation: Allocation, reason: str, answer: Answer | None) -> Decision:
        """The chosen candidate as `allocation`, and the record of it."""
        others = [each for each in answer.candidates if each.layout != chosen.layout] if answer else []
        place = answer.candidates.index(chosen) if answer and chosen in answer.candidates else len(others)
        placement = record.placement_status(self.asked, chosen, allocation, self.evaluation, reason[:_LONGEST])
        return Decision(
            allocation=allocation,
            groups_for_traffic=chosen.groups_for_traffic,
            status={
                "placement": record.dump(placement),
                "candidates": self.candidates([*others[:place], chosen, *others[place:]], chosen),
                "availability": record.dump(record.availability_status(self.asked, chosen)),
            },
        )

    def candidates(self, considered: Sequence[Candidate], chosen: Candidate | None) -> list[dict[str, Any]]:
        shown = record.selection(considered, chosen)
        entries = record.candidates_status(self.asked, self.pools, self.evaluation, shown, chosen)
        return [record.dump(entry) for entry in entries]
