"""What comes of asking whether a deployment should move. Whoever carries a move out needs nothing but this.

A decision is made anew at every pass from what is measured then; it becomes a fact only when the move is begun and
recorded. So the same `Move` may be decided on many times, and has the same `id` as long as it goes to the same place
after the same history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from berth.api.placement import Allocation
from berth.core.moves.identity import placement_hash
from berth.core.placement.decide import Decision

Cause = Literal["Objectives", "Cost", "Requested"]
"""A lasting breach that the other placement cures, money, or a person."""

HOLDS: Final[dict[str, str]] = {
    "NothingBetter": "No other placement is better by enough, even at its worst.",
    "FixedPlacement": "The spec fixes the placement.",
    "MovesOff": "placement.moves.mode is Off.",
    "Paused": "spec.pause holds changes back.",
    "Unknown": "The models know nothing of the placement in force: its variant, GPU type or room for KV.",
    "NoMetrics": "Metrics are missing or stale.",
    "TooFewSamples": "Too few independent measurements to tell chance from change.",
    "LessThanADay": "The day's peak is not known before a day was measured.",
    "FailingOver": "A group is lost or on its way back.",
    "Changing": "Groups are being started, updated or removed.",
    "Unsettled": "Step times are changing: the last minutes say something else than the hour.",
    "Moving": "A move is under way.",
    "CoolingDown": "The last move was too recent.",
    "MovesOfTheDaySpent": "placement.moves.maxPerDay moves were begun within 24 hours.",
    "PoolBusy": "Enough other deployments are moving into or out of the pool.",
    "NoSurgePossible": "update.surge is Never, and groups cannot change places one by one.",
    "LimitReached": "Both sides of the move together exceed objectives.limits.",
    "RolledBackBefore": "A move there was taken back.",
    "PoolTooSlow": "Steps on the pool took longer than is ever believed of one, less than a month ago.",
    "MoreGroupsHelp": "More groups where it runs are enough.",
    "SlowGroup": "One group is slow, its peers are not: leaving the pool is no cure.",
    "NoCure": "No other placement is expected to meet the objectives.",
    "NoCapacity": "The better placement has no room now.",
    "PaysBackTooLate": "The saving takes longer than placement.moves.payBackWithin to pay for the move.",
}
"""Why a deployment stays, with the meaning; stable words."""


@dataclass(frozen=True)
class Move:
    """Run `to` instead of `start`."""

    id: str
    start: Allocation
    to: Allocation
    cause: Cause
    reason: str
    """For people: what is wrong here, what is better there, in figures."""
    decision: Decision
    """`to` with its record: what status says of the placement once the move is done."""
    needed: int
    """Groups of `to` that must serve before `start` may leave for good."""
    capacity_from: float
    """Requests per second that one group of `start` answers at the objectives, as load is measured."""
    capacity_to: float
    """The same of `to`; flips are sized by the smallest capacity / share of requests."""
    cooldown: float
    """Seconds after the move's end in which no other one is begun; for cost moves three pay-backs, if longer."""
    swap: bool = False
    """Groups are to change places one by one: update.surge is Never."""
    leaves: int = 0
    """Groups of `start` that must serve; of a swap."""
    saving: float | None = None
    """Expected per hour, in the pools' currency; None where there is no price."""
    saving_at_worst: float | None = None
    price: float | None = None
    """Of running twice until the verdict."""
    pay_back: float | None = None
    """Seconds until the saving has paid for the move; None for one that saves nothing."""

    @property
    def placement_hash(self) -> str:
        """Of the placement it goes to, so that a bad one is not tried again."""
        return placement_hash(self.to)


@dataclass(frozen=True)
class Hold:
    """Stay. `reason` is a key of HOLDS."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Advise:
    """A person should decide: moves.mode is Advise."""

    move: Move


Verdict = Move | Hold | Advise
