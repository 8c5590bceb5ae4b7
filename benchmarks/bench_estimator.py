"""How far the estimator is off on sources that it was not fitted to, next to a plain roofline.

    python -m benchmarks.bench_estimator [--data published_performance.csv] [--json OUT.json] [--runtimes]

Grouped cross-validation: every source is predicted by a fit that never saw a row of it (with --runtimes: no row of its
runtime generation). Errors are medians of |predicted / published - 1| per source, averaged over sources, as a source
with a thousand rows is still one opinion. Idle time to first token is also given with one constant per source taken
out, because request overhead differs by harness. Where aiconfigurator-core is installed, its predictions of the same
rows are shown beside.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import second_opinion
from benchmarks.fit_estimator import DATA, Data, Floats, Mask, cross_validate, error_quantiles, load
from berth.estimator.coefficients import FittedCoefficients
from berth.estimator.memory import kv_tokens, requests_in_flight
from berth.estimator.predict import copy_of
from berth.estimator.rows import coefficients_of, error_class, predict_measurements

ROOFLINE = FittedCoefficients(
    base={
        "bandwidth": 1.0,
        "kv_bandwidth": 1.0,
        "compute": 1.0,
        "attention_compute": 1.0,
        "softness": 50.0,
        "narrowing": 0.0,
        "ungrouped_attention": 0.0,
        "replicated_activations": 0.0,
        "split_activations": 0.0,
        "all_reduce": 1.0,
        "all_reduce_wait": 0.0,
        "layer_overhead": 0.0,
        "step_overhead": 0.0,
        "sequence_overhead": 0.0,
        "interference": 1.0,
        "reserve": 3.5 * 2**30,
    },
    factors={},
    errors={},
    provenance={},
)
"""Data sheets alone: the larger of memory and compute, measured all-reduces, no overheads."""
MEAN = "mean over sources"
MEAN_KNOWN = "mean over sources of runtimes that others show too"
FIGURES = {
    "out_tok_s": "output tokens/s",
    "tpot_ms": "time per output token",
    "idle_ttft_ms": "idle time to first token",
    "idle_ttft_ms, constant taken out": "the same, one constant per source taken out",
    "ttft_ms": "time to first token under load",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--runtimes", action="store_true", help="hold out whole runtime generations, not sources")
    options = parser.parse_args()
    data = load(options.data)
    groups = np.array([m.runtime.generation for m in data.measurements]) if options.runtimes else data.sources
    validated = cross_validate(data, groups)
    estimators = {"berth": validated.predicted, "roofline": predict_measurements(data.measurements, ROOFLINE)}
    if second_opinion.available():
        estimators["aiconfigurator"] = second_opinions(data)
    report: dict[str, dict[str, Any]] = {name: figures(data, p, validated.known) for name, p in estimators.items()}
    report["berth"]["covered"] = coverage(data, validated.predicted, error_quantiles(data, validated), validated.known)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def figures(data: Data, predicted: Floats, known: Mask) -> dict[str, Any]:
    """Per figure and source: rows, median and 90th percentile of the error in per cent; and means over sources.

    A source counts as of a known runtime when other sources show the runtime generation of most of its rows.
    """
    result: dict[str, Any] = {}
    for metric, name in FIGURES.items():
        chosen = (data.metrics == metric.split(",")[0]) & np.isfinite(predicted)
        adjusted = constant_taken_out(data, predicted) if "," in metric else predicted
        sources = {}
        for source in sorted(set(data.sources[chosen])):
            rows = chosen & (data.sources == source)
            error = np.abs(adjusted[rows] / data.values[rows] - 1) * 100
            sources[str(source)] = {
                "rows": int(rows.sum()),
                "median": round(float(np.median(error)), 1),
                "p90": round(float(np.quantile(error, 0.9)), 1),
                "known": bool(known[rows].mean() > 0.5),
            }
        if sources:
            familiar = [s for s in sources.values() if s["known"]]
            result[name] = {"sources": sources, MEAN: _mean(sources.values()), MEAN_KNOWN: _mean(familiar)}
    return result


def _mean(sources: Collection[Mapping[str, float]]) -> dict[str, float] | None:
    if not sources:
        return None
    return {key: round(float(np.mean([s[key] for s in sources])), 1) for key in ("median", "p90")}


def constant_taken_out(data: Data, predicted: Floats) -> Floats:
    """Predictions with the constant added per source that brings its idle times to first token closest."""
    adjusted = predicted.copy()
    for source in set(data.sources):
        rows = (data.sources == source) & (data.metrics == "idle_ttft_ms") & np.isfinite(predicted)
        if rows.any():
            constants = np.linspace(-100, 300, 801)
            errors = np.median(np.abs((predicted[rows][:, None] + constants) / data.values[rows][:, None] - 1), axis=0)
            adjusted[rows] = predicted[rows] + constants[int(np.argmin(errors))]
    return adjusted


def coverage(
    data: Data, predicted: Floats, quantiles: Mapping[str, Mapping[str, tuple[float, float]]], known: Mask
) -> dict[str, float]:
    """Per cent of published values between low and high, over all rows and as a mean over sources."""
    ratio = data.values / predicted
    bands = [quantiles[error_class(m)]["known" if k else "new"] for m, k in zip(data.measurements, known, strict=True)]
    inside = np.array([low <= r <= high for r, (low, high) in zip(ratio, bands, strict=True)])
    by_source = [inside[data.sources == source].mean() for source in sorted(set(data.sources))]
    return {"rows": round(100 * float(inside.mean()), 1), "sources": round(100 * float(np.mean(by_source)), 1)}


def second_opinions(data: Data) -> Floats:
    values = []
    for m in data.measurements:
        copy = copy_of(m)
        room = kv_tokens(copy, coefficients_of(m, ROOFLINE).reserve, m.limits.num_tokens, m.limits.kv_fraction)
        admitted = float(requests_in_flight(room, m.prompt, m.output, m.limits.batch_size))
        values.append(second_opinion.predict(m, max(min(admitted, m.clients), 1.0)))
    return np.array(values)


def table(report: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name in FIGURES.values():
        entries = {estimator: r[name] for estimator, r in report.items() if name in r}
        lines.append(f"{name}: median error in % (p90)")
        sources = sorted({source for entry in entries.values() for source in entry["sources"]})
        lines.append(f"  {'source':<60}{'rows':>6}" + "".join(f"{estimator:>20}" for estimator in entries))
        for source in sources:
            cells = [entry["sources"].get(source) for entry in entries.values()]
            rows = max(cell["rows"] for cell in cells if cell)
            lines.append(f"  {source[:58]:<60}{rows:>6}" + "".join(f"{_cell(cell):>20}" for cell in cells))
        means = {
            mean: "".join(f"{_cell(entry[mean]):>20}" for entry in entries.values()) for mean in (MEAN, MEAN_KNOWN)
        }
        lines += [f"  {mean:<66}{cells}" for mean, cells in means.items()]
        lines.append("")
    lines.append(f"published values between low and high: {report['berth']['covered']}")
    return "\n".join(lines)


def _cell(cell: Mapping[str, float] | None) -> str:
    if cell is None or math.isnan(cell["median"]):
        return "-"
    return f"{cell['median']:.1f} ({cell['p90']:.0f})"


if __name__ == "__main__":
    main()
