"""When a move is allowed, and when it is worth it.

Gates come first, in the order of what a person would want to hear; none of them asks a model. Then two reasons to go:
a lasting breach that only another placement cures, and a saving that is positive at worst, large enough in
expectation, and paid back in time. A move is never decided on the fast window, on missing data, or for a slow group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from berth.api.placement import Allocation
from berth.core.calibration.diagnose import Diagnosis
from berth.core.calibration.shrink import LONGEST
from berth.core.moves.decision import Cause, Hold
from berth.core.moves.identity import placement_hash
from berth.core.moves.swap import why_not
from berth.core.moves.weigh import Option, Weighed
from berth.core.placement.size import Candidate

DAY: Final = 86400.0
ALLOWED_MISSES: Final = 0.05
"""Objectives are 95th percentiles."""
SURE: Final = 2.33
"""Standard deviations of chance that a lasting breach must exceed: one hour in a hundred."""
FEWEST_REQUESTS: Final = 50.0
"""Independent requests of the slow window below which nothing is decided."""
MOVES_PER_POOL: Final = 2
"""Moves into or out of one pool at a time, all deployments together."""
COST_MOVE_HOURS: Final = 24.0


@dataclass(frozen=True)
class Policy:
    """What the user allows. Times in seconds."""

    mode: Literal["Auto", "Advise", "Off"]
    minimum_gain: float
    pay_back_within: float
    cooldown: float
    max_per_day: int
    gpu_limit: int | None = None
    cost_limit: float | None = None
    surge: bool = True
    prefers_cost: bool = True
    changes_allowed: bool = True
    fixed: bool = False


@dataclass(frozen=True)
class Past:
    """Moves that ended, as status remembers them. Unix seconds."""

    ended: tuple[float, ...] = ()
    cost_moves_from: float = 0.0
    """When the cool-down of the last one ends."""
    taken_back: frozenset[str] = frozenset()
    """Placement hashes that were rolled back from."""

    @property
    def last(self) -> float:
        return max(self.ended, default=0.0)


@dataclass(frozen=True)
class State:
    """How the deployment stands now."""

    failing_over: bool = False
    changing: bool = False
    """Groups start, leave or are updated."""
    waiting: bool = False
    """There is no room for groups that are wanted here."""
    moving: bool = False
    measured: bool = True
    """Metrics are fresh."""
    settled: bool = True
    """The last minutes say of the engines what the hour says; before that nobody knows how bad a change is."""
    effective: float = math.inf
    """Independent requests in the slow window."""
    misses: float = 0.0
    """Share of requests in the slow window that missed an objective; the worse of the two."""
    lasted: float = 3600.0
    """Seconds that the slow window covers."""
    out_of_reach: bool = False
    """Where it runs, one request alone misses an objective, or nearly: more groups do not cure that."""
    beyond_belief: bool = False
    """Steps take longer than is ever believed of a place, so what is believed of staying is too good."""
    too_slow: frozenset[str] = frozenset()
    """Pools of which the same was found lately: what is believed of any layout there is too good."""
    needed: int = 0
    """Groups of the placement in force that must serve."""
    day_known: bool = True
    moves_by_pool: Mapping[str, int] = field(default_factory=dict)
    """Moves of others that are under way, by each pool they touch."""

    @property
    def breached(self) -> bool:
        """The objective was missed for an hour, by more than chance would have it."""
        if not self.measured or self.effective < FEWEST_REQUESTS or self.lasted < 3000:
            return False
        deviation = math.sqrt(ALLOWED_MISSES * (1 - ALLOWED_MISSES) / self.effective)
        return self.misses > ALLOWED_MISSES + SURE * deviation


def gate(now: float, policy: Policy, past: Past, state: State) -> Hold | None:
    """Why there is nothing to weigh at all; None if there is."""
    if policy.fixed:
        return Hold("FixedPlacement")
    if policy.mode == "Off":
        return Hold("MovesOff")
    if not policy.changes_allowed:
        return Hold("Paused")
    if state.moving:
        return Hold("Moving")
    if not state.measured:
        return Hold("NoMetrics", "metrics are missing or stale, so nothing is decided")
    if state.failing_over:
        return Hold("FailingOver")
    if state.changing:
        return Hold("Changing")
    if not state.settled:
        return Hold("Unsettled", "step times are changing: the last minutes say something else than the hour")
    if state.effective < FEWEST_REQUESTS:
        return Hold(
            "TooFewSamples", f"{state.effective:.0f} independent requests in an hour, {FEWEST_REQUESTS:.0f} needed"
        )
    if len([each for each in past.ended if now - each < DAY]) >= policy.max_per_day:
        return Hold("MovesOfTheDaySpent", f"{policy.max_per_day} moves within 24 hours")
    if now < past.last + policy.cooldown:
        return Hold("CoolingDown", f"the last move ended {(now - past.last) / 60:.0f} minutes ago")
    if not state.breached and not state.day_known:
        return Hold("LessThanADay")
    if not state.breached and not policy.prefers_cost:
        return Hold("NothingBetter", "objectives are met, and cost is not what is preferred")
    return None


def best(
    now: float, policy: Policy, past: Past, state: State, found: Weighed, in_force: Allocation, why: Diagnosis
) -> tuple[Option, Cause] | Hold:
    """The option to go for, with its cause, or why there is none."""
    if state.breached and (state.out_of_reach or state.beyond_belief or not found.can_stay):
        return _cure(policy, past, state, found, in_force, why)
    return _saving(now, policy, past, state, found, in_force)


def _cure(
    policy: Policy, past: Past, state: State, found: Weighed, in_force: Allocation, why: Diagnosis
) -> tuple[Option, Cause] | Hold:
    """For a breach that no number of groups here cures."""
    if why.cause == "SlowGroup":
        return Hold("SlowGroup", why.message)
    if why.cause == "None":
        return Hold(
            "NoCure", "neither a slow pool nor more traffic explains the breach, so another pool may be no cure"
        )
    elsewhere = [
        each for each in found.options if not (state.beyond_belief and each.candidate.layout.pool == in_force.pool)
    ]
    curing = [each for each in elsewhere if not each.at_worst.rejected]
    if not curing:
        return Hold("NoCure", found.answer.words if found.answer.chosen is None else "")
    return _allowed(policy, past, state, curing, found, in_force, "Objectives")


def _saving(
    now: float, policy: Policy, past: Past, state: State, found: Weighed, in_force: Allocation
) -> tuple[Option, Cause] | Hold:
    """For money."""
    if state.breached:
        return Hold("MoreGroupsHelp", f"{found.stay.groups} groups here meet the objectives")
    if not policy.prefers_cost or not state.day_known:
        return Hold("NothingBetter")
    if now < past.cost_moves_from:
        return Hold("CoolingDown", "the last move has not paid for itself three times")
    stay = found.stay_per_hour
    paying = [
        each
        for each in found.options
        if stay is not None
        and each.saving is not None
        and each.saving_at_worst is not None
        and each.saving_at_worst > 0
        and each.saving >= policy.minimum_gain * stay
    ]
    if not paying:
        return Hold("NothingBetter")
    quick = [each for each in paying if each.pay_back is not None and each.pay_back <= policy.pay_back_within]
    if not quick:
        hours = min(each.pay_back or math.inf for each in paying) / 3600
        return Hold("PaysBackTooLate", f"the best saving pays for its move in {hours:.1f} h")
    return _allowed(policy, past, state, quick, found, in_force, "Cost")


def _allowed(
    policy: Policy, past: Past, state: State, options: list[Option], found: Weighed, in_force: Allocation, cause: Cause
) -> tuple[Option, Cause] | Hold:
    """The first option that nothing forbids; else what forbids the first."""
    refusals = []
    for option in options:
        refusal = _forbidden(policy, past, state, option, found, in_force)
        if refusal is None:
            return option, cause
        refusals.append(refusal)
    return refusals[0]


def _forbidden(
    policy: Policy, past: Past, state: State, option: Option, found: Weighed, in_force: Allocation
) -> Hold | None:
    candidate = option.candidate
    if candidate.waits:
        return Hold("NoCapacity", f"{candidate.layout}: {candidate.waits}")
    if not candidate.available:
        return Hold("NothingBetter", f"{candidate.layout} misses the availability target")
    if placement_hash(candidate.layout.allocation(1)) in past.taken_back:
        return Hold("RolledBackBefore", f"{candidate.layout} was tried and taken back")
    if candidate.layout.pool in state.too_slow:
        longest = f"{math.exp(LONGEST):g} times as long as predicted"
        return Hold("PoolTooSlow", f"steps on pool {candidate.layout.pool} took more than {longest} when it was tried")
    for pool in {in_force.pool, candidate.layout.pool}:
        if state.moves_by_pool.get(pool, 0) >= MOVES_PER_POOL:
            return Hold("PoolBusy", f"{MOVES_PER_POOL} other deployments are moving into or out of pool {pool}")
    if not policy.surge:
        to = candidate.layout.allocation(candidate.groups)
        words = why_not(in_force, to, state.needed, candidate.needed)
        if words or state.waiting:
            words = words or "not all groups here have found room"
            better = f"{candidate.layout} x {candidate.groups} would be better, but update.surge is Never and"
            return Hold("NoSurgePossible", f"{better} {words}: WhenCapacity lets it move")
    limits = policy.gpu_limit, policy.cost_limit
    words = beyond_limits(*limits, in_force, candidate, found.in_force_per_hour, both_sides=policy.surge)
    return Hold("LimitReached", words) if words else None


def beyond_limits(
    gpu_limit: int | None,
    cost_limit: float | None,
    in_force: Allocation,
    candidate: Candidate,
    in_force_per_hour: float | None,
    *,
    both_sides: bool,
) -> str:
    """Which of the user's limits the move exceeds at some moment; empty if none.

    `both_sides` are held at once, else groups change places one by one, and no more GPUs are held than now.
    """
    held = in_force.groups * in_force.gpus
    if both_sides and gpu_limit is not None and held + candidate.gpus > gpu_limit:
        return f"{held} GPUs here and {candidate.gpus} there exceed limits.gpus {gpu_limit}"
    if cost_limit is None or candidate.cost is None or in_force_per_hour is None:
        return ""
    here, there = in_force_per_hour, candidate.cost.per_hour
    if both_sides and here + there > cost_limit:
        return f"{here:.2f} per hour here and {there:.2f} there exceed limits.costPerHour {cost_limit:g}"
    most = max(here / in_force.groups, there / candidate.groups) * in_force.groups
    if not both_sides and most > cost_limit:
        return f"up to {most:.2f} per hour exceed limits.costPerHour {cost_limit:g}"
    return ""
