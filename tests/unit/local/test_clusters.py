"""Options, addresses, requests and clean-up of local clusters."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from berth.cli import main
from berth.errors import BerthError
from berth.local import addresses, control, sandbox
from berth.local.addresses import AddressPool, LoopbackNetwork, NoAddresses
from berth.local.config import Config, InvalidOption, PoolOption


# --- options ----------------------------------------------------------------------------------------------------------
def test_a_pool_is_a_gpu_type_and_nodes_and_gpus() -> None:
    pool = PoolOption.parse("a100-40=3x4")
    assert (pool.gpu, pool.nodes, pool.gpus, pool.name) == ("A100-SXM-40", 3, 4, "a100-40")
    assert pool.product == "NVIDIA-A100-SXM4-40GB"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100", r"'h100' is no pool: write NAME=NODESxGPUS, such as h100=2x8"),
        ("h100=2", "is no pool"),
        ("h200x=1x8", "GPU h200x is not known: use one of "),
        ("h100=0x8", "give 1 to 64 nodes and 1 to 16 GPUs per node"),
        ("h100=1x99", "give 1 to 64 nodes and 1 to 16 GPUs per node"),
    ],
)
def test_a_bad_pool_says_what_a_good_one_is(text: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        PoolOption.parse(text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config("Bad_Name"), r"--name 'Bad_Name': use at most 32 of a-z, 0-9 and -"),
        (Config("../x"), "--name"),
        (Config("x", pools=(PoolOption("H100-SXM-80", 64, 8), PoolOption("A100-SXM-40", 1, 8))), "--simulated"),
        (Config("x", pools=(PoolOption("H100-SXM-80", 1, 8),) * 2), "H100-SXM-80 is given twice"),
        (Config("x", storage="/no/such/folder"), "is no folder"),
    ],
)
def test_a_bad_cluster_names_the_option(config: Config, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        config.check()


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "one/logs", "/", "Ä", "a\n", "a" * 300])
@pytest.mark.parametrize("command", ["down", "status"])
def test_what_is_no_name_of_a_cluster_is_refused_and_nothing_is_removed(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kept = [tmp_path / "other", tmp_path / "state/berth/one/logs"]
    for folder in kept:
        folder.mkdir(parents=True)
    result = CliRunner().invoke(main, ["local", command, "--name", name])
    assert (result.exit_code, result.output) == (
        1,
        f"Error: --name {name!r}: use at most 32 of a-z, 0-9 and -, not at the ends\n",
    )
    assert all(folder.is_dir() for folder in kept)


def test_a_cluster_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = Config("x", simulated=(PoolOption("B200-SXM-180", 100, 8),), operator=False)
    config.check()
    config.write(tmp_path)
    assert Config.read(tmp_path) == config


# --- addresses --------------------------------------------------------------------------------------------------------
def test_each_cluster_has_a_network_of_its_own_until_it_gives_it_back() -> None:
    first, second = LoopbackNetwork.claim(), LoopbackNetwork.claim()
    numbers = first.number, second.number
    assert numbers[0] != numbers[1]
    first.close()
    again = LoopbackNetwork.claim()
    assert again.number != numbers[1]
    again.close()
    second.close()


def test_a_port_that_somebody_has_on_all_addresses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]
        monkeypatch.setattr(addresses, "POD_PORTS", (port,))
        with pytest.raises(NoAddresses, match=rf"listens on port {port} of all addresses"):
            LoopbackNetwork.claim()
        monkeypatch.setattr(addresses, "CLAIM_PORT", port)
        with pytest.raises(NoAddresses, match=rf"on port {port} of all addresses; stop it"):
            LoopbackNetwork.claim()


def test_an_address_that_was_given_back_is_the_last_to_be_used_again() -> None:
    pool = AddressPool("127.9.1")
    first = pool.take()
    pool.give_back(first)
    taken = [pool.take() for _ in range(253)]
    assert taken[-1] == first
    assert len(set(taken)) == 253


# --- requests ---------------------------------------------------------------------------------------------------------
async def test_answers_and_refusals_come_back_in_words(tmp_path: Path) -> None:
    async def handle(request: dict[str, Any]) -> Any:
        if request["do"] == "fail":
            raise BerthError("because")
        return {"got": request["do"]}

    deep = tmp_path / ("long" * 30) / ("path" * 30)
    deep.mkdir(parents=True)
    async with control.serve(deep, handle):
        assert await asyncio.to_thread(control.ask, deep, {"do": "x"}) == {"got": "x"}
        with pytest.raises(control.Refused, match="because"):
            await asyncio.to_thread(control.ask, deep, {"do": "fail"})
    with pytest.raises(control.NotRunning, match="berth local up"):
        control.ask(deep, {"do": "x"})


def test_nobody_is_running_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(control.NotRunning):
        control.ask(tmp_path / "none", {"do": "status"})


# --- clean-up ---------------------------------------------------------------------------------------------------------
def python(*arguments: str, mark: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, env={sandbox.MARK: mark})


def test_the_janitor_removes_what_a_killed_supervisor_leaves(tmp_path: Path) -> None:
    mark, memory = str(tmp_path / "cluster"), tmp_path / "memory"
    memory.mkdir()
    region = sandbox.SHARED_MEMORY / "berth_127.0.9.9_test"
    region.write_bytes(b"")
    stays = python("-c", "input()", mark=f"{mark}2/x")
    left = python("-c", "import signal; signal.signal(15, signal.SIG_IGN); input()", mark=f"{mark}/uid/container")
    janitor = python("-m", "berth.local.janitor", mark, str(memory), "127.0.9.")
    while sandbox.marked(mark) != [left.pid]:
        time.sleep(0.01)
    assert janitor.poll() is None
    janitor.communicate()
    assert (left.wait(), stays.poll()) == (-9, None)
    assert not memory.exists()
    assert not region.exists()
    stays.communicate(b"\n")
    left.communicate()
