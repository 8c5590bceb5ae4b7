"""`berth simulate`: what it prints, and what it refuses in which words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from berth.cli import main
from tests.support.replay import TRACE
from tests.unit.placement.cases import CHAT, PROMISES, SOURCE


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "chat", "namespace": "team"},
        "spec": {
            "model": {
                "name": "llama-3.1-8b-instruct",
                "variants": [{"name": "bf16", "precision": "bf16", "source": SOURCE, "tensorParallel": 1}],
            },
            "traffic": dict(CHAT),
            "objectives": dict(PROMISES),
            **spec,
        },
    }


POOL: dict[str, Any] = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "GPUPool",
    "metadata": {"name": "h100"},
    "spec": {
        "gpu": "H100-SXM-80",
        "nodeSelector": {"pool": "h100"},
        "resourceName": "nvidia.com/gpu",
        "gpusPerNode": 8,
        "pricePerGPUHour": "2.99",
    },
    "status": {"nodes": 2},
}


def run(folder: Path, *arguments: str, documents: Any = None) -> Result:
    file = folder / "chat.yaml"
    file.write_text(yaml.safe_dump_all(documents if documents is not None else [deployment(), POOL]))
    return CliRunner().invoke(main, ["simulate", "-f", str(file), "--trace", str(TRACE), *arguments])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("simulate")
    result = run(
        folder, "--days", "0.25", "-o", "json", "--fail", "group@2h", "--fail", "node:h100@3h+1h",
        "--plot", str(folder / "day.png"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (folder / "day.png").stat().st_size > 10_000
    return json.loads(result.stdout)


def test_it_says_what_users_felt_and_what_it_cost(told: Any) -> None:
    (found,) = told["deployments"]
    assert found["requests"] == pytest.approx(5.4 * 6 * 3600, rel=0.02)
    assert 0.95 <= found["attainment"]["timePerOutputToken"] <= 1
    assert found["cost"] == pytest.approx(found["gpuHours"] * 2.99, rel=0.001)
    assert found["events"][0]["what"] == "placed"
    assert abs(told["hidden"]["h100"] - 1) <= 0.25


def test_what_fails_is_counted_and_comes_back(told: Any) -> None:
    (found,) = told["deployments"]
    assert found["failures"] >= 1
    assert 0 <= found["survived"] <= found["failures"]
    assert next(each["at"] for each in found["events"] if each["what"] == "failure") == 120


def test_nodes_that_fail_by_chance_are_mostly_those_that_nobody_uses(tmp_path: Path) -> None:
    wide = {**POOL, "status": {"nodes": 4000}}
    arguments = ("--days", "0.1", "--no-compare", "-o", "json", "--fail", "chance")
    result = run(tmp_path, *arguments, documents=[deployment(), wide])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["deployments"][0]["failures"] == 0, "one or two nodes of 4,000 are used"


def test_the_oracle_is_never_dearer_than_the_best_that_stays(told: Any) -> None:
    names = {each["name"]: each for each in told["deployments"][0]["baselines"]}
    assert names["oracle"]["cost"] <= names["best fixed"]["cost"]
    assert names["best fixed"]["attainment"]["timePerOutputToken"] >= 0.95


@pytest.mark.slow
def test_the_same_seed_tells_the_same_story(told: Any, tmp_path: Path) -> None:
    arguments = ("--days", "0.25", "-o", "json", "--fail", "group@2h", "--fail", "node:h100@3h+1h")
    assert json.loads(run(tmp_path, *arguments).stdout) == told


@pytest.mark.slow
def test_a_fleet_is_told_in_sums(tmp_path: Path) -> None:
    result = run(tmp_path, "--days", "0.05", "--copies", "3")
    assert result.exit_code == 0, result.output
    assert "3 deployments over 0.05 days" in result.stdout
    assert "3 on h100" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fail", "slow@3d"), "name one of the pools h100, such as slow:h100@3d"),
        (("--fail", "slow:h100@3d"), "slow needs a value"),
        (("--fail", "slow:h100=x@3d"), "x is not a number"),
        (("--fail", "slow:h100=0@3d"), "from 0.01 to 100000"),
        (("--fail", "flood@3d"), "one of slow, price, group, node, pool, metrics"),
        (("--fail", "group@soon"), "soon is not a time such as 90m, 30h or 2d"),
        (("--plot", "day.gif"), "must end in .png or .svg"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run(tmp_path, "--days", "0.1", *arguments)
    assert result.exit_code == 1
    assert words in result.output


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([deployment()], "holds no GPUPool: give --pools"),
        ([POOL], "holds no object of kind LLMDeployment"),
        (
            [deployment(traffic={**CHAT, "arrival": "Closed", "requestsPerSecond": None, "concurrency": 4}), POOL],
            "Open",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, documents: Any, words: str) -> None:
    for each in documents:
        traffic = each.get("spec", {}).get("traffic", {})
        each.get("spec", {})["traffic"] = {k: v for k, v in traffic.items() if v is not None} if traffic else None
        if each["spec"]["traffic"] is None:
            del each["spec"]["traffic"]
    result = run(tmp_path, "--days", "0.1", documents=documents)
    assert result.exit_code == 1
    assert words in result.output


HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = b"2023-11-16 18:15:46.68,100,20\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "line 1: column TIMESTAMP is missing"),
        ("other.csv", b"a,b\n1,2\n", "name the columns TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("one.csv", HEADER + ROW, "holds 1 requests: at least two are needed"),
        (
            "nan.csv",
            HEADER + ROW + b"2023-11-16 18:15:47,nan,20\n",
            "line 3: ContextTokens 'nan' must be a whole number",
        ),
        ("never.csv", HEADER + b"nan,100,20\n" + ROW, "line 2: TIMESTAMP 'nan' is not a time"),
        ("short.csv", HEADER + ROW + b"2023-11-16 18:15:47,100\n", "line 3: GeneratedTokens '' must be"),
        ("noise.csv", bytes(range(256)), "is no CSV file, plain or in gzip"),
        ("noise.csv.gz", bytes(range(256)), "is no CSV file, plain or in gzip"),
        ("cut.csv.gz", gzip.compress(HEADER + ROW * 99, mtime=0)[:40], "is no CSV file, plain or in gzip"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_the_place_and_the_cure(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    trace = tmp_path / name
    trace.write_bytes(content)
    result = run(tmp_path, "--days", "0.1", "--trace", str(trace))
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert str(trace) in result.output
    assert words in result.output
