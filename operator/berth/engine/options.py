"""The launcher's arguments and environment, checked once. The table is in docs/designs/006-launcher.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from berth.engine import contract
from berth.engine.members import Member

PREFIX_SETTING: Final = "shm-region-prefix-name"


class Usage(ValueError):
    """Arguments or environment make no sense; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds. `command` is empty on a worker that only joins."""

    command: tuple[str, ...]
    role: str
    member: Member
    members: int
    leader: str
    join_timeout: float
    on_member_lost: str
    hang_after: float
    first_token_timeout: float
    canary_every: float
    drain_timeout: float
    exit_timeout: float
    drain: bool
    grace: float
    timeout: float
    pod_ip: str | None
    pool: str
    hosts_file: str | None
    run_dir: Path | None
    termination_log: Path

    @property
    def is_leader(self) -> bool:
        return self.role == "leader"

    @property
    def dial(self) -> str:
        """Where this pod's own ports answer."""
        return self.pod_ip or "127.0.0.1"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Raises Usage."""
    ours, _, command = _split(arguments)
    parser = _Parser(prog="berth.engine.launcher", allow_abbrev=False)
    parser.add_argument("--role", choices=("leader", "worker"), default="leader")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--member", type=int, default=0)
    parser.add_argument("--leader", default="")
    parser.add_argument("--on-member-lost", choices=("exit", "hang"), default="exit")
    for name, default in SECONDS.items():
        parser.add_argument(name, type=_seconds, default=default)
    parser.add_argument("--drain", action="store_true")
    parsed = parser.parse_args(ours)
    _check(parsed, command)
    return Options(
        command=tuple(command),
        role=parsed.role,
        member=Member(parsed.member, environment.get(contract.GROUP, ""), _incarnation(environment)),
        members=parsed.members,
        leader=parsed.leader,
        join_timeout=parsed.join_timeout,
        on_member_lost=parsed.on_member_lost,
        hang_after=parsed.hang_after,
        first_token_timeout=parsed.first_token_timeout,
        canary_every=parsed.canary_every,
        drain_timeout=parsed.drain_timeout,
        exit_timeout=parsed.exit_timeout,
        drain=parsed.drain,
        grace=parsed.grace,
        timeout=parsed.timeout,
        pod_ip=environment.get(contract.POD_IP) or None,
        pool=environment.get(contract.POOL, ""),
        hosts_file=environment.get(contract.HOSTS_FILE) or None,
        run_dir=Path(environment[contract.RUN_DIR]) if environment.get(contract.RUN_DIR) else None,
        termination_log=Path(environment.get(contract.TERMINATION_LOG) or "/dev/termination-log"),
    )


SECONDS: Final = {
    "--join-timeout": 900.0,
    "--hang-after": 5.0,
    "--first-token-timeout": 120.0,
    "--canary-every": 3.0,
    "--drain-timeout": 300.0,
    "--exit-timeout": 30.0,
    "--grace": 0.0,
    "--timeout": 300.0,
}


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in arguments:
        return list(arguments), "", []
    at = list(arguments).index("--")
    return list(arguments[:at]), "--", list(arguments[at + 1 :])


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def _check(parsed: argparse.Namespace, command: Sequence[str]) -> None:
    if parsed.drain:
        return
    if parsed.role == "leader" and not command:
        raise Usage("a leader needs a command: put it after --")
    if parsed.members < 1:
        raise Usage(f"--members {parsed.members}: give at least 1")
    if parsed.role == "worker" and not parsed.leader:
        raise Usage("a worker needs --leader HOST")
    if (parsed.role == "leader") != (parsed.member == 0) or not 0 <= parsed.member < parsed.members:
        raise Usage(f"--member {parsed.member} as {parsed.role} of {parsed.members}: the leader is 0, workers 1 to N-1")


def _incarnation(environment: Mapping[str, str]) -> int:
    text = environment.get(contract.INCARNATION) or "0"
    if not text.isdecimal():
        raise Usage(f"{contract.INCARNATION} is {text!r}: give a whole number")
    return int(text)


def with_defaults(command: Sequence[str], pod_ip: str | None, shm_prefix: str) -> list[str]:
    """Adds to a `tritonserver` command the addresses, ports, backends and shared-memory prefix it does not name."""
    server = Path(command[0])
    if server.name != "tritonserver":
        return list(command)
    wanted: dict[str, str | int] = {
        "--http-port": contract.PORT_HTTP,
        "--grpc-port": contract.PORT_GRPC,
        "--metrics-port": contract.PORT_METRICS,
    }
    if pod_ip:
        wanted = {"--http-address": pod_ip, "--grpc-address": pod_ip, "--metrics-address": pod_ip, **wanted}
    backends = server.parents[1] / "backends" if len(server.parts) > 2 else None
    if backends and backends.is_dir():
        wanted["--backend-directory"] = str(backends)
    given = {argument.partition("=")[0] for argument in command}
    added = [f"{name}={value}" for name, value in wanted.items() if name not in given]
    if not shared_memory_prefixes(command):
        added.append(f"--backend-config=python,{PREFIX_SETTING}={shm_prefix}")
    return [*command, *added]


def shared_memory_prefixes(command: Sequence[str]) -> list[str]:
    """What the names of the command's shared-memory regions begin with."""
    return [argument.rpartition("=")[2] for argument in command if PREFIX_SETTING in argument]
