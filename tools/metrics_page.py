"""docs/metrics.md from the collectors themselves: every metric that the operator exports.

    python -m tools.metrics_page [--check]

With --check nothing is written; out of date is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client.registry import Collector

from berth.measurements import Measurements
from berth.metrics import Metrics
from berth.standing import Standing

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
INTRODUCTION: Final = """\
<!-- Written by tools/metrics_page.py from the collectors; do not edit. -->
# Metrics

The operator answers `GET /metrics` (Prometheus text) on the address of `BERTH_LISTEN`. The chart can make a
ServiceMonitor or PodMonitor for it. Only the leading replica measures and makes passes, so only it has series of
deployments and pools. What is unknown is absent, never 0; the series of a deployment end with it. Scrape with
`honor_labels: true`, or the label `namespace` of a series is renamed.

Each pod of a model exports its own page, which Berth reads: `docs/designs/006-launcher.md`. To have Berth read them
from a Prometheus instead, set `BERTH_PROMETHEUS` (chart: `settings.prometheus`) and let that one scrape port 8003 of
pods with the label `app.kubernetes.io/managed-by: berth`, with labels `namespace` and `pod`, at least every 20 s.
With `networkPolicy.egress` the way to that Prometheus is named in `networkPolicy.egressTo`.
"""
PARTS: Final[tuple[tuple[str, str, Any], ...]] = (
    ("What clients get", "Measured, of the last five minutes where nothing else is said.", Measurements(None)),
    ("How deployments stand", "As in the status of each LLMDeployment.", Standing()),
)
OPERATOR: Final = ("The operator itself", "Failures, moves, passes, queue, requests to the API server.")


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, about, collector in PARTS:
        parts.append(_part(title, about, _rows(collector.describe())))
    registry = Metrics().registry
    own: list[Collector] = list(dict.fromkeys(registry._collector_to_names))
    parts.append(_part(*OPERATOR, _rows(family for collector in own for family in _described(collector))))
    return "\n".join(parts)


def _described(collector: Any) -> Iterable[Any]:
    for family in collector.describe():
        family.label_names = collector._labelnames
        yield family


def _part(title: str, about: str, rows: Iterable[str]) -> str:
    head = "| metric | type | labels | meaning |\n|---|---|---|---|"
    return "\n".join((f"## {title}\n\n{about}\n", head, *rows, ""))


def _rows(families: Iterable[Any] | None) -> Iterator[str]:
    for family in families or ():
        labels = getattr(family, "label_names", None) or getattr(family, "_labelnames", None)
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = ", ".join(f"`{label}`" for label in labels or ()) or "-"
        yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def main() -> None:
    wanted = page()
    if PAGE.exists() and PAGE.read_text() == wanted:
        return
    if "--check" in sys.argv[1:]:
        sys.exit(f"out of date: docs/{PAGE.name}; run: python -m tools.metrics_page")
    PAGE.write_text(wanted)
    print(f"wrote: docs/{PAGE.name}")


if __name__ == "__main__":
    main()
