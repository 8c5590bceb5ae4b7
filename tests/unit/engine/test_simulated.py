"""The simulated engine on an asyncio loop, without Triton; steps of about 7 ms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from berth.engine.engines.base import LoadError, Piece, RequestError, Sampling
from berth.engine.engines.faults import FaultFile, Faults, parse
from berth.engine.engines.simulated import SimulatedEngine, hidden_factor, stop_number

OPTIONS = {
    "parameters_b": 8.03,
    "precision": "bf16",
    "gpu": "H100-SXM-80",
    "weight_gib": 15.0,
    "kv_bytes_per_token": 131072,
    "load_seconds": 0,
    "time_scale": 5,
}


class Bench:
    """An engine with its fault file."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.deaths = 0
        self.member_lost = False
        self.engine = SimulatedEngine(
            {**OPTIONS, **options},
            faults=FaultFile(path),
            max_input_tokens=600_000,
            pool="h100",
            member_lost=lambda: self.member_lost,
            die=self._die,
        )

    def _die(self) -> None:
        self.deaths += 1

    def fault(self, **switches: Any) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(switches))
        new.replace(self.path)

    async def ask(self, prompt: str = "a", tokens: int = 5, **more: Any) -> list[Piece]:
        return [piece async for piece in self.engine.generate(prompt, Sampling(tokens, **more))]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "faults.json")
    await bench.engine.load()
    yield bench
    await bench.engine.close()


async def test_answers_in_words_one_per_token(bench: Bench) -> None:
    one, three = await asyncio.gather(bench.ask("a b c", 4), bench.ask("a", 1))
    assert "".join(piece.text for piece in one) == "w1 w2 w3 w4"
    assert [piece.finish_reason for piece in one] == [None, None, None, "length"]
    assert {piece.input_tokens for piece in one} == {3}
    assert [piece.text for piece in three] == ["w1"]
    assert bench.engine.state.steps > 0
    assert bench.engine.state.running == 0


async def test_a_stop_word_ends_the_answer_before_it(bench: Bench) -> None:
    pieces = await bench.ask(tokens=50, stop=("never", "w9", "w4"))
    assert "".join(piece.text for piece in pieces) == "w1 w2 w3"
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", "w4")
    assert (await bench.ask(tokens=3, stop=("w9",)))[-1].finish_reason == "length"
    (nothing,) = await bench.ask(stop=("w1",))
    assert (nothing.tokens, nothing.stop_reason) == (0, "w1")


@pytest.mark.parametrize(
    ("word", "number"), [("w8", 8), (" w12 ", 12), ("w", 0), ("8", 0), ("w-1", 0), ("ww1", 0), ("", 0)]
)
def test_only_words_that_come_out_can_stop(word: str, number: int) -> None:
    assert stop_number(word) == number


async def test_a_request_left_early_gives_its_room_back(bench: Bench) -> None:
    async for piece in bench.engine.generate("a b", Sampling(500)):
        if piece.text == " w2":
            break
    await bench.ask(tokens=2)
    await asyncio.sleep(0)
    assert bench.engine.state.running == 0
    assert bench.engine.state.kv_utilization == 0.0


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("  ", "text_input is empty"),
        ("word " * 600_000, "exceed the KV cache"),
        ("word " * 600_001, "has 600001 tokens: at most 600000"),
    ],
)
async def test_impossible_requests_are_refused(bench: Bench, prompt: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        await bench.ask(prompt)


@pytest.mark.parametrize("how", ["fault", "member"])
async def test_a_hang_freezes_steps_until_it_is_lifted(bench: Bench, how: str) -> None:
    bench.fault(hang=how == "fault")
    bench.member_lost = how == "member"
    before = bench.engine.state.steps
    asking = asyncio.create_task(bench.ask(tokens=3))
    await asyncio.sleep(0.15)
    assert (bench.engine.state.steps, asking.done()) == (before, False)
    bench.fault()
    bench.member_lost = False
    assert len(await asking) == 3


async def test_a_crash_happens_once(bench: Bench) -> None:
    bench.fault(crash=True)
    await bench.ask()
    assert bench.deaths == 1
    assert not bench.path.exists()


async def test_switches_slow_steps_and_fail_requests(bench: Bench) -> None:
    await bench.ask(tokens=30)
    usual = bench.engine.state.step_seconds / bench.engine.state.steps
    bench.fault(slow=8)
    before, steps = bench.engine.state.step_seconds, bench.engine.state.steps
    await bench.ask(tokens=10)
    slowed = (bench.engine.state.step_seconds - before) / (bench.engine.state.steps - steps)
    assert slowed / usual == pytest.approx(8, rel=0.2)
    bench.fault(errors=True)
    with pytest.raises(RuntimeError, match="every request fails"):
        await bench.ask()


def test_switches_that_make_no_sense_are_off() -> None:
    assert parse({"hang": "yes", "slow": -1, "load_seconds": "long", "member_lost": 3, "crash": 1}) == Faults()
    assert parse({"member_lost": "exit"}).crash
    assert parse({"member_lost": "hang"}).hang


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parameters_b": None}, "simulated.parameters_b is None: give a number of at least 0.001"),
        ({"tensor_parallel": True}, "simulated.tensor_parallel is True"),
        ({"kv_tokens": 3}, "out of memory"),
        ({"weight_gib": 90}, "out of memory: weights 90.0 GiB and 4.0 GiB of runtime leave no room .* in 79.6 GiB"),
    ],
)
async def test_a_copy_that_makes_no_sense_does_not_load(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=words):
        await Bench(tmp_path / "faults.json", **options).engine.load()


async def test_load_faults_and_times_are_followed(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "faults.json")
    bench.fault(load_seconds=60)
    loading = asyncio.create_task(bench.engine.load())
    await asyncio.sleep(0.12)
    assert not loading.done()
    bench.fault(load_failure="no such checkpoint")
    with pytest.raises(LoadError, match="no such checkpoint"):
        await loading


def test_a_pool_has_one_secret() -> None:
    draws = {hidden_factor(pool, seed, 0.25) for pool in ("a", "b") for seed in range(20)}
    assert len(draws) == 40
    assert all(0.75 <= draw <= 1.25 for draw in draws)
    assert hidden_factor("a", 1, 0.25) == hidden_factor("a", 1, 0.25)
    assert hidden_factor("a", 1, 0.0) == 1.0
