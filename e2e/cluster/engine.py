"""A Docker engine: the one that runs, or one that is installed from Debian packages and started here.

Only an engine started here is ever stopped, by its pid file. Nothing is pulled: every image that is run has been put
into the engine before. The network `kind` is made before kind would, without IPv6, and packets for pod and Service
addresses that no route knows end on this machine instead of leaving it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.cluster.shell import Failed, run, succeeds, wait
from e2e.cluster.steps import cache, say

POD_NETWORK: Final = "10.244.0.0/16"
SERVICE_NETWORK: Final = "10.96.0.0/16"
PACKAGES: Final = ("docker.io", "containerd", "runc", "iptables", "iproute2", "procps", "kmod")
RUNTIME: Final = "without-sys-resource"
_RUN: Final = Path("/run/berth-e2e-docker")
_CAP_SYS_RESOURCE: Final = 24
_children: Final[list[subprocess.Popen[bytes]]] = []
"""Engines started by this process; kept, because Python warns of a running child that nobody holds."""
_SYSCTLS: Final = {
    "net/ipv4/ip_forward": 1,
    "fs/inotify/max_user_instances": 1024,  # the usual 128 is too small for several kubelets
    "fs/inotify/max_user_watches": 524288,
}


class NoEngine(Exception):
    """No container engine runs and none can be started; the message says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """A running engine that can run privileged containers."""

    version: str
    started_here: bool


def ensure() -> Engine:
    """Raises NoEngine."""
    if not answers():
        _start()
    facts = _facts()
    if _lacks_sys_resource() and facts["DefaultRuntime"] != RUNTIME:
        raise NoEngine(
            f"this machine lacks CAP_SYS_RESOURCE and the engine's default runtime ({facts['DefaultRuntime']}) asks "
            f"for it in every privileged container: stop the engine, and it is started with a runtime that does not"
        )
    for key, least in _SYSCTLS.items():
        _raise(Path("/proc/sys") / key, least)
    guard()
    if not succeeds("docker", "network", "inspect", "kind"):
        run("docker", "network", "create", "--driver=bridge", "--subnet=172.18.0.0/16", "--gateway=172.18.0.1", "kind")
    return Engine(str(facts["ServerVersion"]), _own_pid() is not None)


def guard() -> None:
    """Packets from here to pods and Services go nowhere, unless somebody adds a better route."""
    for network in (POD_NETWORK, SERVICE_NETWORK):
        run("ip", "route", "replace", "unreachable", network, "metric", "9999")


def stop() -> bool:
    """Stops the engine that `ensure` started, and takes the guard away; True if there was one."""
    for network in (POD_NETWORK, SERVICE_NETWORK):
        succeeds("ip", "route", "del", "unreachable", network, "metric", "9999")
    pid = _own_pid()
    if pid is None:
        return False
    # It would stay, with its rules: to an engine of another home they forge the sender of what its nodes say.
    succeeds("docker", "network", "rm", "kind")
    os.kill(pid, signal.SIGTERM)

    def ended() -> bool:
        for process in _children:
            process.poll()  # one that nobody asks after stays a zombie
        return not Path(f"/proc/{pid}").exists()

    wait("the engine ends", ended, timeout=60)
    return True


def _start() -> None:
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine answers: start one, or run as root to have one started")
    if not shutil.which("dockerd"):
        _install()
    home = cache() / "docker"
    home.mkdir(exist_ok=True)
    if _own_pid() is None:  # one that was killed leaves files that keep the next from starting
        _pid_file().unlink(missing_ok=True)
        shutil.rmtree(_RUN, ignore_errors=True)
    runtime: list[str] = []
    if _lacks_sys_resource():
        wrapper = Path(__file__).with_name("runc_without_sys_resource")
        runtime = [f"--add-runtime={RUNTIME}={wrapper}", f"--default-runtime={RUNTIME}"]
    log = home / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={home / 'data'}",
                f"--exec-root={_RUN}",
                f"--pidfile={_pid_file()}",
                "--bip=172.17.0.1/16",
                "--ip6tables=false",
                *runtime,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The containerd that runs the engine is Debian's, never one that we built.
            env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    _children.append(process)
    deadline = time.monotonic() + 60
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").strip().splitlines()[-5:]
            raise NoEngine("a Docker engine cannot be started here:\n  " + "\n  ".join(last))
        time.sleep(0.3)
    say(f"started a Docker engine, pid {process.pid}, log {log}")


def _install() -> None:
    if not shutil.which("apt-get"):
        raise NoEngine("no Docker engine is installed, and this is no Debian: install one")
    say("installing a Docker engine from Debian packages")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "-qq", environment=environment)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, environment=environment)
    except Failed as error:
        raise NoEngine(f"a Docker engine cannot be installed: {error}") from error


def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(run("docker", "info", "--format", "{{json .}}"))
    return facts


def answers() -> bool:
    """Whether an engine runs."""
    return bool(shutil.which("docker")) and succeeds("docker", "version", "--format", "{{.Server.Version}}", timeout=20)


def _lacks_sys_resource() -> bool:
    bounding = re.search(r"^CapBnd:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bounding is not None and not int(bounding[1], 16) >> _CAP_SYS_RESOURCE & 1


def _raise(setting: Path, least: int) -> None:
    if int(setting.read_text()) < least:
        setting.write_text(str(least))


def _own_pid() -> int | None:
    """Of the engine that was started here, if it lives."""
    try:
        pid = int(_pid_file().read_text())
        return pid if "dockerd" in Path(f"/proc/{pid}/cmdline").read_text() else None
    except (OSError, ValueError):
        return None


def _pid_file() -> Path:
    return cache() / "docker" / "pid"
