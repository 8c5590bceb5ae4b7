"""GPU types and models: worked numbers, what runs where, config.json and its errors."""

from __future__ import annotations

from typing import Any

import pytest

from berth.api.architecture import Architecture
from berth.api.common import parse
from berth.api.crd import structural_schema
from berth.api.llmdeployment import LLMDeployment
from berth.estimator.copies import model_copy
from berth.estimator.hardware import GPU_TYPES, gpu
from berth.estimator.models import catalogue, from_config, model
from berth.estimator.precision import precision

LLAMA_70B = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-70b", 68.98), ("llama-3.1-70b", 70.55), ("llama-3.1-405b", 405.9), ("mixtral-8x7b", 46.7),
     ("mixtral-8x22b", 140.6), ("falcon-180b", 179.5), ("gpt-j-6b", 6.05), ("qwen3-32b", 32.8), ("mistral-7b", 7.25),
     ("qwen3-30b-a3b", 30.5), ("gpt-oss-120b", 116.8), ("opt-175b", 174.6), ("gemma-2-27b", 27.2),
     ("deepseek-v3", 671.0), ("deepseek-v2", 235.7), ("deepseek-v2-lite", 15.7), ("kimi-k2", 1026)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name: str, billions: float) -> None:
    assert model(name).parameters / 1e9 == pytest.approx(billions, rel=0.005)


ARCHITECTURE = structural_schema(LLMDeployment)["properties"]["spec"]["properties"]["model"]["properties"][
    "architecture"
]
BOUNDED = {key: each["maximum"] for key, each in ARCHITECTURE["properties"].items() if "maximum" in each}
TOGETHER = {
    "num_key_value_heads": {"num_attention_heads": 1024},
    "num_local_experts": {"num_experts_per_tok": 2},
    "num_experts": {"num_experts_per_tok": 2},
    "num_experts_per_tok": {"num_experts": 4096},
}


@pytest.mark.parametrize("key", BOUNDED)
def test_the_largest_architecture_that_the_api_takes_is_read(key: str) -> None:
    config = {**LLAMA_70B, **TOGETHER.get(key, {}), key: BOUNDED[key]}
    architecture = parse(Architecture, config, known_fields_only=True)
    assert from_config(architecture.model_dump(exclude_none=True)).parameters > 0


def test_weights_of_a_70b_are_141_gb_in_16_bit_73_in_fp8_and_40_in_int4() -> None:
    spec = model("llama-3.1-70b")

    def gigabytes(name: str) -> float:
        return (spec.body_parameters * precision(name).weight_bytes + spec.embedding_parameters * 2) / 1e9

    assert gigabytes("bf16") == pytest.approx(141.1, abs=0.05)
    assert gigabytes("fp8") == pytest.approx(72.7, abs=0.05)
    assert gigabytes("int4-awq") == pytest.approx(40, abs=0.5)
    assert spec.kv_bytes_per_token(2) == 327_680
    assert spec.kv_bytes_per_token(1) == 163_840


def test_latent_attention_keeps_one_small_cache_that_no_split_divides() -> None:
    spec = model("deepseek-ai/DeepSeek-R1")
    assert spec.kv_bytes_per_token(2) == 61 * 576 * 2
    assert spec.active_parameters / 1e9 == pytest.approx(37, rel=0.05)
    one, eight = (model_copy(spec, gpu("H200-SXM-141"), tensor, 1, "fp8") for tensor in (1, 8))
    assert one.kv_bytes == eight.kv_bytes


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-70b-instruct",
        "meta-llama/Llama-3.1-70B-Instruct",
        "Meta-Llama-3.1-70B",
        "LLAMA 3.1 70B",
        "llama_3.1_70b",
    ],
)
def test_a_model_is_found_under_the_names_people_write(name: str) -> None:
    assert model(name).name == "llama-3.1-70b"


def test_no_two_models_share_a_name() -> None:
    for name, spec in catalogue().items():
        assert model(name) is spec


def test_an_unknown_model_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="berth model list"):
        model("gpt-9")


def test_config_json_gives_the_same_geometry_as_the_catalogue() -> None:
    assert from_config(LLAMA_70B, "llama-3.1-70b") == model("llama-3.1-70b")
    mixtral = {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 32768,
        "num_local_experts": 8, "num_experts_per_tok": 2, "model_type": "mixtral",
    }  # fmt: skip
    assert from_config(mixtral, "mixtral-8x7b") == model("mixtral-8x7b")
    gptj = {"model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16, "n_positions": 2048, "vocab_size": 50400}
    assert from_config(gptj, "gpt-j-6b") == model("gpt-j-6b")
    falcon = {
        "model_type": "falcon", "num_hidden_layers": 80, "hidden_size": 14848, "num_attention_heads": 232,
        "num_kv_heads": 8, "vocab_size": 65024, "new_decoder_architecture": True, "tie_word_embeddings": False,
    }  # fmt: skip
    assert from_config(falcon, "falcon-180b") == model("falcon-180b")
    qwen = {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
    }  # fmt: skip
    assert from_config(qwen, "qwen3-30b-a3b") == model("qwen3-30b-a3b")


def test_a_multi_modal_config_is_read_by_its_language_model() -> None:
    wrapped = {"model_type": "mllama", "text_config": LLAMA_70B, "vision_config": {"hidden_size": 1280}}
    assert from_config(wrapped, "llama-3.1-70b") == model("llama-3.1-70b")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 8192.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"num_attention_heads": 60, "num_key_value_heads": 60}, "head_dim"),
        ({"num_local_experts": 8}, "num_experts_per_tok"),
        ({"num_local_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"intermediate_size": "wide"}, "intermediate_size"),
    ],
)
def test_a_bad_config_names_the_key(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        from_config({**LLAMA_70B, **change})


def test_touched_experts_run_from_those_of_one_token_to_all() -> None:
    mixtral = model("mixtral-8x7b")
    assert mixtral.touched_experts(1) == pytest.approx(2)
    assert mixtral.touched_experts(64) == pytest.approx(8, rel=1e-6)
    assert model("llama-2-7b").touched_experts(64) == 1


def test_data_sheet_figures_of_the_catalogue() -> None:
    assert gpu("H100-SXM-80").bandwidth == 3.35e12
    assert gpu("A100-SXM-40").bandwidth == 1.555e12
    assert gpu("A100-SXM-80").flops_fp8 == 0
    assert gpu("H100-PCIe-80").bandwidth / gpu("H100-SXM-80").bandwidth == pytest.approx(0.6, abs=0.01)
    assert gpu("H200-SXM-141").memory_gib == 139.8
    assert len({g.product for g in GPU_TYPES.values()}) == len(GPU_TYPES)


def test_an_unknown_gpu_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="H100-SXM-80"):
        gpu("H100")


@pytest.mark.parametrize(
    "name", ["A100-SXM-80", "A100-SXM-40", "A100-PCIe-80", "A100-PCIe-40", "A10-24", "V100-SXM-32"]
)
@pytest.mark.parametrize("backend", ["pytorch", "tensorrt", "simulated", None])
def test_no_fp8_before_ada(name: str, backend: str | None) -> None:
    assert not gpu(name).supports("fp8", backend)
    assert "no FP8" in str(gpu(name).why_not("fp8", backend))


@pytest.mark.parametrize(
    ("name", "weights", "backend", "kv", "runs"),
    [
        ("H100-SXM-80", "fp8", "pytorch", "fp8", True),
        ("L40S-48", "fp8", "pytorch", None, True),
        ("A100-SXM-40", "bf16", "pytorch", None, True),
        ("A100-SXM-40", "bf16", "pytorch", "fp8", False),
        ("A100-SXM-40", "int4-awq", "pytorch", None, True),
        ("A100-SXM-40", "int8", "pytorch", None, False),
        ("A100-SXM-40", "int8", "simulated", None, False),
        ("A100-SXM-40", "int8", "tensorrt", "int8", True),
        ("H100-SXM-80", "fp4", "pytorch", None, False),
        ("B200-SXM-180", "fp4", "pytorch", None, True),
        ("V100-SXM-32", "bf16", None, None, False),
        ("V100-SXM-32", "fp16", "pytorch", None, False),
        ("V100-SXM-32", "fp16", None, None, True),
        ("H100-SXM-80", "bf16", "pytorch", "int4-awq", False),
    ],
)
def test_what_runs_where(name: str, weights: str, backend: str | None, kv: str | None, runs: bool) -> None:
    assert gpu(name).supports(weights, backend, kv) is runs


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="int4-awq"):
        precision("int3")
