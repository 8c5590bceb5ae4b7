"""The shipped coefficients against the measurements they were fitted to; bench_estimator holds sources out."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from berth.estimator.coefficients import LEVELS, fitted
from berth.estimator.predict import closed_form
from berth.estimator.published import Unsupported, measurement
from berth.estimator.rows import Prediction, predict_rows

DATA = Path(__file__).parents[3] / "benchmarks" / "data" / "published_performance.csv.gz"


@pytest.fixture(scope="module")
def text() -> str:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not part of this distribution")
    return gzip.decompress(DATA.read_bytes()).decode()


@pytest.fixture(scope="module")
def predicted(text: str) -> list[tuple[dict[str, str], Prediction]]:
    """Every row with a closed form; the others take seconds to replay."""
    rows = []
    for row in csv.DictReader(text.splitlines()):
        try:
            if closed_form(measurement(row)) and "OUTLIER" not in row["notes"] and "ANOMALOUS" not in row["notes"]:
                rows.append(row)
        except Unsupported:
            assert row["unit"] in ("%", "x")
    return list(zip(rows, predict_rows(rows), strict=True))


def errors(predicted: list[tuple[dict[str, str], Prediction]], metric: str) -> Any:
    found = [abs(p.predicted / float(row["value"]) - 1) for row, p in predicted if row["metric"] == metric]
    return np.array(found)


@pytest.mark.parametrize(
    ("metric", "median", "tail"), [("out_tok_s", 0.06, 0.2), ("tpot_ms", 0.06, 0.2), ("ttft_ms", 0.08, 0.3)]
)
def test_published_figures_are_reproduced(
    predicted: list[tuple[dict[str, str], Prediction]], metric: str, median: float, tail: float
) -> None:
    found = errors(predicted, metric)
    assert np.median(found) < median
    assert np.quantile(found, 0.9) < tail


def test_four_in_five_published_values_lie_between_low_and_high(
    predicted: list[tuple[dict[str, str], Prediction]],
) -> None:
    inside = [p.low <= float(row["value"]) <= p.high for row, p in predicted]
    assert np.mean(inside) > 0.8


def test_what_was_measured_is_never_said_not_to_fit(predicted: list[tuple[dict[str, str], Prediction]]) -> None:
    assert {p.verdict for _, p in predicted} <= {"ok", "marginal"}


A100_40 = {
    "source": "TensorRT-LLM v0.5",
    "model": "Llama-2-70B",
    "weights_precision": "fp16",
    "gpu": "A100-SXM",
    "gpu_mem_gb": "40",
    "interconnect": "NVLink",
    "tp": "4",
    "pp": "1",
    "concurrency": "1",
    "input_tokens": "512",
    "output_tokens": "64",
    "metric": "tpot_ms",
    "unit": "ms",
}
FOUR_H100 = {**A100_40, "gpu": "H100-SXM", "gpu_mem_gb": "80"}
SATURATED_405B = {
    **A100_40,
    "source": "NVIDIA blog 2024-10",
    "model": "Llama-3.1-405B",
    "weights_precision": "fp8",
    "gpu": "H200-SXM",
    "gpu_mem_gb": "141",
    "tp": "8",
    "concurrency": "max",
    "input_tokens": "2048",
    "output_tokens": "128",
    "metric": "out_tok_s",
    "unit": "tok/s",
}


@pytest.mark.parametrize(
    ("row", "other", "published", "off"),
    [
        ({**A100_40, "tp": "8"}, A100_40, 0.70, 0.15),
        (FOUR_H100, A100_40, 0.64, 0.15),
        ({**FOUR_H100, "concurrency": "16"}, {**A100_40, "concurrency": "16"}, 0.48, 0.25),
        ({**SATURATED_405B, "tp": "1", "pp": "8"}, SATURATED_405B, 1.5, 0.15),
    ],
    ids=[
        "eight against four A100-40",
        "four H100 against A100-40",
        "the same at batch 16",
        "stages against a wide split",
    ],
)
def test_published_ratios_that_no_fit_can_use_are_met(
    row: dict[str, str], other: dict[str, str], published: float, off: float
) -> None:
    """Databricks 2023 (Llama-2-70B): time per output token, prompts of 512 tokens; NVIDIA 2024 (Llama-3.1-405B), which
    states no lengths. With 16 requests the A100 of the first lose more than the model knows a reason for."""
    ratio = predict_rows([row])[0].predicted / predict_rows([other])[0].predicted
    assert ratio == pytest.approx(published, rel=off)


def test_coefficients_say_which_data_they_come_from(text: str) -> None:
    origin = fitted().provenance
    assert origin["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert origin["rows"] == len(text.splitlines()) - 1
    assert set(origin["sources"]) <= {row["source"] for row in csv.DictReader(text.splitlines())}


def test_coefficients_are_physical() -> None:
    base = fitted().base
    assert set(base) == set(LEVELS)
    for share in ("bandwidth", "kv_bandwidth", "compute", "attention_compute", "interference"):
        assert 0.2 < base[share] <= 1, share
    for seconds in ("layer_overhead", "step_overhead", "sequence_overhead", "all_reduce_wait"):
        assert 0 < base[seconds] < 5e-3, seconds
    assert 0.5 * 2**30 < base["reserve"] < 5 * 2**30
    for kinds in fitted().errors.values():
        for low, high in kinds.values():
            assert 0 < low <= 1 <= high
