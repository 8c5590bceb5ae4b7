"""Clocks for deadlines: time that goes on while the machine sleeps and that nobody can set."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds since some fixed moment, suspension included (Linux CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:

    def now() -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()
