"""Reading rows: every spelling the data knows, what is inferred, and bad cells answered with the field's name."""

from __future__ import annotations

import math
import random
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.estimator.coefficients import condition, fitted, lock_step
from berth.estimator.predict import Cases
from berth.estimator.published import METRICS, Limits, Unsupported, measurement
from berth.estimator.rows import coefficients_of, predict_row, predict_rows
from berth.estimator.runtimes import attention_kernel, runtime_of
from berth.estimator.steps import Coefficients

ROW = {
    "source": "TensorRT-LLM docs v0.17 (max load)",
    "model": "Llama-3.1-70B",
    "params_b": "70.55",
    "weights_precision": "fp8",
    "kv_precision": "fp8",
    "gpu": "H100-SXM",
    "gpu_mem_gb": "80",
    "interconnect": "NVLink",
    "tp": "2",
    "pp": "1",
    "concurrency": "max",
    "input_tokens": "1000",
    "output_tokens": "1000",
    "metric": "out_tok_s",
    "value": "4390.53",
    "unit": "tok/s total",
    "notes": "in-flight batching, infinite request rate",
}


def row(**changes: str) -> dict[str, str]:
    return {**ROW, **changes}


def test_the_value_is_never_read() -> None:
    expected = predict_row(ROW)
    for value in ("", "1", "-1", "nan", "1e300", "not a number"):
        assert predict_row(row(value=value)) == expected
    without = {name: cell for name, cell in ROW.items() if name != "value"}
    assert predict_row(without) == expected


@pytest.mark.parametrize(
    ("changes", "gpu", "link"),
    [
        ({}, "H100-SXM-80", "NVLink"),
        ({"gpu": "A100-SXM", "gpu_mem_gb": "40"}, "A100-SXM-40", "NVLink"),
        ({"gpu": "A100-SXM", "gpu_mem_gb": "80"}, "A100-SXM-80", "NVLink"),
        ({"gpu": "A100-PCIe", "gpu_mem_gb": "n/s", "interconnect": "PCIe"}, "A100-PCIe-80", "PCIe"),
        ({"gpu": "A100", "gpu_mem_gb": "40", "interconnect": "PCIe 4.0"}, "A100-PCIe-40", "PCIe"),
        ({"gpu": "NVIDIA A100-SXM4-40GB", "gpu_mem_gb": "40"}, "A100-SXM-40", "NVLink"),
        ({"gpu": "H100-PCIe", "interconnect": "PCIe"}, "H100-PCIe-80", "PCIe"),
        ({"gpu": "H100-NVL", "gpu_mem_gb": "94", "interconnect": "NVLink bridge"}, "H100-NVL-94", "NVLinkBridge"),
        ({"gpu": "H200-SXM", "gpu_mem_gb": "141"}, "H200-SXM-141", "NVLink"),
        ({"gpu": "GH200", "gpu_mem_gb": "96", "interconnect": "NVLink-C2C"}, "GH200-96", "NVLink"),
        ({"gpu": "L40S", "gpu_mem_gb": "48", "interconnect": "PCIe"}, "L40S-48", "PCIe"),
        ({"gpu": "H100-SXM", "interconnect": "PCIe only"}, "H100-SXM-80", "PCIe"),
        ({"gpu": "B200", "gpu_mem_gb": "180", "interconnect": "NVLink5"}, "B200-SXM-180", "NVLink"),
        ({"gpu": "A100-SXM4-40GB", "gpu_mem_gb": "n/s"}, "A100-SXM-40", "NVLink"),
        ({"gpu": "A100-SXM-40", "gpu_mem_gb": ""}, "A100-SXM-40", "NVLink"),
        (
            {"gpu": "A100", "gpu_mem_gb": "", "notes": "p4d.24xlarge (8x A100 40GB), 128 tokens"},
            "A100-SXM-40",
            "NVLink",
        ),
        ({"gpu": "A100", "gpu_mem_gb": "", "notes": "A100 128 output tokens"}, "A100-SXM-80", "NVLink"),
        ({"gpu": "8xA100", "gpu_mem_gb": "40"}, "A100-SXM-40", "NVLink"),
        ({"gpu": "H100 NVLink", "gpu_mem_gb": "80"}, "H100-SXM-80", "NVLink"),
    ],
)
def test_gpus_are_found_by_chip_form_and_memory(changes: dict[str, str], gpu: str, link: str) -> None:
    found = measurement(row(weights_precision="bf16", **changes)).gpu
    assert (found.name, found.link) == (gpu, link)


@pytest.mark.parametrize(
    ("concurrency", "load", "clients"),
    [
        ("16", "closed", 16),
        ("max", "saturated", math.inf),
        ("offline", "saturated", math.inf),
        ("qps=inf", "saturated", math.inf),
        ("qps=2.5", "open", 2.5),
        ("n/a", "saturated", math.inf),
        ("", "saturated", math.inf),
        ("min-latency", "closed", 1),
    ],
)
def test_every_kind_of_concurrency(concurrency: str, load: str, clients: float) -> None:
    found = measurement(row(concurrency=concurrency))
    assert (found.load, found.clients) == (load, clients)


def test_latency_without_a_load_is_that_of_one_request() -> None:
    assert measurement(row(metric="ttft_ms", unit="ms", concurrency="n/a")).clients == 1


def test_static_batches_are_told_by_version_or_notes() -> None:
    assert measurement(row(source="TensorRT-LLM docs v0.8.0 (peak throughput)", concurrency="64")).load == "static"
    assert measurement(row(source="somebody", notes="fixed batch 8", concurrency="8")).load == "static"
    assert measurement(row(concurrency="64")).load == "closed"


def test_what_is_not_stated_is_inferred() -> None:
    blank = row(weights_precision="not stated", kv_precision="", tp="n/a", pp="", input_tokens="n/s", output_tokens="")
    found = measurement(blank)
    assert (found.precision, found.kv_precision) == ("bf16", "bf16")
    assert (found.tensor_parallel, found.pipeline_parallel) == (2, 1)  # 141 GB of weights
    assert (found.prompt, found.output) == (128, 128)
    assert measurement(row(kv_precision="not stated")).kv_precision == "fp8"  # built FP8 engines keep theirs in FP8
    assert measurement(row(kv_precision="", source="vLLM 0.10", notes="")).kv_precision == "bf16"
    assert measurement(row(gpu="V100-SXM", gpu_mem_gb="32", weights_precision="")).precision == "fp16"


def test_lengths_drawn_below_the_stated_ones_are_read_as_their_mean() -> None:
    found = measurement(row(source="InferenceMAX (2025-10-29)"))
    assert (found.prompt, found.output) == (900, 900)


def test_block_scaled_checkpoints_multiply_slower_than_one_scale_per_matrix() -> None:
    blocks, plain = (coefficients_of(measurement(row(model=name)), fitted()) for name in ("Qwen3-32B", "Qwen2.5-32B"))
    wide = coefficients_of(measurement(row(model="Qwen3-32B", weights_precision="bf16", kv_precision="bf16")), fitted())
    assert blocks.compute < 0.8 * plain.compute
    assert wide.bandwidth >= blocks.bandwidth


def test_schedulers_that_run_prompts_first_keep_equal_requests_in_lock_step() -> None:
    def interference(source: str) -> float:
        found = measurement(row(source=source, notes="", weights_precision="bf16", kv_precision="bf16"))
        return lock_step(condition(found.model, found.gpu, 2, found.precision, found.runtime))

    assert [interference(source) for source in ("SGLang 0.5", "vLLM 0.3", "vLLM 0.10", "TensorRT-LLM 1.0")] == [
        0.5,
        0.5,
        1.0,
        1.0,
    ]


def test_what_runtimes_of_2023_do_is_told_from_how_well() -> None:
    def coefficients(source: str, precision: str = "bf16") -> Coefficients:
        found = measurement(row(source=source, notes="", weights_precision=precision, kv_precision="bf16"))
        return coefficients_of(found, fitted())

    sources = ("TGI 1.0.3", "vLLM 0.2.0", "SGLang 0.5", "vLLM 0.10", "TensorRT-LLM 1.0")
    assert [coefficients(source).prompts_apart for source in sources] == [1, 1, 1, 0, 0]
    assert coefficients("TGI 1.0.3", "int4-gptq").matrix_launches > 100e-6
    assert not coefficients("TGI 1.0.3").matrix_launches
    assert not coefficients("vLLM 0.2.0", "int4-awq").matrix_launches


def test_tables_of_an_engine_that_was_run_otherwise_are_predicted_as_they_were_run() -> None:
    docs = measurement(
        row(source="TensorRT-LLM docs v0.10.0 (max load)", tp="8", input_tokens="128", output_tokens="128")
    )
    assert (docs.limits.batch_size, docs.limits.num_tokens, docs.limits.requests) == (2048, 2048, 2000)
    assert measurement(row(source="TensorRT-LLM docs v0.10.0", concurrency="8")).limits == Limits()
    as_run, at_large = (
        Cases([m]).predict(coefficients_of(m, fitted())) for m in (docs, replace(docs, limits=Limits()))
    )
    assert as_run < at_large


@pytest.mark.parametrize(
    ("spelling", "name"), [("int4", "int4-awq"), ("int4-gptq", "int4-gptq"), ("int8", "int8"), ("fp16", "fp16")]
)
def test_quantised_weights_as_the_data_writes_them(spelling: str, name: str) -> None:
    assert measurement(row(weights_precision=spelling, kv_precision="fp16")).precision == name


def test_an_unknown_model_is_predicted_by_its_size() -> None:
    known = predict_row(row(model="Llama-3.1-70B"))
    like = predict_row(row(model="Somebodys-70B", params_b="70.55"))
    assert like.predicted == pytest.approx(known.predicted, rel=0.05)
    assert predict_row(row(model="Somebodys-70B", params_b="n/s")).verdict.startswith("unsupported: model:")
    for mixture in ("DeepSeek-V4", "Other-16x12B", "Other-100B-A10B"):
        assert "mixture of experts" in predict_row(row(model=mixture, params_b="671")).verdict


def test_units_total_per_gpu_and_of_a_system_of_copies() -> None:
    total = predict_row(ROW).predicted
    assert predict_row(row(unit="tok/s per GPU")).predicted == pytest.approx(total / 2)
    assert predict_row(row(unit="tok/s/GPU")).predicted == pytest.approx(total / 2)
    assert predict_row(row(metric="system_out_tok_s", unit="tok/s for 8 GPUs")).predicted == pytest.approx(4 * total)
    assert "unit" in predict_row(row(metric="system_out_tok_s", unit="tok/s")).verdict
    in_ms = predict_row(row(metric="tpot_ms", unit="ms", concurrency="8")).predicted
    assert predict_row(row(metric="tpot_ms", unit="s", concurrency="8")).predicted == pytest.approx(in_ms / 1000)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({}, "bf16"),
        ({"tp": "1"}, "fp8"),
        ({"tp": "1", "gpu": "A100-SXM"}, "int4-awq"),
        ({"model": "Llama-3.1-405B-Instruct", "tp": "8"}, "fp8"),
        ({"model": "Meta-Llama-3.1-8B-Instruct-FP8"}, "fp8"),
        ({"model": "Llama-2-70B-Chat-AWQ"}, "int4-awq"),
        ({"model": "gpt-oss-120b"}, "fp4"),
        ({"model": "DeepSeek-R1", "gpu": "H200-SXM", "gpu_mem_gb": "141", "tp": "8"}, "fp8"),
    ],
)
def test_a_precision_that_is_not_stated_is_inferred(changes: dict[str, str], precision: str) -> None:
    found = measurement(row(weights_precision="n/s", kv_precision="", **changes))
    assert found.precision == precision
    assert predict_row(row(weights_precision="n/s", kv_precision="", **changes)).verdict in ("ok", "marginal")


@pytest.mark.parametrize(
    ("changes", "tensor_parallel"),
    [
        ({"model": "Llama-3.1-8B"}, 1),
        ({"weights_precision": "fp8"}, 1),
        ({"weights_precision": "bf16", "gpu": "A100-SXM", "gpu_mem_gb": "40"}, 4),
        ({"model": "Llama-3.1-405B", "weights_precision": "bf16"}, 8),  # too large for 8: said in the verdict
        ({"model": "Llama-3.1-405B", "pp": "2", "weights_precision": "bf16"}, 4),
        ({"weights_precision": "bf16", "metric": "system_out_tok_s", "unit": "tok/s for 1 GPU"}, 1),
    ],
)
def test_a_split_that_is_not_stated_is_the_smallest_that_fits(changes: dict[str, str], tensor_parallel: int) -> None:
    assert measurement(row(tp="n/s", kv_precision="", **changes)).tensor_parallel == tensor_parallel


def test_a_system_spreads_its_load_over_its_copies() -> None:
    def system(concurrency: str, unit: str) -> float:
        return measurement(row(metric="system_out_tok_s", concurrency=concurrency, unit=unit)).clients

    assert system("64", "tok/s for 8 GPUs") == 16
    assert system("qps=10", "tok/s for 8 GPUs") == 2.5
    assert system("max", "tok/s for 8 GPUs") == math.inf
    assert system("2", "tok/s for 8 GPUs") == 1
    assert system("64", "tok/s for 2 GPUs") == 64


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("concurrency", ["1", "16", "max", "qps=2", "n/a"])
def test_every_metric_under_every_load_has_a_prediction(metric: str, concurrency: str) -> None:
    unit = {"allreduce_us": "us", "system_out_tok_s": "tok/s for 8 GPUs", "out_tok_s": "tok/s total"}.get(metric, "ms")
    found = predict_row(
        row(metric=metric, unit=unit, concurrency=concurrency, notes="message 16384 bytes; 60 requests")
    )
    assert found.verdict == "ok"
    assert 0 < found.low <= found.predicted <= found.high < math.inf


def test_percentiles_are_never_below_means() -> None:
    for mean, tail in (("ttft_ms", "ttft_p99_ms"), ("tpot_ms", "tpot_p99_ms")):
        of = [
            predict_row(row(metric=m, unit="ms", concurrency="qps=4", notes="100 requests")).predicted
            for m in (mean, tail)
        ]
        assert of[1] >= of[0]


def test_more_arrivals_wait_longer() -> None:
    waits = [
        predict_row(row(metric="ttft_ms", unit="ms", concurrency=f"qps={rate}", notes="100 requests")).predicted
        for rate in (1, 4, 64)
    ]
    assert waits == sorted(waits)


def test_conversations_of_all_lengths_take_longer_than_their_mean_length() -> None:
    asked = {"source": "vLLM 0.6 benchmark", "kv_precision": "", "input_tokens": "n/s", "output_tokens": "n/s"}
    chats = row(**asked, concurrency="qps=inf", notes="ShareGPT, 200 prompts")
    made = row(**{**asked, "input_tokens": "230", "output_tokens": "203"}, concurrency="max", notes="200 prompts")
    assert (measurement(chats).prompt, measurement(chats).output) == (230, 203)
    assert 0.3 < predict_row(chats).predicted / predict_row(made).predicted < 0.9

    late = {"metric": "ttft_p99_ms", "unit": "ms", "concurrency": "qps=4"}
    assert predict_row({**chats, **late}).predicted > predict_row({**made, **late}).predicted


def test_the_measured_all_reduce_comes_back() -> None:
    found = predict_row(
        row(
            metric="allreduce_us",
            unit="us",
            model="n/a",
            tp="8",
            notes="message 131072 bytes (65536 elements)",
            source="custom",
        )
    )
    assert found.predicted == pytest.approx(6.2)
    assert predict_row(row(metric="allreduce_us", unit="us", notes="no size")).verdict.startswith("unsupported: notes:")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gpu": "TPUv5"}, "gpu"),
        ({"gpu": ""}, "gpu"),
        ({"gpu": "H100-SXM vs A100-SXM-40"}, "gpu"),
        ({"gpu": "MI300X"}, "gpu"),
        ({"gpu_mem_gb": "12"}, "gpu_mem_gb"),
        ({"gpu_mem_gb": "nan"}, "gpu_mem_gb"),
        ({"model": "", "params_b": ""}, "model"),
        ({"model": "x", "params_b": "-1"}, "params_b"),
        ({"model": "x", "params_b": "1e9"}, "params_b"),
        ({"weights_precision": "int3"}, "weights_precision"),
        ({"weights_precision": "fp8", "gpu": "A100-SXM"}, "weights_precision"),
        ({"kv_precision": "fp7"}, "kv_precision"),
        ({"tp": "0"}, "tp"),
        ({"tp": "-2"}, "tp"),
        ({"tp": "2.5"}, "tp"),
        ({"tp": "3"}, "tp"),
        ({"tp": "4->8"}, "tp"),
        ({"tp": "nan"}, "tp"),
        ({"pp": "1000"}, "pp"),
        ({"pp": "8 vs tp8"}, "pp"),
        ({"concurrency": "0"}, "concurrency"),
        ({"concurrency": "-4"}, "concurrency"),
        ({"concurrency": "nan"}, "concurrency"),
        ({"concurrency": "many"}, "concurrency"),
        ({"concurrency": "qps=-1"}, "concurrency"),
        ({"concurrency": "qps=nan"}, "concurrency"),
        ({"concurrency": "1e12"}, "concurrency"),
        ({"input_tokens": "-5"}, "input_tokens"),
        ({"input_tokens": "nan"}, "input_tokens"),
        ({"input_tokens": "1e20"}, "input_tokens"),
        ({"output_tokens": "0"}, "output_tokens"),
        ({"output_tokens": "inf"}, "output_tokens"),
        ({"output_tokens": "1", "metric": "tpot_ms", "unit": "ms"}, "output_tokens"),
        ({"metric": "allreduce_us", "unit": "us", "notes": "1024 bytes", "tp": "1"}, "tp"),
        ({"metric": "system_out_tok_s", "unit": "tok/s for 0 GPUs"}, "unit"),
        ({"metric": "joules"}, "metric"),
        ({"metric": ""}, "metric"),
        ({"unit": "furlongs"}, "unit"),
        ({"metric": "ttft_ms", "unit": "tok/s"}, "unit"),
    ],
)
def test_a_bad_cell_is_answered_with_its_field(changes: dict[str, str], field: str) -> None:
    found = predict_row(row(**changes))
    assert found.verdict.startswith(f"unsupported: {field}:"), found.verdict
    assert math.isnan(found.predicted)


def test_one_bad_row_disturbs_no_other() -> None:
    good = predict_row(ROW)
    assert [p.verdict for p in predict_rows([ROW, row(gpu="abacus"), ROW])][::2] == ["ok", "ok"]
    assert predict_rows([row(gpu="abacus"), ROW])[1] == good
    assert predict_rows([]) == []


cells = st.one_of(
    st.text(string.printable, max_size=12),
    st.sampled_from(
        ["", "nan", "inf", "-1", "0", "1e308", "max", "qps=1", "fp8", "A100", "H100-SXM", "n/a", "1;2", "\x00"]
    ),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
)


@given(st.dictionaries(st.sampled_from(sorted(ROW)), cells, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_row_ever_raises_or_predicts_nonsense(changes: dict[str, str]) -> None:
    found = predict_row(row(notes="40 requests", **{k: v for k, v in changes.items() if k != "notes"}))
    if found.verdict.startswith("unsupported"):
        assert ":" in found.verdict.removeprefix("unsupported:")
    else:
        assert found.verdict in {"ok", "marginal", "does-not-fit"}
        assert 0 <= found.low <= found.predicted <= found.high


def test_rows_with_missing_columns_are_read() -> None:
    with pytest.raises(Unsupported, match="metric"):
        measurement({})
    assert predict_row({"model": "Llama-2-7B", "gpu": "A100-SXM", "metric": "out_tok_s"}).verdict == "ok"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"weights_precision": "bf16", "kv_precision": "bf16", "tp": "1"}, "does-not-fit"),
        ({"weights_precision": "bf16", "kv_precision": "bf16", "tp": "4", "gpu": "A100-SXM"}, "ok"),
        ({"weights_precision": "int4-awq", "kv_precision": "bf16", "tp": "1", "gpu": "A100-SXM"}, "ok"),
        ({"weights_precision": "bf16", "kv_precision": "bf16", "gpu": "A100-SXM", "gpu_mem_gb": "40"}, "does-not-fit"),
        ({"weights_precision": "bf16", "kv_precision": "fp8", "tp": "8", "gpu": "A100-SXM"}, "marginal"),
        ({"tp": "16"}, "marginal"),
        ({"model": "Llama-3.1-405B", "weights_precision": "bf16", "kv_precision": "bf16", "tp": "8"}, "does-not-fit"),
        ({"model": "Mixtral-8x7B", "weights_precision": "bf16", "kv_precision": "bf16", "tp": "1"}, "does-not-fit"),
        ({"tp": "1", "input_tokens": "100000", "output_tokens": "2000"}, "does-not-fit"),
    ],
)  # fmt: skip
def test_what_cannot_fit_never_gets_ok(changes: dict[str, str], verdict: str) -> None:
    assert predict_row(row(**changes)).verdict == verdict


@pytest.mark.parametrize(
    ("source", "notes", "generation", "version"),
    [
        ("TensorRT-LLM docs v0.5.0 (peak throughput)", "", "trtllm-static", "trtllm-0.5"),
        ("TensorRT-LLM docs v0.12.0 (max load)", "", "trtllm-inflight", "trtllm-0.12"),
        ("TensorRT-LLM docs v0.17 (max load)", "", "trtllm-engine", "trtllm-0.17"),
        ("NVIDIA AIC silicon sample", "trtllm 1.0.0rc3; closed-loop", "trtllm-pytorch", "trtllm-1.0"),
        ("NVIDIA AIC silicon sample", "sglang 0.5.6.post2; closed-loop", "sglang", "sglang-0.5"),
        ("Splitwise-sim measured perf_model", "vLLM of 2023 (DGX)", "vllm-2023", ""),
        ("vLLM performance benchmark", "vllm 0.6.3", "vllm-2024", "vllm-0.6"),
        ("HF Llama-2 on SageMaker benchmark", "HF TGI 1.0.3 on SageMaker", "tgi", "tgi-1.0"),
        ("lmdeploy A100 benchmark", "lmdeploy v0.1.0a1 TurboMind", "turbomind", "turbomind-0.1"),
        ("TGI benchmark", "text-generation-inference v2.0.4", "tgi-2024", "tgi-2.0"),
        ("MLPerf Inference v4.0", "closed division, offline", "trtllm-inflight", ""),
        ("NVIDIA blog 2025-04", "", "trtllm-pytorch", ""),
        ("vLLM on NVIDIA A100", "vllm 0.6.3", "vllm-2024", "vllm-0.6"),
        ("a lab", "NVIDIA A100 80GB", "other-2023", ""),
        ("a blog", "FasterTransformer 5.3", "fastertransformer", "fastertransformer-5.3"),
        ("somebody's blog", "", "other-2023", ""),
        ("somebody's blog of 2025", "", "other", ""),
    ],
)
def test_the_runtime_is_read_from_source_and_notes(source: str, notes: str, generation: str, version: str) -> None:
    found = runtime_of(source, notes)
    assert (found.generation, found.version) == (generation, version)


def test_attention_kernels_learnt_of_groups_over_the_years() -> None:
    def kernel(version: str, group: float) -> str:
        return attention_kernel(runtime_of(f"TensorRT-LLM docs v{version}", ""), group)

    assert kernel("0.5.0", 8) == "per-head"
    assert kernel("0.8.0", 8) == "groups-of-eight"
    assert kernel("0.9.0", 4) == "per-head-later"
    assert kernel("0.11.0", 4) == "grouped"
    assert kernel("0.5.0", 1) == "multi-head"
    assert attention_kernel(runtime_of("", "TGI 1.0"), 8) == "eager"
    assert attention_kernel(runtime_of("TensorRT-LLM benchmark of 2023", ""), 8) == "per-head"


def test_reading_is_the_same_in_any_order() -> None:
    rows = [row(tp=str(tp), concurrency=c) for tp in (1, 2, 4, 8) for c in ("max", "4", "64")]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {id(r): p for r, p in zip(rows, predict_rows(rows), strict=True)} == {
        id(r): p for r, p in zip(shuffled, predict_rows(shuffled), strict=True)
    }
