"""Tells a hung engine from a slow one by its counters. Pure: states and times come in, verdicts go out.

Progress is a change of steps or tokens. Only time that was watched counts: when the watcher itself was stopped or
starved, the gap counts as one second at most, so a paused node does not look like a hung engine afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from berth.engine.contract import Exit

LONGEST_GAP: Final = 1.0
"""Seconds that one observation can add, however late it comes."""
CANARY_FAILURES: Final = 3
"""Canaries in a row that were answered with an error before the engine counts as lost."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The process must end."""

    exit: Exit
    words: str


class ProgressWatch:
    """Fed with the model's state a few times a second."""

    def __init__(self, *, hang_after: float, first_token_timeout: float, canary_every: float) -> None:
        self._hang_after = hang_after
        self._first_token_timeout = first_token_timeout
        self._canary_every = canary_every
        self._progress: tuple[int, int] = (0, 0)
        self._written: float | None = None
        self._seen: float | None = None
        self._failures = 0
        self.last_progress: float | None = None
        self.frozen_for = 0.0
        """Watched seconds without progress while work was outstanding."""
        self.silent_for = 0.0
        """Watched seconds in which the model's process did not report."""
        self.idle_for = 0.0
        """Watched seconds without progress."""
        self.first_token = False
        self._warming_for = 0.0
        self._canary_errors = 0
        self.suspicious = False
        """The engine failed a request since it last made progress."""

    def observe(self, now: float, state: dict[str, Any], *, canary_out: bool) -> Verdict | None:
        """`state` is the model's document in phase `ready`; `canary_out`: a canary is unanswered."""
        passed = min(now - self._seen, LONGEST_GAP) if self._seen is not None else 0.0
        self._seen = now
        progress = (int(state["steps"]), int(state["tokens"]))
        if progress[1] > 0:
            self.first_token = True
        if progress != self._progress:
            self._progress, self.last_progress = progress, now
            self.frozen_for = self.idle_for = 0.0
            self.suspicious = False
            self._canary_errors = 0
        else:
            self.idle_for += passed
            self.frozen_for = self.frozen_for + passed if state["in_flight"] or canary_out else 0.0
        failures = int(state["failures"]["engine"])
        if failures > self._failures:
            self._failures, self.suspicious = failures, True
        self.silent_for = self.silent_for + passed if state["written"] == self._written else 0.0
        self._written = state["written"]
        return self._judge(state, 0.0 if self.first_token else passed)

    def _judge(self, state: dict[str, Any], warming: float) -> Verdict | None:
        self._warming_for += warming
        limit = self._hang_after if self.first_token else self._first_token_timeout
        if self.silent_for >= limit:
            return Verdict(Exit.HANG, f"the model's process has not reported for {self.silent_for:.1f}s")
        if self._canary_errors >= CANARY_FAILURES:
            return Verdict(Exit.ENGINE_LOST, f"{self._canary_errors} canaries in a row were answered with errors")
        if not self.first_token:
            if self._warming_for >= limit:
                return Verdict(Exit.FIRST_TOKEN_TIMEOUT, f"loaded, but no token within {limit:g}s")
            return None
        if self.frozen_for >= limit:
            return Verdict(
                Exit.HANG,
                f"no progress for {self.frozen_for:.1f}s with {state['in_flight']} requests in flight "
                f"(steps {state['steps']}, tokens {state['tokens']})",
            )
        return None

    def wants_canary(self) -> bool:
        """True when nothing moved for long, or at once after a failed request; never while the engine steps."""
        return not self.first_token or self.suspicious or self.idle_for >= self._canary_every

    def canary_failed(self) -> None:
        """A canary was answered with an error, or not accepted."""
        self._canary_errors += 1
