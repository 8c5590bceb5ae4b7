import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from berth.cli import main
from berth.estimator.queueing import latency
from berth.estimator.trace import profile_of
from berth.estimator.traffic import TrafficProfile
from tests.support.engines import h100_fp8
from tests.support.golden_replays import quantiles
from tests.support.replay import TRACE, Trace, replay

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["traffic", "profile", *map(str, arguments)])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def write(path: Path, *rows: str, header: str = HEADER) -> None:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_the_azure_conversation_trace_becomes_spec_traffic() -> None:
    spec = yaml.safe_load(run("--trace", TRACE).output)["traffic"]

    assert spec == {
        "requestsPerSecond": "5.53",
        "inputTokens": {"mean": 1155, "p95": 4083, "p99": 4142, "max": 14050},
        "outputTokens": {"mean": 211, "p95": 451, "maxRequested": 1024},
        "peakToMean": "1.39",
        "peakInputToMean": "1.24",
        "peakOutputToMean": "0.65",
    }


def test_json_says_the_same_as_yaml() -> None:
    assert json.loads(run("--trace", TRACE, "-o", "json").output) == yaml.safe_load(run("--trace", TRACE).output)


def test_rows_may_come_in_any_order_with_or_without_time_zone(trace: Path) -> None:
    write(trace, "2024-05-12 00:00:09.5+00:00,100,10", "2024-05-12T00:00:00Z,300,30", "2024-05-12 00:00:04,200,20")
    spec = yaml.safe_load(run("--trace", trace).output)["traffic"]

    assert spec["requestsPerSecond"] == "0.316"
    assert spec["inputTokens"]["mean"] == 200
    assert spec["outputTokens"]["maxRequested"] == 32


def test_a_short_trace_says_nothing_of_busy_minutes(trace: Path) -> None:
    write(trace, "2024-05-12 00:00:00,100,10", "2024-05-12 00:01:00,300,30")

    assert "peakInputToMean" not in run("--trace", trace).output


def test_the_largest_requested_answer_can_be_given(trace: Path) -> None:
    write(trace, "2024-05-12 00:00:00,100,10", "2024-05-12 00:01:00,300,30")

    assert "maxRequested: 4096" in run("--trace", trace, "--max-requested", 4096).output
    assert "max-requested: 16 is less than the longest answer" in run("--trace", trace, "--max-requested", 16).output


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2024-05-12 00:00:01,NaN,10", "line 3: ContextTokens 'NaN' must be a whole number from 1 to 10000000"),
        ("2024-05-12 00:00:01,-5,10", "line 3: ContextTokens '-5' must be"),
        ("2024-05-12 00:00:01,5,0", "line 3: GeneratedTokens '0' must be"),
        ("2024-05-12 00:00:01,5,1e3", "line 3: GeneratedTokens '1e3' must be"),
        ("2024-05-12 00:00:01,5,99999999999999999999", "line 3: GeneratedTokens '99999999999999999999' must be"),
        ("2024-05-12 00:00:01,5,\N{SUPERSCRIPT TWO}", "line 3: GeneratedTokens '\N{SUPERSCRIPT TWO}' must be"),
        ("2024-05-12 00:00:01,5", "line 3: GeneratedTokens '' must be"),
        ("yesterday,5,6", "line 3: TIMESTAMP 'yesterday' is not a time such as 2023-11-16 18:15:46.68"),
        ("2204-05-12 00:00:00,5,6", "line 3: TIMESTAMP '2204-05-12 00:00:00' is more than 366 days from the first one"),
        ("0001-01-01 00:00:00,5,6", "is more than 366 days from the first one: correct or remove the line"),
        ("", "at least two requests at different times are needed"),
        ("2024-05-12 00:00:00,5,6", "at least two requests at different times are needed"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(trace: Path, row: str, message: str) -> None:
    write(trace, "2024-05-12 00:00:00,100,10", row)
    result = run("--trace", trace)

    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_missing_column_is_named(trace: Path) -> None:
    write(trace, "2024-05-12 00:00:00,10", header="TIMESTAMP,ContextTokens")

    assert "line 1: column GeneratedTokens is missing" in run("--trace", trace).output


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_what_is_no_trace_is_said_without_traceback(trace: Path, content: bytes) -> None:
    trace.write_bytes(content)
    result = run("--trace", trace)

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_a_broken_archive_is_said_without_traceback(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode() * 100)[:40])

    assert "is no CSV file, plain or in gzip" in run("--trace", path).output


def test_a_quiet_steady_trace_has_no_peak_although_its_minute_counts_vary() -> None:
    rng = np.random.default_rng(1)
    seconds = np.cumsum(rng.exponential(10.0, 3000))
    found = profile_of(seconds, np.full(3000, 100), np.full(3000, 50))

    assert found.peak_to_mean < 1.12


def bursty(rate: float, minutes: int, seed: int) -> Trace:
    """Minutes of independent log-normal rates and log-normal lengths that follow nothing."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(60 * rate * rng.lognormal(-0.045, 0.3, minutes))
    seconds = np.sort(np.repeat(np.arange(minutes) * 60.0, counts) + 60 * rng.random(counts.sum()))
    prompt = np.clip(rng.lognormal(6.3, 0.9, len(seconds)), 1, 8000).astype(np.int64)
    output = np.clip(rng.lognormal(4.9, 0.8, len(seconds)), 2, 900).astype(np.int64)
    return Trace(seconds, prompt, output)


@pytest.mark.parametrize("seed", [1, 2])
def test_p95_from_the_profile_of_other_traffic_is_that_of_its_replay(seed: int) -> None:
    engine, trace = h100_fp8(1), bursty(0.8, minutes=40, seed=seed)
    profile: TrafficProfile = profile_of(trace.seconds, trace.prompt, trace.output, 1024)
    truth = quantiles(replay(engine, trace, 1024))
    found = latency(engine, profile, trace.rate, "simulate")

    assert 0.9 <= found.ttft_p95 / truth["ttft"][1] <= 1.2
    assert 0.9 <= found.tpot_p95 / truth["tpot"][1] <= 1.15
