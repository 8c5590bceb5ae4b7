"""The README's commands, as they stand there, in the order in which they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.local.conftest import LocalCluster, gone, network_of

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton")]

CHECKOUT = Path(__file__).parents[3]
README = (CHECKOUT / "README.md").read_text()


def commands() -> list[str]:
    """Lines after a prompt in blocks that a reader is to type."""
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_make_target_and_every_file_it_names_is_there() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", README):
        assert re.search(rf"^{target}:|^\.PHONY:.* {target}\b", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (CHECKOUT / link).exists(), link


def test_the_tour_can_be_typed(state: Path) -> None:
    """One bash for all of it: variables and aliases of earlier lines hold in later ones."""
    typed = commands()
    assert len(typed) >= 20
    cluster = LocalCluster("berth", state)  # the name that commands take by default
    marked = "\n".join(f"echo '=== {number}'\n{command}" for number, command in enumerate(typed))
    # As at a prompt: `| head` may end a command early.
    script = f"set -e; shopt -s expand_aliases\n{marked}\n"
    environment = {**cluster.environment, "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"}
    network = ""
    try:
        with subprocess.Popen(
            ["bash", "-c", script],
            cwd=CHECKOUT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as reader:
            assert reader.stdout is not None
            shown = ""
            for line in reader.stdout:
                shown += line
                if not network and "=== 2\n" in line:
                    network = network_of(cluster.status())
        assert reader.returncode == 0, f"{shown}{cluster.logs()}"
    finally:
        cluster.run("down")
    gone(cluster, network)
    said = dict(zip(typed, re.split(r"=== \d+\n", shown)[1:], strict=True))  # answers may end without a newline

    def answer(beginning: str) -> str:
        return next(text for command, text in said.items() if command.startswith(beginning))

    assert "H100-SXM-80" in answer("kubectl get gpupools")
    assert re.search(r"llama-70b +(\d)/\1 ", answer("kubectl get llmd,"))
    assert re.match(r"llama-70b  serving  \((\d) of \1 groups", answer("berth status"))
    assert '"text_output":"w1 w2 w3 w4 w5"' in answer("curl")
    assert "EngineLost" in answer("berth local logs")
    assert "GroupRestarted" in answer("kubectl get events")
