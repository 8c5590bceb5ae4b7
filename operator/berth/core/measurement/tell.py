"""A report as parts of the status: figures, conditions, the error of the prediction.

Figures that nothing is known of are absent. While metrics are missing the last figures stay for some minutes, so that
a restart of the operator does not blank a fleet; the condition says that they are old.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from berth.api.common import format_duration, seconds
from berth.api.demand import Objectives as ObjectivesSpec
from berth.core import conditions as c
from berth.core.conditions import Condition
from berth.core.measurement.report import Figures, Report
from berth.core.measurement.samples import Objectives
from berth.core.timestamps import unix_seconds

KEPT_SECONDS: Final = 300.0
"""How long figures outlive the metrics they came from."""
_SECONDS_PER_HOUR: Final = 3600.0


def objectives_of(spec: ObjectivesSpec) -> Objectives:
    """p95 objectives in seconds."""
    first, token = spec.time_to_first_token, spec.time_per_output_token
    return Objectives(seconds(first.p95) if first else None, seconds(token.p95) if token else None)


def keeps_old_figures(report: Report, stored: Mapping[str, Any], now: float) -> bool:
    """Whether what `stored` (status) says was measured still stands."""
    if report.fresh:
        return False
    for condition in stored.get("conditions") or ():
        if condition.get("type") == c.METRICS_AVAILABLE and condition.get("status") == "False":
            return now - (unix_seconds(condition.get("lastTransitionTime")) or 0.0) < KEPT_SECONDS
    return True


def summary(report: Report) -> dict[str, str]:
    """`ttftP95` and `tpotP95` of the summary, where they are known."""
    if not report.fresh:
        return {}
    shown = {"ttftP95": _time(report.felt.ttft_p95), "tpotP95": _time(report.felt.tpot_p95)}
    return {name: text for name, text in shown.items() if text is not None}


def placement(report: Report, predicted: Mapping[str, Any], cost_per_hour: str | None) -> dict[str, Any]:
    """`measured`, `predictionError` and `costPerMillionOutputTokens` of the placement, where they are known."""
    if not report.fresh:
        return {}
    figures = report.placement
    rate = figures.output_tokens_per_second
    measured: dict[str, Any] = {"ttftP95": _time(figures.ttft_p95), "tpotP95": _time(figures.tpot_p95)}
    if rate is not None:
        measured["outputTokensPerSecond"] = {"mid": f"{rate:.3g}" if rate < 10 else f"{rate:.0f}"}
    told: dict[str, Any] = {
        "measured": {name: figure for name, figure in measured.items() if figure is not None},
        "predictionError": {name: f"{e:.2f}" for name, e in prediction_errors(predicted, figures).items()},
    }
    if cost_per_hour is not None and rate:
        told["costPerMillionOutputTokens"] = f"{float(cost_per_hour) / (_SECONDS_PER_HOUR * rate) * 1e6:.2f}"
    return {name: part for name, part in told.items() if part}


def prediction_errors(predicted: Mapping[str, Any], figures: Figures) -> dict[str, float]:
    """(predicted - measured) / measured by field of `Figures` of the status, where both are known."""
    pairs: dict[str, tuple[float | None, float | None]] = {
        "ttftP95": (_seconds(predicted.get("ttftP95")), figures.ttft_p95),
        "tpotP95": (_seconds(predicted.get("tpotP95")), figures.tpot_p95),
    }
    return {
        name: (expected - found) / found
        for name, (expected, found) in pairs.items()
        if expected is not None and found is not None and 0 < found < math.inf
    }


def conditions(report: Report, objectives: Objectives) -> Iterator[Condition]:
    """MetricsAvailable, and ObjectivesMet where there is a latency objective."""
    reason = "MetricsFresh" if report.fresh else "MetricsMissing" if report.serves else "NothingServes"
    yield Condition(c.METRICS_AVAILABLE, report.fresh, reason, report.problem or "every leader that serves is measured")
    if objectives == Objectives():
        return
    if not report.fresh:
        yield Condition(c.OBJECTIVES_MET, None, reason, report.problem)
    elif report.met is None:
        yield Condition(c.OBJECTIVES_MET, None, "TooFewRequests", _attainment(report, objectives))
    else:
        reason = "ObjectivesReached" if report.met else "ObjectivesMissed"
        yield Condition(c.OBJECTIVES_MET, report.met, reason, _attainment(report, objectives))


def _attainment(report: Report, objectives: Objectives) -> str:
    """`TTFT p95 412ms, objective 1.5s: 98.2 % within it; TPOT ...`."""
    parts = []
    for name, wanted, p95, share in (
        ("TTFT", objectives.first_token, report.felt.ttft_p95, report.first_token_share),
        ("TPOT", objectives.per_token, report.felt.tpot_p95, report.per_token_share),
    ):
        if wanted is not None and share is not None:
            found = f"{name} p95 {_time(p95)}, objective {format_duration(wanted)}"
            parts.append(f"{found}: {100 * share:.1f} % within it")
    return "; ".join(parts) or "no requests yet"


def _time(value: float | None) -> str | None:
    if value is None:
        return None
    return format_duration(value) if value < math.inf else "more than measurable"


def _seconds(text: Any) -> float | None:
    try:
        return seconds(text) if isinstance(text, str) else None
    except ValueError:
        return None
