"""The launcher's word to the model: until when to accept requests, objectives, a lost member. One small file."""

from __future__ import annotations

import time
from pathlib import Path

from berth.engine.exchange import Writer


class Control:
    """Written when something changes; `number` counts the changes, and the model's state names the last one it saw."""

    def __init__(self, path: Path) -> None:
        self._writer = Writer(path)
        self.number = 0
        self.accept_until: float | None = None
        """CLOCK_MONOTONIC from which new requests are refused; None: not draining."""
        self.member_lost = False
        self.objectives: dict[str, float] = {}
        self._write()

    @property
    def draining(self) -> bool:
        return self.accept_until is not None

    def drain(self, grace: float) -> None:
        """Refuse new requests in `grace` seconds; an earlier end of grace wins."""
        until = time.monotonic() + grace
        if self.accept_until is None or until < self.accept_until:
            self.accept_until = until
            self._changed()

    def resume(self) -> None:
        if self.draining:
            self.accept_until = None
            self._changed()

    def lose_member(self) -> None:
        self.member_lost = True
        self._changed()

    def set_objectives(self, objectives: dict[str, float]) -> None:
        if objectives != self.objectives:
            self.objectives = objectives
            self._changed()

    def _changed(self) -> None:
        self.number += 1
        self._write()

    def _write(self) -> None:
        self._writer.write(
            {
                "number": self.number,
                "accept_until": self.accept_until,
                "member_lost": self.member_lost,
                "objectives": self.objectives,
            }
        )
