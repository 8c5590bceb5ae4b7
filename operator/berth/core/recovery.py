"""When a slot whose groups failed is tried again: at once, after a while, or not any more. Pure.

The failures are counted from the failed ReplicaGroups, which stay for the window: a restart forgets none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from berth import labels
from berth.core.failures import DRAINED
from berth.core.observed import Group, Shortage
from berth.core.timestamps import timestamp


@dataclass(frozen=True)
class RecoveryPolicy:
    """`spec.replicaGroups.recovery`; times in seconds."""

    max_failures: int
    window: float
    initial_backoff: float
    max_backoff: float


@dataclass(frozen=True)
class Setback:
    """What the failures of a slot mean for its next incarnation."""

    delay: float = 0.0
    """Seconds to wait before it is made."""
    spent: str = ""
    """Not empty when the failure budget is spent: the words for it."""
    backing_off: str = ""
    """Not empty while the next attempt waits: the words for that."""

    @property
    def holds(self) -> bool:
        return self.delay > 0


def setback(
    groups: Iterable[Group],
    slot: int,
    template_hash: str,
    shortage: Shortage | None,
    policy: RecoveryPolicy,
    now: float,
    jitter: float,
) -> Setback:
    """The first failure is replaced at once; from the second on the delay doubles, up to the failure budget.

    Only failures of the wanted template count, so that a corrected spec starts afresh; and no drains, else one
    node drained after the other would spend the budget of a group that takes long to load. `jitter` is in [0, 1).
    """
    if shortage is not None and shortage.until is not None and shortage.until > now:
        return Setback(shortage.until - now)
    times = sorted(
        group.failed_at
        for group in groups
        if group.group == slot
        and group.lifecycle == labels.FAILED
        and group.template_hash == template_hash
        and group.failure_reason != DRAINED
        and group.failed_at is not None
        and now - group.failed_at < policy.window
    )
    told = f"g{slot} failed {len(times)} times within {policy.window:.0f}s"
    if len(times) >= policy.max_failures:
        until = times[-policy.max_failures] + policy.window - now
        return Setback(max(until, 1.0), spent=f"{told} (recovery.maxFailures {policy.max_failures})")
    if len(times) < 2:
        return Setback()
    backoff = min(policy.initial_backoff * 2.0 ** (len(times) - 2), policy.max_backoff)
    again = times[-1] + backoff * (1.0 + 0.2 * jitter)
    return Setback(again - now, backing_off=f"{told}: next attempt at {timestamp(again)}") if again > now else Setback()
