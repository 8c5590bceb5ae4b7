"""What only shows over time: Leases that stop changing, and reports that have to last to be believed. Pure.

The caller brings the time, of a clock that nobody can set. Invariants:
- Only watched time counts: a look that failed, a gap in the looks or a pause of Berth never makes a node look silent;
- clocks of nodes are never read: a Lease is alive if its content changed between two looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from berth.core.observed import Contact

LONGEST_GAP: Final = 10.0
"""Seconds between two looks after which everything is watched afresh: nodes could not renew while the API was away."""


@dataclass
class _Lease:
    content: str
    quiet: float = 0.0
    """Watched seconds without a change."""
    duration: float = 40.0
    renewed: bool = False
    """A change was seen: before that nobody knows how often this node renews, or whether it ever does."""


@dataclass
class LeaseWatch:
    """Ages of node Leases by observed change. `late_after` and `silent_after` are seconds.

    Kubelets renew four times per lease duration, so the limits grow with leases that are longer than usual.
    """

    late_after: float
    silent_after: float
    _leases: dict[str, _Lease] = field(default_factory=dict)
    _looked: float | None = None

    def look(self, leases: Mapping[str, tuple[str, float]], now: float) -> None:
        """What was just read: by node, its Lease's renewal (opaque) and duration in seconds."""
        passed = now - self._looked if self._looked is not None else 0.0
        self._looked = now
        afresh = passed > LONGEST_GAP
        known, self._leases = self._leases, {}
        for node, (content, duration) in leases.items():
            old = known.get(node)
            if old is None:
                self._leases[node] = _Lease(content, duration=duration)
            elif old.content != content:
                self._leases[node] = _Lease(content, duration=duration, renewed=True)
            else:
                quiet = 0.0 if afresh else old.quiet + passed
                self._leases[node] = _Lease(content, quiet, duration, old.renewed)

    def quiet_for(self, node: str) -> float:
        """Watched seconds since the last change; 0 for a node without a Lease."""
        return self._leases[node].quiet if node in self._leases else 0.0

    def contact(self, node: str, now: float) -> Contact:
        """UNKNOWN while the last look is too old to tell, and for nodes without a Lease."""
        lease = self._leases.get(node)
        if lease is None or self._looked is None or now - self._looked > LONGEST_GAP:
            return Contact.UNKNOWN
        if lease.quiet >= max(self.silent_after, 0.5 * lease.duration):
            return Contact.SILENT
        if lease.quiet >= max(self.late_after, 0.3 * lease.duration):
            return Contact.LATE
        return Contact.FRESH if lease.renewed else Contact.UNKNOWN

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(self._leases)


@dataclass
class Lasting:
    """Reports by key that count only after they were there without a break for `hold` seconds."""

    hold: float
    _since: dict[str, float] = field(default_factory=dict)

    def see(self, keys: Iterable[str], now: float) -> float | None:
        """These are reported now; returns after how many seconds the next of them will have lasted."""
        self._since = {key: self._since.get(key, now) for key in keys}
        waiting = [since + self.hold - now for since in self._since.values()]
        return min((left for left in waiting if left > 0), default=None)

    def lasts(self, key: str, now: float) -> bool:
        return key in self._since and now - self._since[key] >= self.hold


def evacuations_frozen(
    pool: frozenset[str], suspects: frozenset[str], fresh: frozenset[str], *, anybody_reached: bool
) -> str:
    """Why the silence of nodes of `pool` proves nothing, in words; empty when it does.

    `suspects` are all nodes whose Lease is overdue and of which no leader answers, `fresh` those that renew; both of
    the whole cluster. A pool that is really lost has a witness against it: nodes elsewhere that are well.
    """
    here = pool & suspects
    if not here:
        return ""
    if not fresh:
        return f"{len(suspects)} nodes are silent and not one is heard from: the fault is more likely on Berth's side"
    if len(here) < 3 or 2 * len(here) <= len(pool):
        return ""
    if not anybody_reached:
        return f"{len(here)} of {len(pool)} nodes are silent and no leader anywhere can be reached"
    elsewhere, others = suspects - pool, (suspects | fresh) - pool
    if 2 * len(elsewhere) > len(others):
        return f"{len(here)} of {len(pool)} nodes are silent, and {len(elsewhere)} of {len(others)} others are too"
    return ""


@dataclass
class Freezer:
    """Which pools are frozen and why. A freeze ends `calm` seconds after its reason: nodes come back one by one."""

    calm: float = 30.0
    _frozen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def update(self, reasons: Mapping[str, str], now: float) -> frozenset[str]:
        """`reasons` by pool, empty where there is none; returns the pools that are frozen only since now."""
        before = self.frozen
        for pool, reason in reasons.items():
            if reason:
                self._frozen[pool] = reason, now
        self._frozen = {
            pool: (reason, at)
            for pool, (reason, at) in self._frozen.items()
            if now - at < self.calm and pool in reasons
        }
        return frozenset(self._frozen) - frozenset(before)

    @property
    def frozen(self) -> Mapping[str, str]:
        """By pool: why."""
        return {pool: reason for pool, (reason, _) in self._frozen.items()}
