"""Fault switches of the simulated engine: one small JSON file, re-read whenever it was replaced.

`{"hang": true, "crash": true, "slow": 3.0, "errors": true, "member_lost": "hang"|"exit", "load_seconds": 30,
"load_failure": "words"}`; whatever is missing or makes no sense is off.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berth.engine.exchange import Reader


@dataclass(frozen=True, slots=True)
class Faults:
    """What is switched on now."""

    hang: bool = False
    crash: bool = False
    slow: float = 1.0
    errors: bool = False
    load_seconds: float | None = None
    load_failure: str = ""


class FaultFile:
    """Reads the switches; an unreadable file keeps the last ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = Reader(path)

    def read(self) -> Faults:
        return parse(self._reader.read())

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def parse(document: dict[str, Any]) -> Faults:
    """A lost member freezes a collective operation (`hang`) or ends the whole process (`exit`), as MPI does."""
    slow, load = document.get("slow"), document.get("load_seconds")
    lost = document.get("member_lost")
    return Faults(
        hang=document.get("hang") is True or lost == "hang",
        crash=document.get("crash") is True or lost == "exit",
        slow=float(slow) if isinstance(slow, int | float) and slow > 0 else 1.0,
        errors=document.get("errors") is True,
        load_seconds=float(load) if isinstance(load, int | float) and load >= 0 else None,
        load_failure=str(document.get("load_failure") or ""),
    )


def crash() -> None:
    """Dies as a killed rank does: no clean-up, no message."""
    os.kill(os.getpid(), signal.SIGKILL)
