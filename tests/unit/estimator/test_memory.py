"""Memory: worked numbers of 70B placements, and laws over every model, GPU and split."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.estimator.hardware import gpu
from berth.estimator.memory import fit, requests_in_flight, whole_blocks
from berth.estimator.models import model
from berth.estimator.performance import Candidate
from tests.unit.estimator.strategies import candidates

LLAMA = model("llama-3.1-70b")
H100, A100_80, A100_40 = gpu("H100-SXM-80"), gpu("A100-SXM-80"), gpu("A100-SXM-40")


def test_a_70b_in_16_bit_does_not_fit_one_80_gb_gpu() -> None:
    found = fit(LLAMA, H100, precision="bf16")
    assert found.verdict == "does-not-fit"
    assert "weights 131.4 GiB, usable 79.6 GiB" in found.reason
    assert found.kv_tokens_high == 0


def test_a_70b_in_fp8_fits_one_h100_with_about_52k_tokens_of_kv_room() -> None:
    found = fit(LLAMA, H100, precision="fp8", kv_precision="fp8", tokens_per_request=2048)
    assert found.weights_gib == pytest.approx(72.65 / 1.0737, abs=0.1)
    assert 33_000 < found.kv_tokens_low < 51_000 < found.kv_tokens_mid < found.kv_tokens_high < 65_000
    assert found.verdict == "ok"


def test_a_70b_on_four_a100_40_is_marginal_because_the_reserve_is_not_known() -> None:
    found = fit(LLAMA, A100_40, tensor_parallel=4, precision="bf16", tokens_per_request=4096)
    assert found.verdict == "marginal"
    assert found.kv_tokens_low < 16_384 < found.kv_tokens_mid < found.kv_tokens_high < 65_000
    assert "KV room" in found.reason


def test_fp8_on_a100_is_unsupported_whatever_the_memory() -> None:
    found = fit(LLAMA, A100_80, tensor_parallel=8, precision="fp8")
    assert found.verdict == "unsupported"
    assert "no FP8" in found.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensor_parallel": 3}, "does not divide the 64 attention heads"),
        ({"tensor_parallel": 16}, "exceeds the 8 GPUs"),
        ({"pipeline_parallel": 81}, "80 layers"),
        ({"precision": "int8"}, "built engines"),
        ({"precision": "bf16", "kv_precision": "int8"}, "built engines"),
    ],
)
def test_what_cannot_run_says_why(change: dict[str, object], reason: str) -> None:
    found = fit(LLAMA, H100, **{"tensor_parallel": 8, "precision": "bf16", **change})  # type: ignore[arg-type]
    assert found.verdict == "unsupported"
    assert reason in found.reason


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend 'vllm' is not known"):
        fit(LLAMA, H100, backend="vllm")


def test_built_engines_keep_the_embedding_on_every_gpu() -> None:
    engine = fit(LLAMA, A100_40, tensor_parallel=4, backend="tensorrt")
    pytorch = fit(LLAMA, A100_40, tensor_parallel=4, backend="pytorch")
    assert engine.weights_gib - pytorch.weights_gib == pytest.approx(1.47, abs=0.01)


def test_activations_follow_the_token_budget_and_the_split() -> None:
    assert fit(LLAMA, H100, 1, precision="fp8").activations_gib == pytest.approx(1.4, abs=0.05)
    assert fit(LLAMA, H100, 4, precision="fp8").activations_gib == pytest.approx(0.7, abs=0.1)
    assert fit(LLAMA, H100, 4, precision="fp8", max_num_tokens=2048).activations_gib == pytest.approx(0.17, abs=0.02)


def test_the_fullest_stage_counts_when_layers_do_not_divide() -> None:
    odd = fit(model("llama-3.1-405b"), H100, 8, 4, precision="fp8")  # 126 layers over 4 stages: 32 on the first
    layer = model("llama-3.1-405b").layer_parameters / 8 / 2**30
    head = model("llama-3.1-405b").head_parameters * 2 / 8 / 2**30
    assert odd.weights_gib == pytest.approx(32 * layer + head, rel=1e-6)


def test_key_value_heads_are_replicated_beyond_their_number() -> None:
    qwen = model("qwen2.5-7b")  # 4 key/value heads
    four, eight = (fit(qwen, H100, tp).kv_bytes_per_token for tp in (4, 7 * 4))
    assert four == qwen.kv_bytes_per_token(2)
    assert eight == 7 * four


def test_admission_counts_whole_blocks_of_prompt_and_requested_output() -> None:
    assert whole_blocks(1) == 32
    assert whole_blocks(64) == 64
    assert requests_in_flight(1000, 33, 31, 256) == 15  # 64 tokens each
    assert requests_in_flight(1000, 33, 32, 256) == 10  # 65 tokens take three blocks
    assert requests_in_flight(1000, 33, 31, 4) == 4
    assert requests_in_flight(-5, 1, 1, 4) == 0


@given(candidates(runnable=False))
@settings(max_examples=60, deadline=None)
def test_bands_are_ordered_and_verdicts_consistent(candidate: Candidate) -> None:
    found = candidate.fit()
    assert 0 <= found.kv_tokens_low <= found.kv_tokens_mid <= found.kv_tokens_high
    assert bool(found.reason) == (found.verdict != "ok")
    if found.verdict == "ok":
        assert found.kv_tokens_low >= 2048
    if found.verdict == "does-not-fit":
        assert found.kv_tokens_high < 2048


@given(candidates(runnable=False), st.floats(1.0, 64.0))
@settings(max_examples=40, deadline=None)
def test_more_memory_is_never_less_room(candidate: Candidate, more: float) -> None:
    larger = replace(candidate, gpu=replace(candidate.gpu, memory_gib=candidate.gpu.memory_gib + more))
    assert larger.fit().kv_tokens_low >= candidate.fit().kv_tokens_low
    assert larger.fit().kv_tokens_high >= candidate.fit().kv_tokens_high


@given(candidates(runnable=False))
@settings(max_examples=40, deadline=None)
def test_more_gpus_are_never_more_weights_on_each(candidate: Candidate) -> None:
    wider = replace(candidate, tensor_parallel=2 * candidate.tensor_parallel)
    deeper = replace(candidate, pipeline_parallel=candidate.pipeline_parallel + 1)
    assert wider.fit().weights_gib <= candidate.fit().weights_gib + (  # engines replicate the embedding
        candidate.model.head_parameters * 2 / 2**30 if candidate.backend == "tensorrt" else 0
    )
    assert deeper.fit().weights_gib <= candidate.fit().weights_gib


@given(candidates(), st.integers(64, 8192))
@settings(max_examples=40, deadline=None)
def test_longer_requests_never_fit_better(candidate: Candidate, tokens: int) -> None:
    order = ("ok", "marginal", "does-not-fit")
    assert order.index(candidate.fit(2 * tokens).verdict) >= order.index(candidate.fit(tokens).verdict)
