"""The launcher as a parent of any command, without Triton: signals, orphans, exit codes. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from berth.engine.contract import Exit
from berth.engine.exchange import process_alive
from tests.integration.engine.pod import new_address

ORPHANS = """
import os, sys, time
if os.fork() == 0:
    os.setsid()                      # leaves the group, as daemons do
    if os.fork() == 0:
        open("orphan", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists("orphan"):
    time.sleep(0.01)
"""
ZOMBIES = """
import os, subprocess, sys, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)              # its parent is gone: the launcher must collect it
        os._exit(0)
time.sleep(0.8)
states = [open(f"/proc/{pid}/stat").read().split(") ")[1] for pid in os.listdir("/proc") if pid.isdigit()]
mine = [s for s in states if s[0] == "Z" and s.split()[1] == str(os.getppid())]
sys.exit(len(mine))
"""
SIGNALS = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(42))
open("ready", "w").close()
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("ready", "w").close()
time.sleep(600)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a launcher around a Python program, in a directory of its own."""
    started: list[subprocess.Popen[str]] = []

    def launch(program: str, *options: str, address: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "berth.engine.launcher", *options, "--", sys.executable, "-c", program]
        environment = {
            **os.environ,
            "BERTH_POD_IP": address or new_address(),
            "BERTH_TERMINATION_LOG": str(tmp_path / "termination"),
            "BERTH_RUN_DIR": str(tmp_path / f"run-{len(started)}"),  # one that is killed cannot remove its own
        }
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, words = process.communicate(timeout=10)
    return process.returncode, words.strip()


def test_the_commands_code_is_the_launchers(start: Start, tmp_path: Path) -> None:
    assert ended(start("raise SystemExit(7)")) == (7, "CommandExited: the command ended with code 7")
    assert (tmp_path / "termination").read_text() == "CommandExited: the command ended with code 7"
    assert ended(start("import os; os.abort()"))[0] == 128 + signal.SIGABRT


def test_orphans_that_fled_the_group_end_with_it(start: Start, tmp_path: Path) -> None:
    assert ended(start(ORPHANS))[0] == 0
    orphan = int((tmp_path / "orphan").read_text())
    assert not process_alive(orphan)


def test_zombies_are_collected(start: Start) -> None:
    assert ended(start(ZOMBIES))[0] == 0


def test_other_signals_are_handed_on(start: Start, tmp_path: Path) -> None:
    process = start(SIGNALS)
    until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == 42


def test_a_command_that_has_not_loaded_is_not_waited_for_long(start: Start, tmp_path: Path) -> None:
    process = start(STUBBORN, "--drain-timeout=60", "--exit-timeout=60")
    until((tmp_path / "ready").exists)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (Exit.STOPPED, "Stopped: the command did not end within 2s of SIGTERM and was killed")
    assert time.monotonic() - asked < 5


def test_a_command_that_has_not_loaded_has_nothing_to_finish(start: Start, tmp_path: Path) -> None:
    address = new_address()
    start(STUBBORN, address=address)
    until((tmp_path / "ready").exists)
    command = [sys.executable, "-m", "berth.engine.launcher", "--drain", "--timeout=300"]
    done = subprocess.run(command, env={**os.environ, "BERTH_POD_IP": address}, timeout=60)
    assert done.returncode == 0


def test_a_launcher_that_only_starts_is_waited_for_and_told_to_drain(start: Start, tmp_path: Path) -> None:
    """SIGTERM follows, which the first process of a container ignores until it has a handler."""
    address = new_address()
    command = [sys.executable, "-m", "berth.engine.launcher", "--drain", "--timeout=60"]
    with subprocess.Popen(command, env={**os.environ, "BERTH_POD_IP": address}, stderr=subprocess.PIPE) as hook:
        with pytest.raises(subprocess.TimeoutExpired):
            hook.wait(timeout=2)
        start(STUBBORN, address=address)
        assert hook.wait(timeout=30) == 0


def test_a_command_that_is_not_there_is_named(start: Start, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "berth.engine.launcher", "--", "/nowhere/tritonserver"]
    done = subprocess.run(command, env={**os.environ, "BERTH_POD_IP": new_address()}, capture_output=True, text=True)
    assert done.returncode == Exit.USAGE
    assert "No such file or directory: '/nowhere/tritonserver'" in done.stderr


def test_drain_without_a_launcher_says_so() -> None:
    command = [sys.executable, "-m", "berth.engine.launcher", "--drain", "--timeout=1"]
    done = subprocess.run(command, env={**os.environ, "BERTH_POD_IP": new_address()}, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:26]) == (1, "no launcher answers at 127")
