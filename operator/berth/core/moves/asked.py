"""A move that a person asks for: sized as the planner would size it, without asking whether it pays."""

from __future__ import annotations

from collections.abc import Iterable

from berth.core.moves.decision import Move
from berth.core.moves.identity import layout_of
from berth.core.moves.swap import why_not
from berth.core.observed import Snapshot
from berth.core.placement.decide import Decision, in_force
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import question
from berth.core.placement.size import Candidate, size
from berth.core.placement.supply import Supply
from berth.core.requests import Request, move_id
from berth.errors import InvalidSpec


def move_asked_for(snapshot: Snapshot, asked: Request, supplies: Iterable[Supply], memory: Memory) -> Move:
    """Raises InvalidSpec (InvalidRequest) where there is no such place, or it cannot serve."""
    assert asked.to is not None
    pools = {supply.name: supply for supply in supplies}
    now = in_force(snapshot)
    where = f"{asked.to.pool} {asked.to.variant} tp{asked.to.tensor_parallel} pp{asked.to.pipeline_parallel}"
    if snapshot.deployment.spec.placement.mode != "Auto":
        raise _refusal("placement.mode is Fixed: edit spec.placement.fixed instead")
    if now is None or not any(group.alive for group in snapshot.groups):
        raise _refusal("nothing is placed yet: there is nothing to move")
    if layout_of(now.allocation) == layout_of(asked.to):
        raise _refusal(f"the deployment runs on {where} already")
    if asked.to.pool not in pools:
        known = ", ".join(sorted(pools)) or "none"
        raise _refusal(f"there is no pool {asked.to.pool} for this namespace: use one of: {known}")
    if asked.to.variant not in {variant.name for variant in snapshot.deployment.spec.model.variants}:
        names = ", ".join(variant.name for variant in snapshot.deployment.spec.model.variants)
        raise _refusal(f"there is no variant {asked.to.variant}: use one of: {names}")
    posed = question(snapshot.deployment)
    estimates = Estimates(posed, pools, memory)
    there = size(posed, pools[asked.to.pool], Layout.of(asked.to), estimates, "simulate", groups=asked.groups)
    if there.rejected is not None:
        raise _refusal(f"{where}: {there.rejected.words}")
    here = size(posed, pools[now.allocation.pool], Layout.of(now.allocation), estimates, groups=now.allocation.groups)
    to = Layout.of(asked.to).allocation(there.groups)
    spec = snapshot.deployment.spec
    for_traffic = here.groups_for_traffic if now.groups_for_traffic is None else now.groups_for_traffic
    leaves = min(max(for_traffic, spec.replica_groups.min_available), now.allocation.groups)
    needed = min(there.needed, there.groups)
    one_by_one = spec.update.surge == "Never"
    if one_by_one and (words := why_not(now.allocation, to, leaves, needed)):
        raise _refusal(f"update.surge is Never, and groups cannot change places one by one: {words}")
    return Move(
        id=move_id(snapshot, asked),
        start=now.allocation,
        to=to,
        cause="Requested",
        reason="asked for",
        decision=Decision(to, there.groups_for_traffic),
        needed=needed,
        capacity_from=_per_group(here),
        capacity_to=_per_group(there),
        cooldown=0.0,
        swap=one_by_one,
        leaves=leaves,
    )


def _per_group(candidate: Candidate) -> float:
    return candidate.capacity.load if candidate.capacity is not None else 0.0


def _refusal(words: str) -> InvalidSpec:
    return InvalidSpec("InvalidRequest", words)
