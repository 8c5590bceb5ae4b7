"""Everything measured of one deployment at one moment, and of one pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from berth.core.measurement.samples import Objectives
from berth.core.measurement.windows import Windows


@dataclass(frozen=True, slots=True)
class GroupMeasured:
    """One incarnation that serves, or served within the last hour."""

    name: str
    """Of its ReplicaGroup object."""
    pool: str
    revision: str
    """Template hash of the ReplicaGroup: groups of one revision have the same placement."""
    windows: Windows
    read_at: float | None
    """Unix seconds of the newest sample; None before the first."""
    serving: bool
    """It gets requests now. What others contribute happened before."""
    serving_since: float = 0.0
    """Unix seconds at which it was first seen to serve; nobody expects a sample at once."""
    running: float | None = None
    """Requests the engine works on, at the newest sample."""
    waiting: float | None = None
    kv_use: float | None = None
    """0..1, at the newest sample."""
    problem: str = ""
    """Why it could not be read the last time, in a few words; empty if it could."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the leaders of one deployment said. Decisions are made on it only while `fresh`."""

    at: float
    """Unix seconds of this account."""
    groups: tuple[GroupMeasured, ...] = ()
    """By name."""
    deployment: Windows = field(default_factory=Windows)
    """All groups together, whatever their revision."""
    revisions: Mapping[str, Windows] = field(default_factory=dict)
    """All groups of one revision together: two of them while a move or an update is under way."""
    objectives: Objectives = field(default_factory=Objectives)
    """What attainment was counted against."""
    stale_after: float = 30.0
    """Seconds after which a sample says nothing about now."""
    pace: float = 1.0
    """How many times faster than the clock the windows pass; more than 1 only where decisions are shown or tested."""

    @property
    def missing(self) -> tuple[GroupMeasured, ...]:
        """Serving groups that nothing fresh is known of although there was time."""
        return tuple(
            group
            for group in self.groups
            if group.serving and self.at - max(group.read_at or 0.0, group.serving_since) > self.stale_after
        )

    @property
    def fresh(self) -> bool:
        """Whether something serves and everything that serves was heard of lately. Otherwise: hold."""
        heard = any(
            g.serving and g.read_at is not None and self.at - g.read_at <= self.stale_after for g in self.groups
        )
        return heard and not self.missing

    @property
    def in_flight(self) -> float | None:
        """Requests accepted and not finished, of all serving groups now; None while one does not say."""
        if not self.fresh:
            return None
        known = [(g.running, g.waiting) for g in self.groups if g.serving]
        return sum((running or 0.0) + (waiting or 0.0) for running, waiting in known)


@dataclass(frozen=True, slots=True)
class PoolMeasured:
    """All groups of all deployments on one pool."""

    pool: str
    windows: Windows = field(default_factory=Windows)
