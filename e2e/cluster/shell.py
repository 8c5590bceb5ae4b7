"""Running programs: argv lists, no shell, and errors that show what the program said."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


class Failed(Exception):
    """A program ended with an error, or a condition did not come true in time."""


def run(
    *command: str | Path,
    input: str | bytes | None = None,  # noqa: A002  (as subprocess calls it)
    timeout: float = 600,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """What `command` printed. Raises Failed with the end of what it complained about."""
    argv = [str(part) for part in command]
    data = input.encode() if isinstance(input, str) else input
    try:
        done = subprocess.run(argv, input=data, capture_output=True, timeout=timeout, env=environment, cwd=directory)
    except FileNotFoundError as error:
        raise Failed(f"{argv[0]}: not found") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(argv)[:300]}: no end after {timeout:.0f} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise Failed(f"{' '.join(argv)[:300]}: exit code {done.returncode}\n{said}")
    return done.stdout.decode(errors="replace")


def succeeds(*command: str | Path, timeout: float = 60) -> bool:
    try:
        run(*command, timeout=timeout)
    except Failed:
        return False
    return True


def wait(what: str, check: Callable[[], object], timeout: float, every: float = 0.5) -> float:
    """Seconds until `check` gave something true; what it raises as Failed counts as not yet."""
    began, last = time.monotonic(), ""
    while True:
        try:
            if check():
                return time.monotonic() - began
            last = ""
        except Failed as error:
            last = f": {error}"
        if time.monotonic() - began > timeout:
            raise Failed(f"{what}: not within {timeout:.0f} s{last}")
        time.sleep(every)
