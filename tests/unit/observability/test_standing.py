"""What Prometheus is told of a deployment is what its status says: nothing invented, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from berth.api.llmdeployment import LLMDeployment
from berth.standing import FAMILIES, Standing
from tests.unit.render import cases


@pytest.fixture
def standing() -> Standing:
    return Standing()


def told(standing: Standing) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples by name and own labels."""
    registry = CollectorRegistry()
    registry.register(standing)
    return {
        (sample.name, frozenset(sample.labels.items() - {("namespace", "serving"), ("deployment", "llama")})): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def deployment(**objectives: Any) -> LLMDeployment:
    content = cases.spec("pytorch", cases.CLAIM)
    content["objectives"] = objectives
    return cases.deployment(content)


def of(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_deployment_that_nobody_has_looked_at_has_no_figures(standing: Standing) -> None:
    assert told(standing) == {}


def test_what_the_status_says_is_told(standing: Standing) -> None:
    status = {
        "replicas": 2,
        "needed": 1,
        "groupCounts": {"Serving": 1, "Failed": 3},
        "conditions": [
            {"type": "Available", "status": "True"},
            {"type": "Ready", "status": "False"},
            {"type": "MetricsAvailable", "status": "Unknown"},
        ],
        "placement": {
            "predicted": {"ttftP95": "412ms", "tpotP95": "24.1ms", "outputTokensPerSecond": {"mid": "1204"}},
            "measured": {"ttftP95": "1.5s"},
            "predictionError": {"ttftP95": "-0.73"},
            "costPerHour": "11.96",
        },
        "availability": {"predicted": "0.99991"},
        "moves": {"current": {"id": "m1", "phase": "Starting", "deadline": "2026-01-31T12:00:00Z"}},
    }
    objectives = {"timeToFirstToken": {"p95": "1500ms"}, "availability": "0.9995"}
    standing.tell("serving", "llama", deployment(**objectives), status)
    assert told(standing) == {
        of("berth_failures_allowed"): 5,
        of("berth_latency_objective_seconds", metric="ttft"): 1.5,
        of("berth_availability_objective_ratio"): 0.9995,
        of("berth_groups", state="Serving"): 1,
        of("berth_groups", state="Failed"): 3,
        of("berth_groups_wanted"): 2,
        of("berth_groups_needed"): 1,
        of("berth_condition", type="Available"): 1,
        of("berth_condition", type="Ready"): 0,
        of("berth_latency_predicted_seconds", metric="ttft"): pytest.approx(0.412),
        of("berth_latency_predicted_seconds", metric="tpot"): pytest.approx(0.0241),
        of("berth_throughput_predicted"): 1204,
        of("berth_latency_measured_seconds", metric="ttft"): 1.5,
        of("berth_prediction_error_ratio", metric="ttft"): -0.73,
        of("berth_cost_per_hour"): 11.96,
        of("berth_availability_predicted_ratio"): 0.99991,
        of("berth_move_deadline_seconds", phase="Starting"): 1769860800,
    }


@pytest.mark.parametrize("words", ["-", "soon", ""])
def test_words_instead_of_a_figure_are_absent_and_stop_nothing(standing: Standing, words: str) -> None:
    placement = {"costPerHour": words, "measured": {"ttftP95": words}}
    moves = {"current": {"deadline": words}}
    standing.tell("serving", "llama", None, {"placement": placement, "moves": moves, "needed": 1})
    assert told(standing) == {of("berth_groups_needed"): 1}


def test_only_the_last_pass_counts_and_a_deployment_that_is_gone_leaves_nothing(standing: Standing) -> None:
    standing.tell("serving", "llama", None, {"groupCounts": {"Failed": 1}})
    standing.tell("serving", "llama", None, {"groupCounts": {"Serving": 1}})
    assert told(standing) == {of("berth_groups", state="Serving"): 1}
    standing.forget("serving", "llama")
    assert told(standing) == {}


def test_every_family_is_described_before_there_is_anything_to_tell(standing: Standing) -> None:
    assert {family.name for family in standing.describe()} == set(FAMILIES)
