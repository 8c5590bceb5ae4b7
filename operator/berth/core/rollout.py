"""Which groups a deployment should have next: creating, replacing, updating and removing whole groups.

Groups are numbered slots g0, g1, ...; one slot holds at most one incarnation of the wanted template, and during an
update the one before it. Invariants:
- an update touches one slot at a time, and never takes a serving group away while fewer than `needed` would be left;
- a lost group is replaced at once, a repeatedly failing template with growing delay, and past the failure budget not at
  all: the rest serves on;
- limits bound everything that holds GPUs, groups on their way out included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from berth import labels
from berth.core.observed import Group, Shortage


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
    max_failures: int
    failure_window: float
    initial_backoff: float
    max_backoff: float
    deadline: float
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
    retry_after: float | None = None
    updating: bool = False
    """Groups of an older template are still there."""


def plan_rollout(
    groups: Sequence[Group],
    serving: frozenset[str],
    shortages: Mapping[int, Shortage],
    policy: RolloutPolicy,
    now: float,
    jitter: float,
) -> Rollout:
    """Next step towards `policy.wanted` groups of `policy.template_hash`.

    `serving` names the ReplicaGroups that serve; `shortages` is what the arbiter last answered per slot; `jitter` in
    [0, 1) spreads retries of different deployments.
    """
    alive = [group for group in groups if group.alive]
    slots = _choose_slots(alive, serving, policy)
    retire = _superseded(alive, serving, policy)
    if policy.changes_allowed:
        retire += [group for group in alive if group.group not in slots]
    delay, stalled = _failure_delay(groups, policy, now, jitter)
    outdated = [group for group in alive if group.template_hash != policy.template_hash and group not in retire]
    occupied = {group.group for group in alive if group not in retire}
    missing = [slot for slot in sorted(slots) if slot not in occupied]
    if not policy.changes_allowed:
        lost = {group.group for group in groups if group.lifecycle == labels.FAILED}
        missing = [slot for slot in missing if slot in lost]
    budget = _GPUBudget(groups, policy)
    create: list[NewGroup] = []
    blocked: Shortage | None = None
    if not stalled and delay <= 0:
        for slot in missing:
            if budget.take():
                reason = "Replace" if any(group.group == slot for group in groups) else "Create"
                create.append(NewGroup(slot, next_incarnation(groups, slot), reason))
            else:
                blocked = budget.shortage()
        if not missing and outdated and policy.changes_allowed and not retire:
            step = _update_one(groups, alive, outdated, serving, shortages, policy, budget)
            create += step.create
            retire += step.retire
            blocked = blocked or step.blocked
    for slot in missing:
        blocked = blocked or shortages.get(slot)
    return Rollout(
        tuple(create),
        tuple(retire),
        tuple(_expired(alive, serving, policy, now)),
        blocked,
        stalled,
        delay if delay > 0 else None,
        updating=bool(outdated),
    )


def next_incarnation(groups: Iterable[Group], slot: int) -> int:
    """One more than any incarnation of the slot that is still seen, failed and terminating ones included."""
    return max((group.incarnation for group in groups if group.group == slot), default=0) + 1


def _choose_slots(alive: Sequence[Group], serving: frozenset[str], policy: RolloutPolicy) -> frozenset[int]:
    """The slots to keep or fill: those that serve first, then the most recent template, then low numbers."""
    best: dict[int, tuple[bool, bool, int]] = {}
    for group in alive:
        rank = (group.name not in serving, group.template_hash != policy.template_hash, group.group)
        best[group.group] = min(best.get(group.group, rank), rank)
    chosen = sorted(best, key=lambda slot: best[slot])[: policy.wanted]
    free = (slot for slot in range(policy.wanted + len(best)) if slot not in best)
    while len(chosen) < policy.wanted:
        chosen.append(next(free))
    return frozenset(chosen)


def _superseded(alive: Sequence[Group], serving: frozenset[str], policy: RolloutPolicy) -> list[Group]:
    """Older incarnations in slots whose newest incarnation of the wanted template serves."""
    done = {
        group.group: group.incarnation
        for group in alive
        if group.template_hash == policy.template_hash and group.name in serving
    }
    return [group for group in alive if group.group in done and group.incarnation < done[group.group]]


def _expired(alive: Sequence[Group], serving: frozenset[str], policy: RolloutPolicy, now: float) -> list[Group]:
    older = {group.group for group in alive if group.template_hash != policy.template_hash}
    return [
        group
        for group in alive
        if group.template_hash == policy.template_hash
        and group.group in older
        and group.name not in serving
        and now - group.created_at >= policy.deadline
    ]


def _failure_delay(groups: Sequence[Group], policy: RolloutPolicy, now: float, jitter: float) -> tuple[float, str]:
    """(seconds to wait before the next creation, words when the budget is spent).

    The first failure is replaced at once; from the second on the delay doubles. Only failures of the wanted template
    count, so that a corrected spec starts afresh.
    """
    times = sorted(
        group.failed_at
        for group in groups
        if group.lifecycle == labels.FAILED
        and group.template_hash == policy.template_hash
        and group.failed_at is not None
        and now - group.failed_at < policy.failure_window
    )
    if len(times) >= policy.max_failures:
        until = times[-policy.max_failures] + policy.failure_window - now
        bound = f"recovery.maxFailures {policy.max_failures}"
        words = f"{len(times)} groups failed within {policy.failure_window:.0f}s ({bound})"
        return max(until, 1.0), words
    if len(times) < 2:
        return 0.0, ""
    backoff = min(policy.initial_backoff * 2.0 ** (len(times) - 2), policy.max_backoff)
    return times[-1] + backoff * (1.0 + 0.2 * jitter) - now, ""


def _update_one(
    groups: Sequence[Group],
    alive: Sequence[Group],
    outdated: Sequence[Group],
    serving: frozenset[str],
    shortages: Mapping[int, Shortage],
    policy: RolloutPolicy,
    budget: _GPUBudget,
) -> Rollout:
    """The next move of an update; called only when every slot is filled and nothing else is on its way out."""
    current = [group for group in alive if group.template_hash == policy.template_hash]
    if any(group.name not in serving for group in current):
        return Rollout()
    idle = [group for group in outdated if group.name not in serving]
    if idle:
        return Rollout(retire=(idle[0],))
    oldest = max(outdated, key=lambda group: group.group)
    shortage = shortages.get(oldest.group)
    if policy.surge and budget.take():
        created = NewGroup(oldest.group, next_incarnation(groups, oldest.group), "Update")
        if shortage is None:
            return Rollout(create=(created,))
        attempt: tuple[NewGroup, ...] = (created,)
    else:
        attempt = ()
        shortage = shortage or (budget.shortage() if policy.surge else None)
    left = len(serving) - 1
    if left >= policy.needed and policy.wanted - left <= policy.max_unavailable:
        return Rollout(retire=(oldest,))
    message = (
        f"updating {oldest.name} needs {policy.gpus_per_group} more GPUs or one group less: "
        f"{shortage.message if shortage else 'surge is Never'}; {left} groups would be left, "
        f"{policy.needed} are needed, update.maxUnavailable is {policy.max_unavailable}"
    )
    return Rollout(create=attempt, blocked=Shortage("NoSurgePossible", message))


class _GPUBudget:
    """`objectives.limits.gpus` against everything that holds GPUs at this moment."""

    def __init__(self, groups: Sequence[Group], policy: RolloutPolicy) -> None:
        self._limit = policy.gpu_limit
        self._each = policy.gpus_per_group
        self._held = sum(group.allocation.gpus for group in groups if group.holds_gpus)

    def take(self) -> bool:
        """Room for one more group?"""
        if self._limit is not None and self._held + self._each > self._limit:
            return False
        self._held += self._each
        return True

    def shortage(self) -> Shortage:
        message = f"{self._held} of objectives.limits.gpus {self._limit} are in use, a group needs {self._each} more"
        return Shortage("LimitReached", message)
