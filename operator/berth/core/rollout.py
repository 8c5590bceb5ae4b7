"""Which groups a deployment should have next: creating, replacing, updating and removing whole groups.

Groups are numbered slots g0, g1, ...; one slot holds at most one incarnation of the wanted template that may stay where
it is, and while it is on its way the one it replaces: of an older template, or displaced (its node is about to go).
Invariants:
- neither an update, which touches one slot at a time, nor the way off a node takes a serving group away while fewer
  than `needed` would be left;
- a lost group is replaced at once, one that keeps failing with growing delay, and past its failure budget not at all:
  the rest serves on;
- limits bound everything that holds GPUs, groups on their way out included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Final

from berth import labels
from berth.core.observed import Group, Shortage
from berth.core.recovery import RecoveryPolicy, Setback, setback

GONE_AFTER_SECONDS: Final = 30.0
"""So long after its time a pod's node may take to say that it is gone."""


@dataclass(frozen=True)
class RolloutPolicy:
    """What bounds a rollout. Times in seconds."""

    wanted: int
    needed: int
    template_hash: str
    gpus_per_group: int
    gpu_limit: int | None
    surge: bool
    max_unavailable: int
    recovery: RecoveryPolicy
    deadline: float
    down_to_needed: bool = False
    """Without room for their replacements displaced groups leave as long as those that are needed stay."""
    changes_allowed: bool = True
    """False while the user paused changes: lost groups are still replaced, nothing is updated, added or removed."""


@dataclass(frozen=True)
class NewGroup:
    """A group to create: its slot, its incarnation, and why."""

    group: int
    incarnation: int
    reason: str


@dataclass(frozen=True)
class Rollout:
    """The next step. `blocked` says why nothing more happens although something is wanted."""

    create: tuple[NewGroup, ...] = ()
    retire: tuple[Group, ...] = ()
    expired: tuple[Group, ...] = ()
    """Updates that did not serve within the deadline while the group they replace still stands: failures."""
    blocked: Shortage | None = None
    stalled: str = ""
    """Over the failure budget: the words for the condition, else empty."""
    backing_off: str = ""
    """Groups failed repeatedly and the next attempt waits: the words for it, else empty."""
    retry_after: float | None = None
    updating: bool = False
    """Groups of an older template are still there."""
    displaced: tuple[Group, ...] = ()
    """Groups whose node is about to go and that have not begun to leave it."""
    held: str = ""
    """Why a displaced group can neither be replaced nor leave; empty while it can."""


def plan_rollout(
    groups: Sequence[Group],
    serving: frozenset[str],
    former: Mapping[int, int],
    shortages: Mapping[int, Shortage],
    policy: RolloutPolicy,
    now: float,
    jitter: float,
    displaced: Collection[str] = (),
    aside: Collection[str] = (),
    promised: Collection[int] = (),
) -> Rollout:
    """Next step towards `policy.wanted` groups of `policy.template_hash`, none of them `displaced` (names).

    `serving` names the ReplicaGroups that serve, some before their label is seen: only with it do requests reach them,
    and only then may others leave in their favour. Per slot, `former` are the highest incarnations known beside their
    ReplicaGroups and `shortages` what came of the last attempt; `jitter` in [0, 1) spreads retries of deployments.
    Groups named in `aside` belong to another placement: they hold slots and GPUs and are otherwise left alone. Slots
    `promised` get a group of that one in this very pass.
    """
    alive = [group for group in groups if group.alive and group.name not in aside]
    taken = frozenset([*promised, *(group.group for group in groups if group.alive and group.name in aside)])
    routed = frozenset(group.name for group in alive if group.name in serving and group.leader and group.leader.serving)
    slots = _choose_slots(alive, serving, displaced, taken, policy)
    retire = _no_longer_wanted(alive, routed, displaced, slots, policy) if policy.changes_allowed else []
    staying = _without(alive, retire)
    outdated = [group for group in staying if group.template_hash != policy.template_hash]
    occupied = {group.group for group in staying}
    missing = [slot for slot in sorted(slots) if slot not in occupied]
    if not policy.changes_allowed:
        lost = {group.group for group in groups if group.lifecycle == labels.FAILED}
        missing = [slot for slot in missing if slot in lost]
    lives = by_slot(groups)
    setbacks = {
        slot: setback(
            lives.get(slot, ()), slot, policy.template_hash, shortages.get(slot), policy.recovery, now, jitter
        )
        for slot in slots
    }
    draining = {} if policy.surge else _on_their_way_out(groups, now)
    missing = [slot for slot in missing if slot not in draining]
    budget = _GPUBudget(groups, policy)
    create: list[NewGroup] = []
    blocked: Shortage | None = None
    for slot in missing:
        if setbacks[slot].holds:
            continue
        if budget.take():
            reason = "Replace" if slot in lives else "Create"
            create.append(NewGroup(slot, next_incarnation(lives.get(slot, ()), former, slot), reason))
        else:
            blocked = budget.shortage()
    waiting = [setbacks[slot] for slot in missing]
    restless = [group for group in staying if group.name in displaced]
    away = _Departure()
    if restless and policy.changes_allowed:
        away = _make_way(staying, restless, routed, shortages, policy, budget, setbacks)
        create += [NewGroup(slot, next_incarnation(lives[slot], former, slot), "Move") for slot in away.create]
        waiting += away.waiting
    retire += away.retire
    outdated = _without(outdated, restless)
    if outdated and policy.changes_allowed and not retire and not set(away.create) - set(shortages):
        step = _update_one(
            alive, outdated, serving, routed, shortages, policy, budget, setbacks, bool(missing or draining)
        )
        if step.create is not None:
            create.append(NewGroup(step.create, next_incarnation(lives[step.create], former, step.create), "Update"))
        retire += step.retire
        blocked = blocked or step.blocked
        waiting += step.waiting
    for slot in missing:
        blocked = blocked or shortages.get(slot)
    started = _unproven(alive, serving, policy, outdated, restless) if policy.changes_allowed else []
    left = {group.name: (group.waiting_since or now) + policy.deadline - now for group in started}
    delays = [*left.values(), *draining.values()]
    delays += [each.delay for each in waiting if each.holds]
    return Rollout(
        tuple(create),
        tuple(retire),
        tuple(group for group in started if left[group.name] <= 0),
        blocked,
        "; ".join(each.spent for each in waiting if each.spent),
        "; ".join(each.backing_off for each in waiting if each.backing_off),
        min((delay for delay in delays if 0 < delay < inf), default=None),
        updating=bool(outdated),
        displaced=tuple(_without(restless, retire)) if policy.changes_allowed else (),
        held=away.held,
    )


def _on_their_way_out(groups: Iterable[Group], now: float) -> dict[int, float]:
    """Slots of groups that drain or end, with the seconds their pods still have where they were told to end.

    Two of one slot, one of them on its way out, would be a surge too. A pod that outstays its time is not waited for:
    its node may never say that it is gone.
    """
    found = {}
    for group in groups:
        ends = (inf if each.deleted_at is None else each.deleted_at + GONE_AFTER_SECONDS for each in group.members)
        left = [each - now for each in ends]
        if group.lifecycle == labels.RETIRING and any(each > 0 for each in left):
            found[group.group] = max(left)
    return found


def by_slot(groups: Iterable[Group]) -> dict[int, list[Group]]:
    """The lives of each slot, in the order given."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(group.group, []).append(group)
    return found


def _without(groups: Iterable[Group], others: Iterable[Group]) -> list[Group]:
    """By name: to compare groups themselves costs more than all the rest."""
    names = {group.name for group in others}
    return [group for group in groups if group.name not in names]


def next_incarnation(groups: Iterable[Group], former: Mapping[int, int], slot: int) -> int:
    """One more than any incarnation of the slot that is still seen: failed, terminating, or of pods alone."""
    return max([former.get(slot, 0), *(group.incarnation for group in groups if group.group == slot)]) + 1


def _choose_slots(
    alive: Sequence[Group],
    serving: frozenset[str],
    displaced: Collection[str],
    taken: frozenset[int],
    policy: RolloutPolicy,
) -> frozenset[int]:
    """The slots to keep or fill: those that serve first, then those that may stay, the most recent template, low."""
    best: dict[int, tuple[bool, bool, bool, int]] = {}
    for group in alive:
        outdated = group.template_hash != policy.template_hash
        rank = (group.name not in serving, group.name in displaced, outdated, group.group)
        best[group.group] = min(best.get(group.group, rank), rank)
    chosen = sorted(best, key=lambda slot: best[slot])[: policy.wanted]
    free = (slot for slot in count() if slot not in best and slot not in taken)
    while len(chosen) < policy.wanted:
        chosen.append(next(free))
    return frozenset(chosen)


def _no_longer_wanted(
    alive: Sequence[Group],
    routed: frozenset[str],
    displaced: Collection[str],
    slots: frozenset[int],
    policy: RolloutPolicy,
) -> list[Group]:
    """Surplus groups, and the others in slots where a group of the wanted template gets requests.

    As many as are needed stay until others get requests in their place.
    """
    leaving = [group for group in alive if group.group not in slots]
    mates = by_slot(alive)
    for slot in sorted(slots & mates.keys()):
        leaving += _superseded(mates[slot], routed, displaced, policy)
    staying = sum(group.name in routed for group in _without(alive, leaving))
    kept = [group for group in reversed(leaving) if group.name in routed][: max(0, policy.needed - staying)]
    return _without(leaving, kept)


def _superseded(
    mates: Sequence[Group], routed: frozenset[str], displaced: Collection[str], policy: RolloutPolicy
) -> list[Group]:
    """Of the groups in one slot those that have done their part.

    One that gets requests where it may stay ends all others, a replacement that is no longer called for among them.
    Until then what served stays, and the oldest that is on its way to a place where it may stay.
    """
    current = sorted(
        (group for group in mates if group.template_hash == policy.template_hash), key=lambda each: each.incarnation
    )
    settled = [group for group in current if group.name in routed and group.name not in displaced]
    coming = [group for group in current if group.name not in displaced and group not in settled]
    if settled:
        return [group for group in mates if group is not settled[-1]]
    unborn = [group for group in current if group.name in displaced and not _ever_served(group)] if coming else []
    return coming[1:] + unborn


def _ever_served(group: Group) -> bool:
    return group.leader is not None and group.leader.token_restarts is not None


def _unproven(
    alive: Sequence[Group],
    serving: frozenset[str],
    policy: RolloutPolicy,
    outdated: Sequence[Group],
    displaced: Sequence[Group],
) -> list[Group]:
    """Groups of the wanted template that do not serve yet while what they replace still stands."""
    places = {group.group for group in displaced}
    coming = alive if outdated else [group for group in _without(alive, displaced) if group.group in places]
    return [group for group in coming if group.template_hash == policy.template_hash and group.name not in serving]


@dataclass(frozen=True)
class _Departure:
    """What happens to the groups whose nodes are about to go; `create` are slots that get another incarnation."""

    create: tuple[int, ...] = ()
    retire: tuple[Group, ...] = ()
    held: str = ""
    waiting: tuple[Setback, ...] = ()


def _make_way(
    staying: Sequence[Group],
    restless: Sequence[Group],
    routed: frozenset[str],
    shortages: Mapping[int, Shortage],
    policy: RolloutPolicy,
    budget: _GPUBudget,
    setbacks: Mapping[int, Setback],
) -> _Departure:
    """Replacements first, all at once; a group leaves before its own serves only where the user lets it.

    That is without room for them under `whenNoCapacity: DownToNeeded`, and within maxUnavailable under `surge: Never`.
    """
    create: list[int] = []
    retire: list[Group] = []
    held: list[str] = []
    waiting: list[Setback] = []
    left = {group.name for group in staying if group.name in routed}
    leaving, others = by_slot(restless), by_slot(_without(staying, restless))
    for slot in sorted(leaving.keys() & setbacks.keys()):
        here, coming = leaving[slot], others.get(slot, [])
        if any(group.template_hash == policy.template_hash for group in coming):
            continue
        if setbacks[slot].holds:
            waiting.append(setbacks[slot])
            continue
        shortage = shortages.get(slot)
        if policy.surge and budget.take():
            create.append(slot)
            if shortage is None:
                continue
        elif policy.surge:
            shortage = budget.shortage()
        after = left - {group.name for group in here}
        spare = policy.down_to_needed or (not policy.surge and policy.wanted - len(after) <= policy.max_unavailable)
        if spare and len(after) >= policy.needed:
            left = after
            retire += here
            continue
        held.append(_why_held(here[0], shortage, len(after), policy))
    return _Departure(tuple(create), tuple(retire), "; ".join(held), tuple(waiting))


def _why_held(group: Group, shortage: Shortage | None, left: int, policy: RolloutPolicy) -> str:
    room = shortage.message if shortage else "update.surge is Never"
    if left < policy.needed:
        return f"g{group.group} cannot be replaced ({room}) and without it {left} of {policy.needed} needed would serve"
    if policy.surge:
        return f"g{group.group} cannot be replaced ({room}) and disruption.whenNoCapacity is Block"
    return f"g{group.group} waits: {room} and update.maxUnavailable {policy.max_unavailable} is used up"


@dataclass(frozen=True)
class _Step:
    """One move of an update; `create` is the slot that gets another incarnation."""

    create: int | None = None
    retire: tuple[Group, ...] = ()
    blocked: Shortage | None = None
    waiting: tuple[Setback, ...] = ()


def _update_one(
    alive: Sequence[Group],
    outdated: Sequence[Group],
    serving: frozenset[str],
    routed: frozenset[str],
    shortages: Mapping[int, Shortage],
    policy: RolloutPolicy,
    budget: _GPUBudget,
    setbacks: Mapping[int, Setback],
    waits: bool,
) -> _Step:
    """The next move of an update; `waits`: slots are missing, or without surge still being left.

    Old groups that do not serve go first, even before missing ones exist: theirs may be the GPUs that are missing.
    """
    current = [group for group in alive if group.template_hash == policy.template_hash]
    if not all(group.name in routed for group in current):
        return _Step()
    idle = [group for group in outdated if group.name not in serving]
    if idle:
        return _Step(retire=(idle[0],))
    if waits:
        return _Step()
    oldest = max(outdated, key=lambda group: group.group)
    if setbacks[oldest.group].holds:
        return _Step(blocked=shortages.get(oldest.group), waiting=(setbacks[oldest.group],))
    shortage = shortages.get(oldest.group)
    attempt: int | None = None
    if policy.surge and budget.take():
        attempt = oldest.group
        if shortage is None:
            return _Step(create=attempt)
    elif policy.surge:
        shortage = shortage or budget.shortage()
    left = len(routed - {oldest.name})
    if left >= policy.needed and policy.wanted - left <= policy.max_unavailable:
        return _Step(retire=(oldest,))
    message = (
        f"updating {oldest.name} needs {policy.gpus_per_group} more GPUs or one group less: "
        f"{shortage.message if shortage else 'surge is Never'}; {left} groups would be left, "
        f"{policy.needed} are needed, update.maxUnavailable is {policy.max_unavailable}"
    )
    return _Step(create=attempt, blocked=Shortage("NoSurgePossible", message))


class _GPUBudget:
    """`objectives.limits.gpus` against everything that holds GPUs at this moment."""

    def __init__(self, groups: Sequence[Group], policy: RolloutPolicy) -> None:
        self._limit = policy.gpu_limit
        self._each = policy.gpus_per_group
        self._held = sum(group.allocation.gpus for group in groups if group.holds_gpus)
        self._leaving = sum(group.allocation.gpus for group in groups if group.holds_gpus and not group.alive)

    def take(self) -> bool:
        """Room for one more group?"""
        if self._limit is not None and self._held + self._each > self._limit:
            return False
        self._held += self._each
        return True

    def shortage(self) -> Shortage:
        """For good, or until those on their way out are gone."""
        message = f"{self._held} of objectives.limits.gpus {self._limit} are in use, a group needs {self._each} more"
        if self._leaving:
            return Shortage("WaitingForCapacity", f"{message}; {self._leaving} are held by groups on their way out")
        return Shortage("LimitReached", message)
