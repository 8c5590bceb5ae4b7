"""Step times: laws that hold for every candidate, and published rules of thumb that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.estimator import batching
from berth.estimator.copies import model_copy, stack
from berth.estimator.hardware import GPU_TYPES, gpu
from berth.estimator.models import model
from berth.estimator.network import SIZES, all_reduce_table, all_reduce_time
from berth.estimator.performance import Candidate
from berth.estimator.steps import smooth_maximum, step_parts
from tests.unit.estimator.strategies import candidates

LLAMA = model("llama-3.1-70b")
loads = st.tuples(st.integers(1, 512), st.integers(1, 8192), st.integers(0, 8192))


def step(candidate: Candidate, decodes: float, context: float, prefill: float) -> float:
    return float(
        step_parts(candidate.copy, candidate.coefficients, decodes, context, prefill, prefill * prefill / 2).total
    )


@given(candidates(), loads, st.sampled_from(["decodes", "context", "prefill"]))
@settings(max_examples=80, deadline=None)
def test_more_work_never_takes_less_time(candidate: Candidate, load: tuple[int, int, int], more: str) -> None:
    decodes, each, prefill = load
    before = step(candidate, decodes, decodes * each, prefill)
    decodes += more == "decodes" and candidate.pipeline_parallel == 1
    after = step(candidate, decodes, decodes * each + 512 * (more == "context"), prefill + 64 * (more == "prefill"))
    assert after >= before * (1 - 1e-9)


@given(candidates(), loads)
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_sum_of_its_parts_and_none_is_negative(candidate: Candidate, load: tuple[int, int, int]) -> None:
    decodes, each, prefill = load
    parts = step_parts(candidate.copy, candidate.coefficients, decodes, decodes * each, prefill, prefill**2 / 2)
    named = [parts.matrices, parts.head, parts.kv_cache, parts.attention, parts.activations, parts.all_reduce]
    assert all(float(part) >= 0 for part in [*named, parts.overhead])
    assert float(parts.total) == pytest.approx(sum(float(part) for part in [*named, parts.overhead]))
    assert max(float(parts.weights), float(parts.compute)) <= float(parts.matrices) * (1 + 1e-9)


@given(candidates(), loads)
@settings(max_examples=40, deadline=None)
def test_faster_memory_and_arithmetic_are_never_slower(candidate: Candidate, load: tuple[int, int, int]) -> None:
    decodes, each, prefill = load
    faster = replace(
        candidate.gpu, bandwidth=1.5 * candidate.gpu.bandwidth, flops_16bit=1.5 * candidate.gpu.flops_16bit
    )
    quick = replace(candidate, gpu=faster)
    assert step(quick, decodes, decodes * each, prefill) <= step(candidate, decodes, decodes * each, prefill)


@given(candidates(), st.integers(1, 256), st.integers(16, 4096), st.integers(2, 2048))
@settings(max_examples=60, deadline=None)
def test_more_load_never_lowers_latency(candidate: Candidate, clients: int, prompt: int, output: int) -> None:
    copy, c = candidate.copy, candidate.coefficients
    n = np.array([clients, clients + 1, 2 * clients], dtype=float)
    if candidate.pipeline_parallel > 1:
        n = n + candidate.pipeline_parallel  # fewer requests than stages leave stages idle
    for figure in (batching.time_per_output_token, batching.request_time):
        times = np.asarray(figure(copy, c, n, float(prompt), float(output), 8192.0))
        assert np.all(np.diff(times) >= -1e-9 * times[:-1])


def test_prompts_that_delay_no_token_make_no_request_faster() -> None:
    candidate = Candidate(model("llama-3.1-70b"), gpu("H100-SXM-80"), 2, 1, "fp8", "fp8")
    first, mixed = (replace(candidate.coefficients, interference=share) for share in (0.5, 1.0))
    load = (16.0, 1024.0, 128.0, 8192.0)
    assert batching.time_per_output_token(candidate.copy, first, *load) < 0.9 * batching.time_per_output_token(
        candidate.copy, mixed, *load
    )
    assert batching.request_time(candidate.copy, first, *load) == batching.request_time(candidate.copy, mixed, *load)


def test_prompts_that_share_no_iteration_pay_for_launches_of_their_own() -> None:
    candidate = Candidate(model("llama-2-13b"), gpu("A100-SXM-40"), 8)
    eager = replace(candidate.coefficients, layer_overhead=500e-6, hiding=3.0)
    load = (16.0, 256.0, 64.0, 8192.0)
    shared, apart = (
        batching.iteration_time(candidate.copy, replace(eager, prompts_apart=kept), *load) for kept in (0.0, 1.0)
    )
    launches = 40 * 500e-6
    assert shared < apart < shared + 16 / 64 * 1.2 * launches


@given(candidates(), st.integers(16, 4096), st.integers(2, 2048))
@settings(max_examples=40, deadline=None)
def test_throughput_never_falls_when_a_request_joins(candidate: Candidate, prompt: int, output: int) -> None:
    n = np.arange(1.0, 300.0)
    iteration = batching.iteration_time(candidate.copy, candidate.coefficients, n, float(prompt), float(output), 8192.0)
    rate = n / np.asarray(iteration)
    stages = candidate.pipeline_parallel
    assert np.all(np.diff(rate[stages:]) >= -0.02 * rate[stages:-1])


def test_tensor_parallelism_on_nvlink_shortens_a_token_and_loses_efficiency() -> None:
    steps = [
        step(Candidate(LLAMA, gpu("H200-SXM-141"), tp, precision="fp8", kv_precision="fp8"), 16, 16 * 1536, 0)
        for tp in (1, 2, 4, 8)
    ]
    published = [23.0e-3, 13.4e-3, 8.9e-3, 7.7e-3]  # InferenceMAX 2025-10, 16 users, 1024/1024
    assert steps == pytest.approx(published, rel=0.2)
    ideal = steps[0] / np.array([1, 2, 4, 8])
    assert np.all(np.diff(np.array(steps) / ideal) > 0)


def test_pipeline_parallelism_does_not_shorten_a_token() -> None:
    a100 = gpu("A100-SXM-80")
    tensor, pipeline = (step(Candidate(LLAMA, a100, tp, pp), 1, 1024, 0) for tp, pp in ((4, 1), (1, 4)))
    assert 2 < pipeline / tensor < 4.5


def test_pipeline_stages_work_on_micro_batches_at_once() -> None:
    a100 = gpu("A100-SXM-80")
    one, many = (step(Candidate(LLAMA, a100, 1, 4), n, n * 1024, 0) for n in (1, 4))
    assert many < 1.1 * one  # four requests fill four stages: four tokens in the time of one


def test_pcie_costs_more_communication_than_nvlink() -> None:
    h100 = Candidate(LLAMA, gpu("H100-SXM-80"), 4, precision="fp8")
    l40s = Candidate(LLAMA, gpu("L40S-48"), 4, precision="fp8")
    nvlink, pcie = (step_parts(c.copy, c.coefficients, 64.0, 64.0 * 1024) for c in (h100, l40s))
    assert float(pcie.all_reduce) > 5 * float(nvlink.all_reduce)


def test_all_reduce_reproduces_its_tables_and_grows() -> None:
    for name in GPU_TYPES:
        assert np.all(np.isneginf(all_reduce_table(gpu(name), 1)))
        for width in (2, 4, 8):
            table = all_reduce_table(gpu(name), width)
            assert all_reduce_time(table, SIZES.astype(float)) == pytest.approx(np.exp(table))
            times = all_reduce_time(table, np.geomspace(1, 2**34, 200))
            assert np.all(np.diff(times) >= 0)
    measured = all_reduce_table(gpu("H100-SXM-80"), 8)
    assert float(all_reduce_time(measured, np.asarray(131072.0))) == pytest.approx(6.2e-6)
    assert float(all_reduce_time(all_reduce_table(gpu("H100-SXM-80"), 1), np.asarray(1e6))) == 0


def test_stacked_copies_give_what_each_gives_alone() -> None:
    alone = [
        model_copy(model(m), gpu(g), tp)
        for m, g, tp in (("llama-2-7b", "A100-SXM-40", 1), ("mixtral-8x7b", "H100-SXM-80", 4))
    ]
    c = Candidate(LLAMA, gpu("H100-SXM-80")).coefficients
    together = step_parts(stack(alone), c, np.array([8.0, 64.0]), np.array([8e3, 64e3])).total
    apart = [float(step_parts(copy, c, n, n * 1000).total) for copy, n in zip(alone, (8.0, 64.0), strict=True)]
    assert np.asarray(together) == pytest.approx(apart)


def test_the_smooth_maximum_lies_between_maximum_and_sum() -> None:
    assert smooth_maximum(2.0, 1.0, 1.0) == pytest.approx(3)
    assert smooth_maximum(2.0, 1.0, 50.0) == pytest.approx(2)
    assert 2 < smooth_maximum(2.0, 1.0, 2.0) < 3
    assert smooth_maximum(0.0, 0.0, 2.0) < 1e-20
