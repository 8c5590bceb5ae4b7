"""A move that a person asks for: sized as the planner would size it, without asking whether it pays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from berth.api.common import number
from berth.core.moves.decision import Move
from berth.core.moves.identity import layout_of
from berth.core.moves.rules import beyond_limits
from berth.core.moves.swap import why_not
from berth.core.observed import Snapshot
from berth.core.placement.decide import Decision, InForce, in_force
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question, question
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
    here = _as_it_is(posed, pools, now, estimates)
    to = Layout.of(asked.to).allocation(there.groups)
    spec = snapshot.deployment.spec
    for_traffic = now.groups_for_traffic
    if for_traffic is None:
        for_traffic = here.groups_for_traffic if here is not None else now.allocation.groups
    leaves = min(max(for_traffic, spec.replica_groups.min_available), now.allocation.groups)
    needed = min(there.needed, there.groups)
    one_by_one = spec.update.surge == "Never"
    if one_by_one and (words := why_not(now.allocation, to, leaves, needed)):
        raise _refusal(f"update.surge is Never, and groups cannot change places one by one: {words}")
    if to.groups < (least := spec.replica_groups.min_available):
        raise _refusal(f"{to.groups} groups are fewer than replicaGroups.minAvailable {least}")
    limits = spec.objectives.limits
    words = beyond_limits(
        limits.gpus,
        None if limits.cost_per_hour is None else number(limits.cost_per_hour),
        now.allocation,
        there,
        here.cost.per_hour if here is not None and here.cost is not None else None,
        both_sides=not one_by_one,
    )
    if words:
        raise _refusal(f"{where} x {to.groups}: {words}")
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


def _as_it_is(posed: Question, pools: Mapping[str, Supply], now: InForce, estimates: Estimates) -> Candidate | None:
    """The placement in force; None where its pool or its variant is gone, and nobody knows what its groups carry."""
    allocation = now.allocation
    if allocation.pool not in pools or allocation.variant not in {variant.name for variant in posed.variants}:
        return None
    return size(posed, pools[allocation.pool], Layout.of(allocation), estimates, groups=allocation.groups)


def _per_group(candidate: Candidate | None) -> float:
    """0: nobody knows."""
    return candidate.capacity.requests_per_second if candidate is not None and candidate.capacity is not None else 0.0


def _refusal(words: str) -> InvalidSpec:
    return InvalidSpec("InvalidRequest", words)
