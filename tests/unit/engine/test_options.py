"""The launcher's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from berth.engine.options import Usage, parse, shared_memory_prefixes, with_defaults


def test_a_leader_alone_needs_only_its_command() -> None:
    options = parse(
        ["--", "tritonserver", "--x"], {"BERTH_POD_IP": "10.0.0.7", "BERTH_INCARNATION": "4", "BERTH_GROUP": "g1"}
    )
    assert options.command == ("tritonserver", "--x")
    assert (options.is_leader, options.members, options.hang_after, options.dial) == (True, 1, 5.0, "10.0.0.7")
    assert (options.member.group, options.member.incarnation) == ("g1", 4)


def test_a_worker_needs_no_command() -> None:
    options = parse(["--role=worker", "--members=2", "--member=1", "--leader=x-0.x"], {})
    assert (options.command, options.leader, options.dial) == ((), "x-0.x", "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "a leader needs a command: put it after --"),
        (["--hang-after=-1", "--", "x"], {}, "--hang-after: invalid"),
        (["--hang-after=nan", "--", "x"], {}, "--hang-after: invalid"),
        (["--members=0", "--", "x"], {}, "--members 0: give at least 1"),
        (["--member=1", "--members=2", "--", "x"], {}, "--member 1 as leader of 2"),
        (["--role=worker", "--members=2", "--member=2", "--leader=a"], {}, "--member 2 as worker of 2"),
        (["--role=worker", "--members=2", "--member=1"], {}, "a worker needs --leader HOST"),
        (["--unknown", "--", "x"], {}, "unrecognized arguments: --unknown"),
        (["--", "x"], {"BERTH_INCARNATION": "new"}, "BERTH_INCARNATION is 'new': give a whole number"),
    ],
)
def test_what_makes_no_sense_is_named(arguments: list[str], environment: dict[str, str], words: str) -> None:
    with pytest.raises(Usage, match=words):
        parse(arguments, environment)


def test_adds_what_the_server_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "backends").mkdir()
    server = str(tmp_path / "bin" / "tritonserver")
    assert with_defaults([server, "--http-port=9000", "--id=a"], "127.0.0.9", "mine_") == [
        server,
        "--http-port=9000",
        "--id=a",
        "--http-address=127.0.0.9",
        "--grpc-address=127.0.0.9",
        "--metrics-address=127.0.0.9",
        "--grpc-port=8001",
        "--metrics-port=8002",
        f"--backend-directory={tmp_path / 'backends'}",
        "--backend-config=python,shm-region-prefix-name=mine_",
    ]


def test_the_renderers_shared_memory_prefix_wins() -> None:
    command = ["/opt/tritonserver/bin/tritonserver", "--backend-config=python,shm-region-prefix-name=g0_1_"]
    assert with_defaults(command, None, "mine_")[:2] == command
    assert shared_memory_prefixes(with_defaults(command, None, "mine_")) == ["g0_1_"]
    assert shared_memory_prefixes(["sshd"]) == []


@pytest.mark.parametrize("command", [["sshd", "-D"], ["mpirun", "-n", "2", "tritonserver"]])
def test_other_commands_are_left_alone(command: list[str]) -> None:
    assert with_defaults(command, "127.0.0.9", "mine_") == command
