"""Starts a command as PID 1 of namespaces of its own, and ends as it ends.

    python enter.py COMMAND [ARGUMENT ...]

New namespaces for processes, mounts, IPC and the host name; and for users, where we are not allowed to make the others,
with the user staying who they are. We stay outside and wait: signals are for the command. If we are killed, the kernel
kills the command, and with it everything in its namespaces. Standard library only; used by `sandbox`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

NEW_MOUNTS: Final = 0x00020000
NEW_HOST_NAME: Final = 0x04000000
NEW_IPC: Final = 0x08000000
NEW_USERS: Final = 0x10000000
NEW_PROCESSES: Final = 0x20000000
MOUNT_PRIVATE: Final = (1 << 18) | (1 << 14)
"""MS_PRIVATE | MS_REC: mounts made here are not seen outside."""
MOUNT_PROC: Final = 2 | 4 | 8
"""MS_NOSUID | MS_NODEV | MS_NOEXEC, as /proc is mounted everywhere."""
PARENT_DEATH_SIGNAL: Final = 1
NOT_STARTED: Final = 127
IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_libc: Final = ctypes.CDLL(None, use_errno=True)


def main(command: list[str]) -> NoReturn:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    new_namespaces()
    child = os.fork()
    if child == 0:
        become(command)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def new_namespaces() -> None:
    """For the children of this process. Raises OSError where the kernel forbids it."""
    wanted = NEW_MOUNTS | NEW_HOST_NAME | NEW_IPC | NEW_PROCESSES
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(wanted))
    except PermissionError:
        _check(_libc.unshare(wanted | NEW_USERS))
        _write("setgroups", "deny")
        _write("uid_map", f"{user} {user} 1")
        _write("gid_map", f"{group} {group} 1")


def become(command: list[str]) -> NoReturn:
    """In the child: a /proc of its own, then the command. What it inherits of signals is undone."""
    try:
        _check(_libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
        _check(_libc.mount(b"none", b"/", None, MOUNT_PRIVATE, None))
        _check(_libc.mount(b"proc", b"/proc", b"proc", MOUNT_PROC, None))
        for number in (*IGNORED, signal.SIGPIPE, signal.SIGXFSZ):  # the last two are Python's own
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - no shell
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(NOT_STARTED)


def _write(name: str, content: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(content)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
