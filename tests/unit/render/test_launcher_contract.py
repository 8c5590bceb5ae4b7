"""Rendered pods against the launcher they start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from berth.controller.engine_files import engine_files
from berth.engine import options
from tests.unit.render import cases

POD_IP = "10.0.0.7"


def started(pod: cases.Manifest) -> options.Options:
    """What the launcher makes of the pod's arguments and environment."""
    container = pod["spec"]["containers"][0]
    environment = {variable["name"]: variable.get("value", POD_IP) for variable in container["env"]}
    return options.parse(container["args"], environment)


@pytest.mark.parametrize("name", cases.CASES)
def test_the_launcher_understands_every_pod(name: str) -> None:
    made = cases.template(cases.CASES[name])
    for member, pod in enumerate(cases.pods(made)):
        parsed = started(pod)
        assert (parsed.members, parsed.member.index, parsed.is_leader) == (made.members, member, member == 0)
        assert (parsed.member.group, parsed.member.incarnation, parsed.pool) == ("g0", 7, "h100")
        assert parsed.pod_ip == POD_IP
        assert parsed.drain_timeout + parsed.exit_timeout < pod["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", cases.CASES)
def test_the_launcher_understands_every_drain(name: str) -> None:
    for member, pod in enumerate(cases.pods(cases.template(cases.CASES[name]))):
        module, *arguments = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2:]
        parsed = options.parse(arguments, {})
        assert module == "berth.engine.launcher"
        assert parsed.drain
        assert (parsed.grace > 0) == (member == 0)
        assert parsed.grace < parsed.timeout


def test_triton_gets_the_launchers_shared_memory_prefix_and_the_pods_address() -> None:
    (pod,) = cases.pods(cases.template(cases.CASES["simulated-claim"]))
    command = options.with_defaults(started(pod).command, POD_IP, "own_")
    assert [text for text in command if "shm-region-prefix-name" in text] == [
        "--backend-config=python,shm-region-prefix-name=own_"
    ]
    assert f"--grpc-address={POD_IP}" in command


def test_the_library_in_the_pod_is_all_the_launcher_needs(tmp_path: Path) -> None:
    for path, text in engine_files().items():
        file = tmp_path / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    # -S: without site-packages, as in a pod; the message is the launcher's own.
    command = [sys.executable, "-S", "-m", "berth.engine.launcher"]
    ended = subprocess.run(
        command,
        env={"PYTHONPATH": str(tmp_path / "opt/berth/lib"), "BERTH_TERMINATION_LOG": str(tmp_path / "log")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "a leader needs a command" in ended.stderr
