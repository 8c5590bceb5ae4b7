"""What the planner calls: engine models, factors, figures at a load; all with ordered bands and a limiting term."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.estimator.hardware import gpu
from berth.estimator.models import model
from berth.estimator.performance import BANDS, Candidate, engine_model, factors, performance
from tests.unit.estimator.strategies import candidates

LLAMA = model("llama-3.1-70b")
H100_FP8 = Candidate(LLAMA, gpu("H100-SXM-80"), 1, 1, "fp8", "fp8")
LIMITS = {"memory bandwidth", "compute", "communication", "overhead", "KV room"}


@given(candidates())
@settings(max_examples=30, deadline=None)
def test_low_is_slower_and_roomier_than_high_nowhere(candidate: Candidate) -> None:
    low, mid, high = (engine_model(candidate, band) for band in BANDS)
    args = [np.array([1.0, 8, 64]), np.array([1e3, 8e3, 64e3]), np.array([0.0, 512, 2048]), np.array([0.0, 1e5, 2e6])]
    assert np.all(low.step(*args) >= mid.step(*args))
    assert np.all(mid.step(*args) >= high.step(*args))
    assert low.kv_tokens <= mid.kv_tokens <= high.kv_tokens


def test_engine_models_broadcast_and_carry_the_limits() -> None:
    engine = engine_model(replace(H100_FP8, max_batch_size=64, max_num_tokens=2048))
    assert (engine.max_batch_size, engine.max_num_tokens, engine.block_tokens) == (64, 2048, 32)
    decodes, prefill = np.arange(1.0, 65)[:, None], np.linspace(0, 2048, 9)[None, :]
    assert engine.step(decodes, 1000 * decodes, prefill, prefill**2 / 2).shape == (64, 9)


def test_no_engine_model_without_room() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        engine_model(replace(H100_FP8, precision="bf16"))
    with pytest.raises(ValueError, match="no FP8"):
        engine_model(replace(H100_FP8, gpu=gpu("A100-SXM-80"), tensor_parallel=4))


@given(candidates(), st.integers(1, 256), st.integers(16, 2048), st.integers(2, 1024))
@settings(max_examples=30, deadline=None)
def test_figures_are_ordered_and_name_their_limit(candidate: Candidate, clients: int, prompt: int, output: int) -> None:
    found = performance(candidate, clients, prompt, output, output)
    for figure in (
        found.in_flight,
        found.output_tokens_per_second,
        found.time_per_output_token,
        found.time_to_first_token,
    ):
        assert 0 < figure.low <= figure.mid <= figure.high
    assert found.limited_by in LIMITS


@given(candidates(), st.integers(1, 256), st.integers(16, 2048), st.integers(2, 1024))
@settings(max_examples=30, deadline=None)
def test_shares_of_a_step_add_up(candidate: Candidate, clients: int, prompt: int, output: int) -> None:
    found = factors(candidate, clients, prompt, output, output)
    shares = (found.weights_share, found.kv_share, found.compute_share, found.all_reduce_share, found.overhead_share)
    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert 1 <= found.in_flight <= max(clients, 1)
    assert found.all_reduce_time <= found.step_time


def test_a_second_gpu_more_than_doubles_throughput_where_kv_room_starves() -> None:
    """Llama 3.1 70B FP8 on H100, 128/2048: 912 tok/s on one GPU, 6170 on two (TensorRT-LLM v0.17 documentation)."""
    one, two = (
        performance(replace(H100_FP8, tensor_parallel=tp, max_batch_size=2048), math.inf, 128, 2048, 2048)
        for tp in (1, 2)
    )
    assert one.limited_by == "KV room"
    assert two.output_tokens_per_second.mid > 4 * one.output_tokens_per_second.mid


def test_the_requested_maximum_decides_how_many_requests_fit() -> None:
    short, long = (factors(H100_FP8, 1000, 1155, 211, maximum).in_flight_limit for maximum in (211, 4096))
    assert short > 3 * long
    assert factors(H100_FP8, 1000, 1155, 211, 4096).in_flight_limited_by == "KV room"
    assert factors(replace(H100_FP8, max_batch_size=4), 1000, 1155, 211, 211).in_flight_limited_by == "maxBatchSize"


def test_what_limits_changes_with_the_load() -> None:
    four = replace(H100_FP8, tensor_parallel=4, max_batch_size=1024)
    assert factors(four, 1, 128, 2048, 2048).limited_by in {"memory bandwidth", "overhead"}
    assert factors(four, 512, 2048, 64, 64).limited_by == "compute"


def test_one_gpu_of_a_split_copy_takes_all_of_it_down() -> None:
    assert factors(replace(H100_FP8, tensor_parallel=4, pipeline_parallel=2), 8, 128, 128, 128).gpus == 8


def test_efficiency_of_a_split_is_below_one_and_of_one_gpu_exactly_one() -> None:
    assert factors(H100_FP8, 8, 128, 128, 128).parallel_efficiency == pytest.approx(1)
    assert 0.2 < factors(replace(H100_FP8, tensor_parallel=8), 8, 128, 128, 128).parallel_efficiency < 0.8
