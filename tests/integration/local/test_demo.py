"""The demonstration as a newcomer runs it, with a shorter replay: what it says is so, and nothing of it is left."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.local.conftest import LocalCluster, gone, network_of

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton")]


def command(cluster: LocalCluster, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "berth", "demo", "--name", cluster.name, *arguments]


def test_a_model_is_placed_served_hit_and_healed_and_the_cluster_stays_if_wanted(state: Path) -> None:
    cluster = LocalCluster("demo", state)
    argv = command(cluster, "--keep", "--seconds", "24", "--no-move")
    try:
        done = subprocess.run(argv, env=cluster.environment, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, ""), f"{done}{cluster.logs()}"
        status = cluster.status()
    finally:
        cluster.run("down")
    assert [each["name"] for each in status["services"] if each["pods"]] == ["llama-70b"]
    gone(cluster, network_of(status))
    story_line = (
        "control plane: Kubernetes",
        "nodes: 5 with 40 GPUs",
        r"pools: a100-40 \(A100-SXM-40\), h100 \(H100-SXM-80\), h200 \(H200-SXM-141\)",
        "applied manifests/samples/llama-70b.yaml",
        r"placed: \S+ \S+ tp\d+, \d groups on \d+ GPUs, [\d.]+ \$/h: cheapest",
        "next best: ",
        "not a100-40 ",
        "g0 serves on ",
        "killed the Triton server of g0",
        "g0 gets no new requests: traffic cut after",
        "g0 serves again after",
        r"replay ended: \d+ tokens",
        "on simulated hardware",
        r"objective +1\.5s +50ms",
        r"what clients noticed: \d+ requests: .* 0 failed",
        r"llama-70b says: (\d)/\1 .*, Ready",
        "next:",
        "local down --name demo +end it all",
    )
    assert re.search(".*".join(story_line), done.stdout, re.DOTALL), done.stdout


def test_an_interrupted_demonstration_leaves_nothing(state: Path) -> None:
    cluster = LocalCluster("interrupted", state)
    with subprocess.Popen(command(cluster), env=cluster.environment, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("requests of the" in line for line in iter(demo.stdout.readline, "")), cluster.logs()
        network = network_of(cluster.status())
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    assert demo.returncode == 1
    assert not cluster.folder.exists()
    gone(cluster, network)
