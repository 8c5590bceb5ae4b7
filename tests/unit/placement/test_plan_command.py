"""`berth plan` as people and scripts meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from berth.api.status import LLMDeploymentStatus
from berth.cli import main

SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"
POOLS = """
apiVersion: berth.dev/v1alpha1
kind: GPUPool
metadata: {name: h100}
spec: {gpu: H100-SXM-80, nodeSelector: {p: h100}, resourceName: nvidia.com/gpu, gpusPerNode: 8, pricePerGPUHour: "2.99"}
---
apiVersion: berth.dev/v1alpha1
kind: GPUPool
metadata: {name: a100-40}
spec: {gpu: A100-SXM-40, nodeSelector: {p: a100}, resourceName: nvidia.com/gpu, gpusPerNode: 8, pricePerGPUHour: "1.29"}
"""
DEPLOYMENT = """
apiVersion: berth.dev/v1alpha1
kind: LLMDeployment
metadata: {name: chat, namespace: team}
spec:
  model:
    name: llama-3.1-8b-instruct
    variants:
    - {name: bf16, precision: bf16, source: {persistentVolumeClaim: {claimName: models}}}
    - {name: fp8, precision: fp8, gpus: [H100-SXM-80], source: {persistentVolumeClaim: {claimName: models}}}
  traffic:
    requestsPerSecond: "5"
    inputTokens: {mean: 600, p95: 2000, max: 8000}
    outputTokens: {mean: 200, p95: 500, maxRequested: 1024}
  objectives:
    timeToFirstToken: {p95: 1s}
    timePerOutputToken: {p95: 50ms}
    availability: "0.999"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Runs `berth plan` on DEPLOYMENT and POOLS, or on texts of the test's own."""

    def run(*arguments: str, deployment: str = DEPLOYMENT, pools: str | None = POOLS) -> Result:
        (tmp_path / "chat.yaml").write_text(deployment)
        given = ["plan", "-f", str(tmp_path / "chat.yaml")]
        if pools is not None:
            (tmp_path / "pools.yaml").write_text(pools)
            given += ["--pools", str(tmp_path / "pools.yaml")]
        return CliRunner().invoke(main, [*given, "--kubeconfig", str(tmp_path / "none"), *arguments])

    return run


def test_the_table_shows_choice_alternatives_and_reasons(plan: Any) -> None:
    result = plan("--explain")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == (
        "llama-3.1-8b, 5 req/s of 600 in / 200 out; TTFT p95 <= 1s, TPOT p95 <= 50ms, availability 0.999"
    )
    heads = "# POOL PRECISION TP PP GROUPS GPUS $/H $/1M TOK TTFT P95 TPOT P95 LOAD AVAIL LIMITED BY"
    assert " ".join(lines[2].split()) == heads
    assert lines[3].endswith("<- chosen")
    assert "variant fp8 is for H100-SXM-80, not A100-SXM-40" in result.output
    assert "why 1: " in result.output
    assert (
        "h100, a100-40: number of nodes unknown" in result.output or "a100-40, h100: number of nodes" in result.output
    )
    for factor in ("communication", "parallelism", "batch", "bandwidth", "failure"):
        assert result.output.count(f"\n  {factor} ") == 2


@pytest.mark.parametrize("rate", ["0.1", "1", "5"])
def test_the_documentation_shows_what_the_command_prints(rate: str) -> None:
    text = (SAMPLES.parents[1] / "docs" / "placement.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {rate} | "))
    arguments = ["plan", "-f", str(SAMPLES / "llama-70b-a100-or-h100.yaml"), "--pools", str(SAMPLES / "pools.yaml")]
    result = CliRunner().invoke(main, [*arguments, "-o", "json", "--what-if", f"requestsPerSecond={rate}"])
    candidates = {each["allocations"][0]["pool"]: each for each in json.loads(result.stdout)["candidates"][:2]}
    for pool, cell in zip(("h100", "a100-40"), row.split("|")[2:4], strict=True):
        groups, cost, *_ = cell.split(",")
        found = candidates[pool]
        assert (int(groups), cost.strip()) == (found["allocations"][0]["groups"], found["costPerHour"])


def test_json_has_the_field_names_of_status(plan: Any) -> None:
    result = plan("-o", "json")
    document = json.loads(result.stdout)
    status = LLMDeploymentStatus.model_validate({**document, "candidates": document["candidates"][:10]}, extra="forbid")
    assert status.placement is not None
    assert status.placement.allocations == status.candidates[0].allocations
    assert status.candidates[0].chosen
    assert document == yaml.safe_load(plan("-o", "yaml").stdout)


def test_wide_shows_every_candidate_and_batch_limits(plan: Any) -> None:
    result = plan("-o", "wide")
    assert "NEEDED  BATCH  TOKENS  KV ROOM  TOK/S" in result.output
    assert "simulation" in result.output
    assert result.output.count("\n  -  ") + result.output.count("  screen") >= 8


def test_what_if_changes_the_question_and_says_so(plan: Any) -> None:
    before = json.loads(plan("-o", "json").stdout)
    after = json.loads(plan("-o", "json", "--what-if", "requestsPerSecond=50,pools.a100-40.pricePerGPUHour=9").stdout)
    assert after["whatIf"] == {"requestsPerSecond": 50, "pools.a100-40.pricePerGPUHour": 9}
    assert float(after["placement"]["costPerHour"]) > float(before["placement"]["costPerHour"])
    assert after["placement"]["allocations"][0]["pool"] == "h100"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("speed=2", "--what-if speed: LLMDeployment has no such field: write its path in spec, as traffic.inp"),
        (
            "mean=5",
            "--what-if mean: could be traffic.inputTokens.mean, traffic.outputTokens.mean: write the whole path",
        ),
        ("requestsPerSecond", "--what-if 'requestsPerSecond': write it as key=value, several separated by commas"),
        ("pools.none.pricePerGPUHour=1", "pool none is not there: use one of a100-40, h100"),
        ("pools.h100.nodes=-1", "GPUPool h100 status.nodes: '-1' must be a whole number from 0 to 10000"),
        ("requestsPerSecond=0", "spec.traffic.requestsPerSecond: must be a decimal number, more than 0"),
        ("requestsPerSecond=NaN", "spec.traffic.requestsPerSecond: must be a decimal number, more than 0"),
        (
            "objectives.prefer=Beauty",
            "spec.objectives.prefer: unsupported value: use 'Cost', 'Latency' or 'Throughput'",
        ),
    ],
)
def test_changes_that_make_no_sense_name_the_field(plan: Any, change: str, words: str) -> None:
    result = plan("--what-if", change)
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.startswith("Error: ")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('requestsPerSecond: "5"', "requestsPerSecond: .nan", "spec.traffic.requestsPerSecond"),
        ("llama-3.1-8b-instruct", "llama-9", "spec.model: model 'llama-9' is not in the catalogue"),
        ("max: 8000", "max: 500000", "lower inputTokens.max or outputTokens.maxRequested"),
        ("traffic:", "trafic:", "spec.trafic: unknown field"),
        ("kind: LLMDeployment", "kind: Deployment", "holds 0 objects of kind LLMDeployment, must hold one"),
        ("metadata: {", "metadata: [", "line 4: this is neither YAML nor JSON"),
        ("metadata: {", "metadata: " + "[" * 9000, "this is neither YAML nor JSON"),
    ],
)
def test_deployments_that_cannot_be_planned_name_the_field(plan: Any, old: str, new: str, words: str) -> None:
    result = plan(deployment=DEPLOYMENT.replace(old, new))
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("H100-SXM-80", "H900", "GPUPool h100 spec.gpu: gpu 'H900' is not known: use one of H100-SXM-80"),
        ('"2.99"', "-1", "GPUPool h100: spec.pricePerGPUHour: must be a decimal number, more than 0"),
        ("gpusPerNode: 8", "gpusPerNode: 0", "GPUPool h100: spec.gpusPerNode: must be at least 1"),
        ("---", "status: {nodes: -1}\n---", "GPUPool h100 status.nodes: -1 must be a whole number from 0 to 10000"),
        ("---", "status: {nodes: many}\n---", "GPUPool h100 status.nodes: 'many' must be a whole number"),
        ("---", "status: {nodes: 99999999999}\n---", "GPUPool h100 status.nodes: 99999999999 must be a whole number"),
        ("---", "status: {nodes: 4, freePerNode: {x: 1}}\n---", "status.freePerNode: 'x': 1 must be free GPUs from 0"),
        ("---", "status: {nodes: 4, freePerNode: {'9': 1}}\n---", "to spec.gpusPerNode (8) to a number of nodes"),
        ("---", "status: {nodes: 4, freePerNode: {'8': 5}}\n---", "status.freePerNode: speaks of 5 nodes, nodes of 4"),
    ],
)
def test_pools_that_make_no_sense_name_the_field(plan: Any, old: str, new: str, words: str) -> None:
    result = plan(pools=POOLS.replace(old, new, 1))
    assert result.exit_code == 1
    assert words in result.output


def test_without_pools_it_says_where_to_get_them(plan: Any) -> None:
    result = plan(pools=None)
    assert "holds no GPUPool, and there is no kubeconfig to ask a cluster: give --pools" in result.output


def test_pools_may_stand_in_the_same_file_and_know_their_nodes(plan: Any) -> None:
    empty = POOLS.replace("kind: GPUPool", "kind: GPUPool\nstatus: {nodes: 0}")
    result = plan(deployment=DEPLOYMENT + "---" + empty, pools=None)
    assert result.exit_code == 1
    assert "pool a100-40 has no nodes" in result.output
    few = plan("--what-if", "pools.h100.nodes=1,pools.a100-40.nodes=2")
    assert "number of nodes unknown" not in few.output


def test_an_infeasible_plan_is_an_answer_with_a_cure_and_an_exit_code(plan: Any) -> None:
    result = plan("--what-if", "objectives.timePerOutputToken.p95=2ms")
    assert result.exit_code == 1
    assert "no placement is possible; closest is" in result.output
    assert "relax objectives.timePerOutputToken.p95 to" in result.output
    document = json.loads(plan("-o", "json", "--what-if", "objectives.timePerOutputToken.p95=2ms").stdout)
    assert document["conditions"][0]["reason"] == "SLOInfeasible"
    assert "placement" not in document


@pytest.mark.parametrize("change", ["objectives.timePerOutputToken.p95=2ms", "objectives.timeToFirstToken.p95=25ms"])
def test_what_is_said_to_help_helps(plan: Any, change: str) -> None:
    traffic = "requestsPerSecond=0.1"
    found = re.search(r"relax (\S+) to (\S+)", plan("--what-if", f"{change},{traffic}").output)
    assert found is not None
    cured = plan("--what-if", f"{found.group(1)}={found.group(2)},{traffic}")
    assert cured.exit_code == 0, cured.output


def test_a_fixed_placement_stands_next_to_what_would_be_chosen(plan: Any) -> None:
    allocation = "{pool: h100, variant: bf16, tensorParallel: 2, groups: 2}"
    fixed = f"  placement: {{mode: Fixed, fixed: {{allocations: [{allocation}]}}}}\n"
    result = plan(deployment=DEPLOYMENT + fixed)
    assert "<- fixed" in result.output
    assert "<- Auto would choose" in result.output
    document = json.loads(plan("-o", "json", deployment=DEPLOYMENT + fixed).stdout)
    assert document["placement"]["allocations"][0]["tensorParallel"] == 2
    assert document["placement"]["reason"] == "fixed by spec.placement.fixed"


def test_without_prices_gpus_are_compared_and_said(plan: Any) -> None:
    result = plan(pools=POOLS.replace(', pricePerGPUHour: "2.99"', "").replace(', pricePerGPUHour: "1.29"', ""))
    assert result.exit_code == 0
    assert "no pool has a pricePerGPUHour: compared by number of GPUs" in result.output


def test_pools_that_overlap_whatever_their_nodes_are_not_planned_with(plan: Any) -> None:
    twin = POOLS.split("---")[0].replace("name: h100}", "name: twin}").replace("{p: h100}", "{p: h100, q: x}")
    result = plan(pools=f"{POOLS}---{twin}")
    assert "nodeSelector takes nodes that pool twin takes too: narrow it" in result.output
    assert "nodeSelector takes nodes that pool h100 takes too: narrow it" in result.output
    assert result.exit_code == 0, "a100-40 is left"


def test_a_pool_that_is_given_twice_is_refused(plan: Any) -> None:
    result = plan(pools=f"{POOLS}---{POOLS}")
    assert result.exit_code == 1
    assert "GPUPool h100: is given twice: remove one of them or rename it" in result.output


def test_a_deployment_that_names_no_namespace_is_in_the_default_one(plan: Any) -> None:
    pools = POOLS.replace("gpusPerNode: 8", "gpusPerNode: 8, allowedNamespaces: {names: [default]}")
    assert plan(pools=pools).exit_code == 1
    result = plan(deployment=DEPLOYMENT.replace(", namespace: team", ""), pools=pools)
    assert result.exit_code == 0, result.output


def test_predictions_without_measurements_are_marked(plan: Any) -> None:
    result = plan(deployment=DEPLOYMENT.replace("precision: bf16", "precision: int4-awq"))
    assert "* not validated on hardware" in result.output


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures_are_written(plan: Any, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"plan.{suffix}"
    result = plan("--plot", str(picture))
    assert result.exit_code == 0, result.output
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert picture.read_bytes().startswith(start)


def test_pictures_in_other_formats_are_refused(plan: Any, tmp_path: Path) -> None:
    result = plan("--plot", str(tmp_path / "plan.txt"))
    assert "must end in .png or .svg" in result.output


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_can_be_planned(sample: Path) -> None:
    if "kind: LLMDeployment" not in sample.read_text():
        return
    result = CliRunner().invoke(main, ["plan", "-f", str(sample), "--pools", str(SAMPLES / "pools.yaml")])
    assert "Traceback" not in result.output
    assert "TTFT P95" in result.output, result.output
