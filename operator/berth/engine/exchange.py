"""Two small JSON files between the model (in Triton's stub process) and the launcher (PID 1).

Each file has one writer and is replaced by rename, so a reader sees a whole document or the one before and never waits
for the other side. Times in them are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Writer:
    """Replaces one file; threads take turns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(path.name + ".new")
        self._turn = threading.Lock()

    def write(self, document: Document) -> None:
        with self._turn:
            self._new.write_text(json.dumps(document, separators=(",", ":")))
            self._new.replace(self._path)


class Reader:
    """Reads one file, parsing it only when it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._document: Document = {}

    def read(self) -> Document:
        """The newest document; empty as long as there is none, the last good one if the newest is no JSON object."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen != self._seen:
                document = json.loads(self._path.read_text())
                if isinstance(document, dict):
                    self._document = document
                self._seen = seen
        except FileNotFoundError:
            self._seen, self._document = None, {}
        except (OSError, ValueError):
            pass
        return self._document


def process_alive(pid: int) -> bool:
    """False once the process is gone or a zombie. Same PID namespace only."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def parent_of(pid: int) -> int | None:
    """Parent process id; None if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def processes() -> list[int]:
    """All process ids that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
