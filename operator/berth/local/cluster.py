"""Local clusters as their user sees them: start, find, ask, end. Several may run side by side, told apart by name.

Each has a folder below `$XDG_STATE_HOME/berth`, readable by its user alone. A lock beside the folder is held by the
cluster's processes, the janitor included: who gets it knows that nothing of the cluster is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from berth.errors import BerthError
from berth.local import binaries, control, triton_env
from berth.local.config import CONFIG, Config, check_name
from berth.local.control import KEEP
from berth.local.controlplane import PROGRAMS

Report = Callable[[str], None]

END_LIMIT: Final = 60.0
POLITE_LIMIT: Final = 20.0
DEFAULT_NAME: Final = "berth"


def state_folder() -> Path:
    """Where the folders of all clusters of this user lie."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "berth"


def folder_of(name: str) -> Path:
    """Raises InvalidOption for what is no name of a cluster: nothing outside a cluster's own folder is ever touched."""
    check_name(name)
    return state_folder() / name


def running() -> list[str]:
    """Names of the clusters that answer."""
    found = []
    for path in state_folder().glob(f"*/{CONFIG}"):
        with contextlib.suppress(control.NotRunning):
            found.append(control.ask(path.parent, {"do": "status"})["name"])
    return sorted(found)


class Starting:
    """A cluster that is bound to us: it ends when this is closed, or when we end, unless `keep` was called."""

    def __init__(self, config: Config, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.config = config
        self.folder = folder
        self.kept = False
        self._process = process

    def keep(self) -> None:
        """From now on the cluster runs until `down`."""
        assert self._process.stdin is not None
        self._process.stdin.write(KEEP)
        self._process.stdin.flush()
        self.kept = True

    def wait(self) -> int:
        """Until the cluster ends."""
        return self._process.wait()

    def close(self) -> None:
        """Lets go of the cluster and, if it is not kept, waits for its end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def provide(working: Report) -> None:
    """Programs and Triton, found or made once; `working` gets lines while that takes time. Raises BerthError."""
    binaries.provide(PROGRAMS, working)
    if triton_env.find() is None:
        working("Triton server: making its environment, once")
        try:
            triton_env.ensure()
        except triton_env.Unavailable as error:
            raise BerthError(f"no Triton server: {error}") from error


@contextmanager
def up(config: Config, done: Report, working: Report) -> Iterator[Starting]:
    """Starts a cluster and yields when it is ready. Unless it is kept it ends with the block, and leaves only the logs
    of a failure.

    `done` gets a line for each step, `working` what is being done while a step takes long (the first build). Raises
    BerthError with what went wrong, and where its logs are.
    """
    config.check()
    provide(working)
    folder = folder_of(config.name)
    with _locked(config.name) as lock:
        _clear(folder)
        folder.mkdir(mode=0o700, parents=True)
        config.write(folder)
        process = _spawn(folder, lock)
    starting = Starting(config, folder, process)
    failed = False
    try:
        _follow(process, folder, done)
        yield starting
    except BerthError:
        failed = True
        raise
    finally:
        starting.close()
        if not starting.kept:
            process.wait()
            wait_for_end(config.name)
            if not failed:
                _clear(folder)


def down(name: str) -> bool:
    """Ends a cluster and removes its folder; False if there was none. Raises BerthError when it does not end."""
    folder = folder_of(name)
    existed = folder.exists()
    with contextlib.suppress(control.NotRunning):
        control.ask(folder, {"do": "stop"})
    try:
        wait_for_end(name, POLITE_LIMIT)
    except BerthError:
        _kill_supervisor(folder)  # the janitor does the rest
        wait_for_end(name)
    _clear(folder)
    return existed


def wait_for_end(name: str, limit: float = END_LIMIT) -> None:
    """Returns when no process of the cluster is left. Raises BerthError after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        try:
            with _locked(name):
                return
        except BerthError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _spawn(folder: Path, lock: int) -> subprocess.Popen[bytes]:
    (folder / "logs").mkdir()
    with (folder / "logs" / "supervisor.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "berth.local.supervisor", str(folder), str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
        )


def _follow(process: subprocess.Popen[bytes], folder: Path, done: Report) -> None:
    """Hands on the progress until the cluster is ready."""
    assert process.stdout is not None
    for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if said.get("ready"):
            return
        if said.get("error"):
            raise BerthError(f"{said['text']}\nlogs: {folder / 'logs'}")
        done(said["text"])
    raise BerthError(f"the cluster ended while it was starting; logs: {folder / 'logs'}")


@contextmanager
def _locked(name: str) -> Iterator[int]:
    """The lock of a cluster as a descriptor; children that inherit it hold it on. Raises BerthError if it is held."""
    state_folder().mkdir(parents=True, exist_ok=True)
    lock = os.open(state_folder() / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BerthError(
                f"local cluster {name} runs already, or is just ending: berth local status --name {name}, "
                f"berth local down --name {name}, or another --name"
            ) from None
        yield lock
    finally:
        os.close(lock)


def _kill_supervisor(folder: Path) -> None:
    """For one that does not answer. It is found by its command line, so that no other process can be hit."""
    words = f"-m\0berth.local.supervisor\0{folder}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if words in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
