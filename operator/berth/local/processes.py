"""One child process that cannot outlive us, with a log file, that tests may pause and kill.

Linux only: the kernel sends SIGKILL to the child when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG).
Start children from the main thread, or from one that lives as long as they shall.
Nothing here belongs to an event loop: a process started in one loop may be stopped in another.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from berth.errors import BerthError

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


class ProcessFailed(BerthError):
    """A child ended, or did not get ready, when it should have; the message carries the end of its log."""


class ChildProcess:
    """A program, its arguments and its log; started and stopped any number of times.

    `environment` is the child's whole environment. Output is appended to `log`. `arguments` may be changed between two
    starts. The child leads a process group of its own, and every signal goes to the whole group.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        *,
        directory: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.arguments = [str(argument) for argument in arguments]
        self.log = log
        self._directory = directory
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """True while the child exists, also while it is paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As in subprocess: negative for a signal; None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.arguments,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )

    def pause(self) -> None:
        """Freezes the child: connections stay open and nothing answers. Returns once all its threads have stopped."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the child at once and waits for it; does nothing when it has ended."""
        if self.running:
            self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    async def wait(self) -> int:
        """Exit code as in `exit_code`, once the child has ended."""
        assert self._process is not None, f"{self.name} was never started"
        if self._process.poll() is None:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            handle = os.pidfd_open(self.pid)
            loop.add_reader(handle, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(handle)
                os.close(handle)
        return self._process.wait()

    async def stop(self, grace: float = 5.0) -> None:
        """Asks the child to end and kills it after `grace` seconds; does nothing when it has ended."""
        if self._process is not None and self.running:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, grace)
        self.kill()

    def log_tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def failure(self, what: str) -> ProcessFailed:
        """The error that says `what` happened to this process, with the end of its log."""
        state = f"exit code {self.exit_code}" if self.exit_code is not None else "still running"
        return ProcessFailed(f"{self.name} {what} ({state}); the end of {self.log}:\n{self.log_tail()}")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)


def _die_with(parent: int) -> None:
    """Runs in the child between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        os._exit(1)
