"""The Grafana dashboard, made with Grafana's own library for dashboards as code: `berth/files/dashboard.json`.

One row per question that people ask, from the top: does it serve, does it meet its objectives, what failed and moved,
was the prediction right, what does it cost, and is the operator itself well. Every figure is one metric of Berth.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

UID: Final = "berth"
PICKED: Final = 'namespace=~"$namespace", deployment=~"$deployment"'
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH: Final = 24
HEIGHT: Final = 7
ABREAST: Final = 4
"""Panels of one line at most; more take two lines."""

Query = tuple[str, str]
"""Expression and legend; `%` in the expression stands for the deployments that are picked."""


def dashboard() -> str:
    """The dashboard as JSON."""
    built = (
        board.Dashboard("Berth")
        .uid(UID)
        .description("Placement, latency, availability and cost of every LLMDeployment, and the operator itself.")
        .tags(["berth", "llm", "gpu"])
        .time("now-6h", "now")
        .refresh("30s")
        .readonly()
        .with_variable(board.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("namespace", "label_values(berth_groups_wanted, namespace)"))
        .with_variable(
            _variable("deployment", 'label_values(berth_groups_wanted{namespace=~"$namespace"}, deployment)')
        )
    )
    for title, panels in _rows():
        built = built.with_row(board.Row(title))
        for panel in panels:
            abreast = len(panels) if len(panels) <= ABREAST else ABREAST - 1
            built = built.with_panel(panel.span(WIDTH // abreast).height(HEIGHT))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _rows() -> list[tuple[str, Sequence[Any]]]:
    each = "{{namespace}}/{{deployment}}"
    return [
        (
            "Does it serve?",
            [
                _number("Deployments that are available", "short", 'sum(berth_condition{type="Available", %})'),
                _number("Groups that serve", "short", 'sum(berth_groups{state="Serving", %})'),
                _number("Groups that failed lately", "short", 'sum(berth_groups{state="Failed", %}) or vector(0)'),
                _lines(
                    "Groups serving, needed, wanted",
                    "short",
                    ('sum by (namespace, deployment) (berth_groups{state="Serving", %})', f"{each} serving"),
                    ("berth_groups_needed{%}", f"{each} needed"),
                    ("berth_groups_wanted{%}", f"{each} wanted"),
                ),
            ],
        ),
        (
            "Does it meet its objectives?",
            [
                _latency("Time to first token, p95", "ttft", each),
                _latency("Time per output token, p95", "tpot", each),
                _lines(
                    "Requests within their objective, last 5 minutes",
                    "percentunit",
                    ('berth_attainment_ratio{window="fast", %}', f"{each} {{{{metric}}}}"),
                ),
                _lines(
                    "Availability budget burnt (1 = just the objective)",
                    "short",
                    ("berth:unavailable:ratio1h{%} / berth:unavailable:budget{%}", f"{each} 1 h"),
                    ("berth:unavailable:ratio1d{%} / berth:unavailable:budget{%}", f"{each} 1 d"),
                ),
            ],
        ),
        (
            "How much is asked of it?",
            [
                _lines("Requests per second", "reqps", ("berth_requests_per_second{%}", each)),
                _lines(
                    "Requests in flight and waiting",
                    "short",
                    ("berth_requests_in_flight{%}", f"{each} in flight"),
                    ("berth_requests_waiting{%}", f"{each} waiting"),
                ),
                _lines("KV cache in use", "percentunit", ("berth_kv_cache_usage_ratio{%}", each)),
            ],
        ),
        (
            "What failed and moved?",
            [
                _lines("Groups by state", "short", ("sum by (state) (berth_groups{%})", "{{state}}")),
                _lines("Moves per day", "short", ("sum by (result) (increase(berth_moves_total[1d]))", "{{result}}")),
                _lines(
                    "Failures per hour by reason",
                    "short",
                    ("sum by (reason) (increase(berth_group_failures_total[1h]))", "{{reason}}"),
                ),
                _lines(
                    "Failover: from the failure until ..., p95",
                    "s",
                    (
                        "histogram_quantile(0.95, sum by (le, phase) (rate(berth_failover_seconds_bucket[1h])))",
                        "{{phase}}",
                    ),
                ),
                _lines(
                    "Moves: time left of the phase",
                    "s",
                    ("berth_move_deadline_seconds{%} - time()", f"{each} {{{{phase}}}}"),
                ),
            ],
        ),
        (
            "Was the prediction right?",
            [
                _lines(
                    "(predicted - measured) / measured",
                    "percentunit",
                    ("berth_prediction_error_ratio{%}", f"{each} {{{{metric}}}}"),
                ),
                _lines(
                    "Output tokens per second",
                    "short",
                    ("berth_throughput_predicted{%}", f"{each} predicted"),
                    ("berth_throughput_measured{%}", f"{each} measured"),
                ),
                _lines(
                    "Predicted availability against its objective",
                    "percentunit",
                    ("berth_availability_predicted_ratio{%}", f"{each} predicted"),
                    ("berth_availability_objective_ratio{%}", f"{each} objective"),
                ),
            ],
        ),
        (
            "What does it cost?",
            [
                _lines("Price per hour", "short", ("berth_cost_per_hour{%}", each)),
                _lines("Price per million output tokens", "short", ("berth_cost_per_million_output_tokens{%}", each)),
            ],
        ),
        (
            "Is the operator well?",
            [
                _lines("Leader", "short", ("berth_leader", "{{instance}}")),
                _lines(
                    "Passes by result",
                    "ops",
                    ("sum by (result) (rate(berth_reconcile_seconds_count[5m]))", "{{result}}"),
                ),
                _lines(
                    "Wait for a pass, p95",
                    "s",
                    ("histogram_quantile(0.95, sum by (le) (rate(berth_queue_wait_seconds_bucket[5m])))", "p95"),
                ),
                _lines(
                    "Requests to the API server",
                    "reqps",
                    ("sum by (verb) (rate(berth_api_requests_total[5m]))", "{{verb}}"),
                    ('sum(rate(berth_api_requests_total{code=~"4..|5..|timeout|connection"}[5m]))', "without success"),
                ),
            ],
        ),
    ]


def _latency(title: str, metric: str, each: str) -> Any:
    return _lines(
        title,
        "s",
        *(
            (f'berth_latency_{kind}_seconds{{metric="{metric}", %}}', f"{each} {kind}")
            for kind in ("measured", "predicted", "objective")
        ),
    )


def _lines(title: str, unit: str, *queries: Query) -> Any:
    panel = timeseries.Panel().title(title).unit(unit).datasource(SOURCE)
    for letter, (expression, legend) in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_query(expression, letter).legend_format(legend))
    return panel


def _number(title: str, unit: str, expression: str) -> Any:
    panel = stat.Panel().title(title).unit(unit).datasource(SOURCE)
    return panel.with_target(_query(expression, "A").instant())


def _query(expression: str, letter: str) -> Any:
    return prometheus.Dataquery().ref_id(letter).expr(expression.replace("%", PICKED)).datasource(SOURCE)


def _variable(name: str, query: str) -> Any:
    return (
        board.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
    )
