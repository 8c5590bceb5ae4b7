"""What a person sees of something that takes its time: lines with times and ticks, and a bar in between.

On a terminal the bar is drawn over itself; elsewhere it becomes a line now and then.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Final, TextIO

WIDTH: Final = 24
INDENT: Final = " " * 11
"""Where the words of a step begin."""
LINE_EVERY: Final = 15.0
"""Seconds between two lines of progress where nothing can be drawn over."""
MARKS: Final = "✓", "✗"
PLAIN_MARKS: Final = "+", "x"


class Screen:
    """Times are seconds since this was made."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._tick, self._cross = MARKS if _can_show("".join(MARKS), self._out) else PLAIN_MARKS
        self._started = time.monotonic()
        self._drawn = False
        self._bar_at = 0.0

    def title(self, text: str) -> None:
        self._print(f"{text}\n")

    def step(self, text: str) -> None:
        """Something that is done."""
        self._line(self._tick, text)

    def working(self, text: str) -> None:
        """Something that takes long."""
        self._line(" ", text)

    def fault(self, text: str) -> None:
        """Something that broke, on purpose."""
        self._line(self._cross, text)

    def detail(self, text: str) -> None:
        """More about the step above."""
        self._print(f"{INDENT}{text}")

    def plain(self, text: str = "") -> None:
        self._print(text)

    def bar(self, share: float, text: str) -> None:
        """How far the step under way has come: `share` from 0 to 1, and what is being done."""
        now = time.monotonic()
        share = min(max(share, 0.0), 1.0)
        full = round(WIDTH * share)
        line = f"{INDENT}[{'#' * full}{'.' * (WIDTH - full)}] {share:4.0%}  {text}"
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{line}")
            self._out.flush()
            self._drawn = True
        elif now - self._bar_at >= LINE_EVERY:
            self._bar_at = now
            self._print(line)

    def _line(self, mark: str, text: str) -> None:
        self._print(f"{time.monotonic() - self._started:7.1f}s  {mark} {text}")

    def _print(self, text: str) -> None:
        if self._drawn:
            self._out.write("\r\x1b[K")
            self._drawn = False
        self._out.write(f"{text}\n")
        self._out.flush()


def own_command() -> str:
    """How the reader calls this program: by its name, or by its path if the name is not found."""
    return "berth" if shutil.which("berth") else os.path.relpath(sys.argv[0])


def _can_show(text: str, out: TextIO) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
