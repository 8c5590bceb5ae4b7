"""How every deployment stands, for Prometheus: the figures of its status, as of its last pass in this process.

Read when Prometheus asks, not kept up to date figure by figure: what status does not say is absent here as well, never
0, and a deployment that is gone leaves nothing behind. Only the leader makes passes, so only the leader has any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from berth.api.common import number, seconds
from berth.api.llmdeployment import LLMDeployment
from berth.core.timestamps import unix_seconds

IDENTITY: Final = ("namespace", "deployment")
FAMILIES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "berth_groups": ("Replica groups by state.", ("state",)),
    "berth_groups_wanted": ("Replica groups that are wanted.", ()),
    "berth_groups_needed": ("Replica groups that must serve: minAvailable, or what the traffic needs.", ()),
    "berth_failures_allowed": ("spec.replicaGroups.recovery.maxFailures within its window.", ()),
    "berth_condition": ("1 where the condition is True, 0 where it is False; absent where it is Unknown.", ("type",)),
    "berth_latency_objective_seconds": ("p95 that spec.objectives asks for; metric is ttft or tpot.", ("metric",)),
    "berth_latency_predicted_seconds": ("p95 that was predicted for the placement in force.", ("metric",)),
    "berth_latency_measured_seconds": ("p95 that was measured, as in status.", ("metric",)),
    "berth_throughput_predicted": ("Output tokens per second that were predicted for the placement in force.", ()),
    "berth_throughput_measured": ("Output tokens per second that were measured, as in status.", ()),
    "berth_prediction_error_ratio": (
        "(predicted - measured) / measured; metric is ttft, tpot or throughput.",
        ("metric",),
    ),
    "berth_cost_per_hour": ("Price of all groups per hour, in the currency of the pools.", ()),
    "berth_cost_per_million_output_tokens": ("Price per million demanded output tokens.", ()),
    "berth_availability_objective_ratio": ("Share of time in which the needed groups shall serve.", ()),
    "berth_availability_predicted_ratio": ("Predicted share of time in which the needed groups serve.", ()),
    "berth_move_deadline_seconds": ("When the phase of the move under way is given up, in Unix seconds.", ("phase",)),
}
"""Name, meaning, and labels beside IDENTITY."""

Sample = tuple[str, tuple[str, ...], float]
"""Family, values of its own labels, value."""


class Standing(Collector):
    """Register on `Metrics.registry`; `tell` after each pass, `forget` when the object is gone."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Sample, ...]] = {}

    def tell(self, namespace: str, name: str, deployment: LLMDeployment | None, status: Mapping[str, Any]) -> None:
        """This is how the deployment stands now; None where its spec cannot be read."""
        wanted = _wanted(deployment) if deployment is not None else ()
        self._known[namespace, name] = (*wanted, *_of_status(status))

    def forget(self, namespace: str, name: str) -> None:
        self._known.pop((namespace, name), None)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        for identity, samples in list(self._known.items()):  # a scrape may run beside a pass
            for family, values, value in samples:
                families[family].add_metric([*identity, *values], value)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(name, meaning, labels=[*IDENTITY, *labels])
            for name, (meaning, labels) in FAMILIES.items()
        }


def _wanted(deployment: LLMDeployment) -> Iterator[Sample]:
    spec = deployment.spec
    yield "berth_failures_allowed", (), float(spec.replica_groups.recovery.max_failures)
    objectives = spec.objectives
    for metric, bound in (("ttft", objectives.time_to_first_token), ("tpot", objectives.time_per_output_token)):
        if bound is not None:
            yield "berth_latency_objective_seconds", (metric,), seconds(bound.p95)
    if objectives.availability is not None:
        yield "berth_availability_objective_ratio", (), number(objectives.availability)


def _of_status(status: Mapping[str, Any]) -> Iterator[Sample]:
    for state, count in (status.get("groupCounts") or {}).items():
        yield "berth_groups", (state,), float(count)
    for condition in status.get("conditions") or ():
        if condition["status"] != "Unknown":
            yield "berth_condition", (condition["type"],), float(condition["status"] == "True")
    for family, values, parse, figure in _figures(status):
        if figure is not None:
            with contextlib.suppress(ValueError):  # words instead of a figure: unknown
                yield family, values, parse(figure)


def _figures(status: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Callable[[Any], float], Any]]:
    """Family, values of its labels, how to read it, and the figure as status has it; None where it has none."""
    yield "berth_groups_wanted", (), float, status.get("replicas")
    yield "berth_groups_needed", (), float, status.get("needed")
    placement = status.get("placement") or {}
    for kind in ("predicted", "measured"):
        figures = placement.get(kind) or {}
        yield f"berth_latency_{kind}_seconds", ("ttft",), seconds, figures.get("ttftP95")
        yield f"berth_latency_{kind}_seconds", ("tpot",), seconds, figures.get("tpotP95")
        yield f"berth_throughput_{kind}", (), float, (figures.get("outputTokensPerSecond") or {}).get("mid")
    errors = placement.get("predictionError") or {}
    yield "berth_prediction_error_ratio", ("ttft",), float, errors.get("ttftP95")
    yield "berth_prediction_error_ratio", ("tpot",), float, errors.get("tpotP95")
    throughput = (errors.get("outputTokensPerSecond") or {}).get("mid")
    yield "berth_prediction_error_ratio", ("throughput",), float, throughput
    yield "berth_cost_per_hour", (), float, placement.get("costPerHour")
    yield "berth_cost_per_million_output_tokens", (), float, placement.get("costPerMillionOutputTokens")
    yield "berth_availability_predicted_ratio", (), float, (status.get("availability") or {}).get("predicted")
    move = (status.get("moves") or {}).get("current") or {}
    yield "berth_move_deadline_seconds", (str(move.get("phase", "")),), _time, move.get("deadline")


def _time(text: str) -> float:
    found = unix_seconds(text)
    if found is None:
        raise ValueError(text)
    return found
