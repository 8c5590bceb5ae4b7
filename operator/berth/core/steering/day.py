"""The busiest hour of the last 24, and when groups were last added: what going down waits for.

Kept in memory by whoever looks at a deployment. After a restart a day has to be measured again before anything is
taken away; that is the careful side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY: Final = 86400.0
HOUR: Final = 3600.0
_WHOLE_ENOUGH: Final = 0.8
"""Share of an hour that a window must cover to be its mean."""


@dataclass(frozen=True)
class Day:
    """Unix seconds; loads are requests per second, for closed traffic clients."""

    since: float | None = None
    """Since when it was measured without a gap of an hour."""
    last: float = 0.0
    hours: tuple[tuple[int, float], ...] = ()
    """(hour since the epoch, highest mean of the hour before any moment of it), ascending."""
    grown_at: float = 0.0
    """When groups were added last."""

    def seen(self, now: float, load: float, seconds: float) -> Day:
        """With the mean of the `seconds` before `now`."""
        if seconds < _WHOLE_ENOUGH * HOUR:
            return self
        since = now if self.since is None or now - self.last > HOUR else self.since
        hour = int(now // HOUR)
        kept = [each for each in self.hours if each[0] > hour - 24 and since != now]
        if kept and kept[-1][0] == hour:
            kept[-1] = (hour, max(kept[-1][1], load))
        else:
            kept.append((hour, load))
        return Day(since, now, tuple(kept), self.grown_at)

    def peak(self, now: float) -> float | None:
        """None before a whole day was measured, or after a gap."""
        if self.since is None or now - self.since < DAY - HOUR or now - self.last > HOUR:
            return None
        return max(load for _, load in self.hours)

    def highest(self) -> float:
        """Of what is known so far."""
        return max((load for _, load in self.hours), default=0.0)
