"""Tables of published step times: where they come from, what they give back, how they are scaled."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.engine.engines import step_times
from berth.engine.engines.step_times import Copy, choose, interpolate, kv_room, tables

LLAMA_70B_FP8 = Copy(70.55, "fp8", "H100-SXM-80", 2, 1, 163840)
LLAMA_70B_BF16 = Copy(70.55, "bf16", "A100-SXM-40", 4, 1, 327680)


def test_every_table_names_its_source_and_rises() -> None:
    assert len(tables()) == 23
    for table in tables():
        assert ":" in table.source
        assert table.rows >= 13
        for knots in (table.times.decode, table.times.prefill):
            assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots)), table.name
        assert table.copy.gpu in step_times.GPUS


# Published rows, closed loop: (table, requests in flight, prompt, output, ms per output token). The decode step and the
# share of the others' prefills must give the published figure back.
@pytest.mark.parametrize(
    ("name", "batch", "prompt", "output", "published"),
    [
        ("Llama-3.1-70B fp8 H100-SXM-80 TP4", 16, 1024, 1024, 13.192),
        ("Llama-3.1-70B fp8 H100-SXM-80 TP2", 64, 1024, 1024, 28.769),
        ("Llama-3.1-70B fp8 H100-SXM-80 TP8", 32, 8192, 1024, 21.612),
        ("Qwen3-32B fp8 H100-SXM-80 TP2", 64, 2048, 256, 36.577),
        ("Qwen3-32B bf16 H100-SXM-80 TP2", 16, 4096, 512, 24.602),
    ],
)
def test_tables_give_published_rows_back(name: str, batch: int, prompt: int, output: int, published: float) -> None:
    times = next(table.times for table in tables() if table.name == name)
    step = times.decode_seconds(batch, batch * (prompt + output / 2))
    others = (batch - 1) / output * times.prefill_seconds(0, prompt)
    assert (step + others) * 1000 == pytest.approx(published, rel=0.06)


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_interpolation_rises_and_meets_its_knots(a: float, b: float) -> None:
    knots = ((0.0, 0.0), (100.0, 1.0), (1000.0, 20.0))
    low, high = sorted((a, b))
    assert interpolate(knots, low) <= interpolate(knots, high)
    assert [interpolate(knots, x) for x, _ in knots] == [y for _, y in knots]
    assert interpolate(knots, 2000.0) == pytest.approx(20 + 19 / 900 * 1000)


def test_an_exact_table_is_used_unscaled_and_said() -> None:
    times, note = choose(LLAMA_70B_FP8)
    assert times == next(table.times for table in tables() if table.name == "Llama-3.1-70B fp8 H100-SXM-80 TP2")
    assert note.startswith("Llama-3.1-70B fp8 H100-SXM-80 TP2 (InferenceMAX")
    assert "scaled" not in note


def test_a_neighbour_is_scaled_by_bandwidth_and_said() -> None:
    times, note = choose(LLAMA_70B_BF16)
    base = next(table.times for table in tables() if table.name == "Llama-2-70B fp16 A100-SXM-80 TP4")
    ratio = 2.039 / 1.555 * 70.55 / 68.98
    assert times.decode_seconds(8, 0) == pytest.approx(base.decode_seconds(8, 0) * ratio, rel=0.001)
    assert "scaled: decode x1.34" in note


def test_more_gpus_are_faster_but_not_in_proportion() -> None:
    step = [choose(Copy(70.55, "fp8", "H100-SXM-80", tp, 1, 163840))[0].decode_seconds(8, 8000) for tp in (1, 2, 4, 8)]
    assert all(a > b > a / 2 for a, b in pairwise(step))


def test_a_pipeline_shares_prefill_and_batch_but_shortens_no_token() -> None:
    alone, _ = choose(LLAMA_70B_BF16)
    piped, _ = choose(Copy(70.55, "bf16", "A100-SXM-40", 4, 2, 327680))
    assert piped.decode_seconds(1, 100) > alone.decode_seconds(1, 100)
    assert piped.prefill_seconds(0, 4000) == pytest.approx(alone.prefill_seconds(0, 4000) * 1.1 / 2)
    assert piped.decode_seconds(64, 64000) < alone.decode_seconds(64, 64000)


def test_room_is_what_weights_and_reserve_leave() -> None:
    by_hand = math.floor(0.95 * (2 * 79.6 - 67.7 - 8) * 2**30 / 163840)
    assert kv_room(LLAMA_70B_FP8, 67.7) == by_hand
    assert kv_room(Copy(70.55, "bf16", "H100-SXM-80", 1, 1, 327680), 131.4) < 0


@pytest.mark.parametrize(
    ("copy", "words"),
    [
        (Copy(8, "bf16", "H100", 1, 1, 1e5), "gpu 'H100' is unknown"),
        (Copy(8, "fp7", "H100-SXM-80", 1, 1, 1e5), "precision 'fp7' is unknown"),
        (Copy(8, "fp8", "A100-SXM-40", 1, 1, 1e5), "fp8 cannot run on A100-SXM-40: use bf16"),
    ],
)
def test_what_no_gpu_can_do_is_refused(copy: Copy, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(copy)
