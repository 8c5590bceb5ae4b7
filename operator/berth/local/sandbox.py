"""What keeps pods on a laptop apart, finds all their processes, and leaves nothing of them behind.

Where the kernel permits it, root or not, a container is PID 1 of namespaces of its own and everything in it ends with
it. Elsewhere it is a process group. In both cases every process of a container carries a mark in its environment, which
children inherit; that is how they are found. Standard library only: the janitor starts with nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

MARK: Final = "BERTH_LOCAL"
"""Environment variable of every process of a pod: `<folder of the cluster>/<UID of the pod>`."""
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Triton puts its regions
_ENTER: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("enter.py")))


@cache
def isolation() -> tuple[str, ...]:
    """What to put before a command to make it PID 1 of its own namespaces; empty where the kernel forbids it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if subprocess.run([*_ENTER, "true"], capture_output=True, timeout=10).returncode == 0:
            return _ENTER
    return ()


def inner(pid: int, prefix: Sequence[str]) -> int | None:
    """The process that an `isolation` prefix started as `pid`: its child. None before the fork and after the end.

    Signals go there: what is outside only waits, and must not end before what is inside has.
    """
    if not prefix:
        return pid
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return None


def loses(pid: int, prefix: Sequence[str], number: signal.Signals) -> bool:
    """Whether a signal to what a `prefix` started as `pid` would be lost now.

    The kernel discards a signal that PID 1 of a namespace has no handler for: one that has just been started and will
    end politely, once it has got so far, would never hear of it.
    """
    if not prefix:
        return False
    main = inner(pid, prefix)
    if main is None:
        return True
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{main}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return not int(caught.split()[1], 16) >> (number - 1) & 1
    return False


def marked(mark: str) -> list[int]:
    """Processes whose mark is `mark` or lies below it."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if any(each == wanted or each.startswith(wanted + b"/") for each in variables):
                    found.append(int(entry))
    return found


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def sweep(mark: str, limit: float = 10.0) -> None:
    """Kills every marked process and waits until there is none, `limit` seconds at most."""
    deadline = time.monotonic() + limit
    while (left := marked(mark)) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(0.02)


def remove_regions(address: str) -> None:
    """Removes Triton's shared-memory regions of pods whose address begins so: they survive a SIGKILL.

    The launcher names them `berth_<address>_...`.
    """
    for path in SHARED_MEMORY.glob(f"berth_{address}*"):
        with contextlib.suppress(OSError):
            path.unlink()
