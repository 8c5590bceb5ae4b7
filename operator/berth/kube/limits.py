"""How much Berth may ask of the API server: requests per second by a token bucket, requests at once by a semaphore."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """`per_second` requests on average, `burst` at once after silence, `parallel` unanswered ones; time-outs.

    Watches count when they are opened but do not occupy one of the parallel places.
    """

    per_second: float = 200.0
    burst: int = 400
    parallel: int = 64
    connect_seconds: float = 5.0
    request_seconds: float = 10.0
    list_seconds: float = 30.0

    def seconds_for(self, verb: str) -> float:
        """Longest time from sending a request to the last byte of its answer."""
        return self.list_seconds if verb == "list" else self.request_seconds


class TokenBucket:
    """Each taker is told how long to wait for its turn, in the order of asking."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def reserve(self) -> float:
        """Take one token, on credit if need be; returns the seconds to wait before using it."""
        self._refill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def try_take(self) -> bool:
        """Take a token only if there is one."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def hold(self, seconds: float) -> None:
        """The server asked for a pause: later takers wait at least this long, then follow at the bucket's own rate."""
        self._refill()
        self._tokens = min(self._tokens, -seconds * self._rate)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
