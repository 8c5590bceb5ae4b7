"""The command as a child: started, signalled, reaped with all its orphans, and nothing of it left behind.

The launcher is PID 1 in a container and a subreaper anywhere else, so every orphan becomes its child and ends with it.
Should the launcher itself be killed, the command gets SIGKILL from the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from berth.engine.exchange import parent_of, processes

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (Triton puts its regions there)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans of this process's descendants come to it, as they do to PID 1."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Child:
    """One command in a process group of its own."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Raises OSError if the command cannot be started. Call before any thread exists."""
        self._process = subprocess.Popen(
            argv,
            env=dict(environment),
            process_group=0,
            preexec_fn=_die_with_parent,  # no thread exists yet
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code once the command has ended and was reaped; 128 + n after signal n."""
        code = self._process.returncode
        return code if code is None or code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """To the command alone; Triton passes on what its stubs need to know."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def reap(self) -> None:
        """Collects every ended child: the command through its handle, orphans by number."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if ended.si_pid == self.pid and self._process.returncode is None:
                self._process.wait()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, 0)

    def kill(self, timeout: float = 5.0) -> None:
        """SIGKILL to the group, then to whatever still descends from this process, until nothing does."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.reap()
            left = [pid for pid in processes() if parent_of(pid) == os.getpid()]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def remove_shared_memory(prefixes: Sequence[str]) -> None:
    """Triton's regions survive a SIGKILL; only those of the command's own prefixes are removed."""
    for prefix in filter(None, prefixes):
        for path in SHARED_MEMORY.glob(f"{glob.escape(prefix)}*"):
            with contextlib.suppress(OSError):
                path.unlink()
