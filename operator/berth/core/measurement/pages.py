"""Prometheus text of a leader as a sample: the launcher's own page, or Triton's where the image brings its own model.

The text is untrusted: what does not parse, is no number, negative or contradicts itself makes its family unknown; a
page that was cut off, or has nothing of use, is refused as a whole. Names and labels: docs/designs/006-launcher.md, and
for Triton's page the table in https://github.com/triton-inference-server/tensorrtllm_backend.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from berth.core.measurement.histogram import Histogram
from berth.core.measurement.samples import Sample, Steps

Labels = tuple[tuple[str, str], ...]
"""Sorted."""
Series = Mapping[tuple[str, Labels], float]
"""Values by name and labels."""

MOST_BUCKETS: Final = 256
_LARGEST: Final = 2.0**53
"""Counts beyond lose units."""
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\.)*)"\s*,?\s*')


class Unreadable(ValueError):
    """The page says nothing that can be used; the message says why."""


# --- the launcher's page ---------------------------------------------------------------------------------------------
_HISTOGRAMS: Final = {
    "trtllm_time_to_first_token_seconds": "first_token",
    "trtllm_time_per_output_token_seconds": "per_token",
    "trtllm_request_queue_time_seconds": "queue",
    "nv_llm_input_token_len": "input",
    "nv_llm_output_token_len": "output",
}
_COUNTERS: Final = {
    "berth_input_tokens_squared_total": "input_squares",
    "berth_output_tokens_squared_total": "output_squares",
    "berth_requested_tokens_total": "requested_tokens",
    "berth_client_requests_total": "requests",
    "berth_client_tokens_total": "tokens",
}
_GAUGES: Final = {
    "trtllm_num_requests_running": "running",
    "trtllm_num_requests_waiting": "waiting",
    "trtllm_kv_cache_utilization": "kv_use",
}
_STEPS: Final = {
    "berth_engine_steps_total": "count",
    "berth_engine_step_seconds_total": "seconds",
    "berth_engine_step_decodes_total": "decodes",
    "berth_engine_step_context_tokens_total": "context_tokens",
    "berth_engine_step_prefill_tokens_total": "prefill_tokens",
}
LAUNCHER_NAME: Final = "berth_client_requests_total"
"""Only the launcher's page has it."""
_FAILURES: Final = "berth_request_failures_total"
_FAILURE_FIELDS: Final = {"engine": "failures", "draining": "refusals", "cancelled": "cancellations"}

# --- Triton's page ---------------------------------------------------------------------------------------------------
_FIRST_RESPONSE: Final = "nv_inference_first_response_histogram_ms"
_SUCCESSES: Final = "nv_inference_request_success"
_TRITON_FAILURES: Final = "nv_inference_request_failure"
_DURATION: Final = "nv_inference_request_duration_us"
_REQUEST_GAUGES: Final = "nv_trt_llm_request_metrics"
_KV_GAUGES: Final = "nv_trt_llm_kv_cache_block_metrics"
_ENTRANCES: Final = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
"""Models that clients call, the likeliest first; its parts would count every request twice."""
_TRITON_FAILURE_FIELDS: Final = {"REJECTED": "refusals", "CANCELED": "cancellations"}

_BASES: Final = frozenset((*_HISTOGRAMS, _FIRST_RESPONSE))
NAMES: Final = frozenset(
    (
        *(base + part for base in _BASES for part in ("_bucket", "_sum", "_count")),
        *_COUNTERS,
        *_GAUGES,
        *_STEPS,
        *(_FAILURES, _SUCCESSES, _TRITON_FAILURES, _DURATION, _REQUEST_GAUGES, _KV_GAUGES),
    )
)
"""Every series that is read; everything else on a page is skipped."""
_KEPT_LABELS: Final = frozenset(
    ("le", "model", "version", "reason", "request_type", "kv_cache_block_type", "response_metric_type")
)


def parse_page(text: str) -> Series:
    """What is of use on a page. Raises Unreadable if it was cut off."""
    if not text.endswith("\n"):
        raise Unreadable("the page was cut off" if text else "the page is empty")
    found: dict[tuple[str, Labels], float] = {}
    for line in text.split("\n"):
        # An early way out: most lines of a page are comments or families that nobody reads.
        name = line.partition("{")[0].partition(" ")[0]
        if name in NAMES:
            labels, value = _rest(line[len(name) :])
            found[name, labels] = value
    return found


def _rest(text: str) -> tuple[Labels, float]:
    """Labels and value of a line without its name; not-a-number for anything that makes no sense."""
    labels: Labels = ()
    if text.startswith("{"):
        place, pairs = 1, []
        while match := _LABEL.match(text, place):
            pairs.append((match.group(1), match.group(2)))
            place = match.end()
        if text[place : place + 1] != "}":
            return ((("", text),)), math.nan
        labels, text = tuple(sorted(pairs)), text[place + 1 :]
    words = text.split()
    try:
        return labels, float(words[0]) if len(words) in (1, 2) else math.nan  # a second word is a timestamp
    except ValueError:
        return labels, math.nan


def sample_of(series: Series, at: float) -> Sample:
    """The sample at `at` (Unix seconds). Raises Unreadable where nothing is told of requests."""
    families: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    for (name, labels), value in series.items():
        families[name][labels] = value
    page = _Page(families)
    sample = _launcher(page, at) if LAUNCHER_NAME in families else _triton(page, at)
    if sample.first_token is None and not sample.counters:
        raise Unreadable("the page tells nothing of requests yet")
    return sample


@dataclass(frozen=True)
class _Page:
    """Families of a page; whatever is asked of it is None where it is missing or makes no sense."""

    families: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float | None:
        """Sum over all series with these labels."""
        wanted = set(labels.items())
        values = [value for each, value in self.families.get(name, {}).items() if wanted <= set(each)]
        return sum(values) if values and all(map(_sane, values)) else None

    def by_label(self, name: str, label: str, **labels: str) -> dict[str, float] | None:
        """Sums by the value of one label; None if there is none, or one makes no sense."""
        wanted, sums = set(labels.items()), defaultdict[str, float](float)
        for each, value in self.families.get(name, {}).items():
            if wanted <= set(each):
                sums[dict(each).get(label, "")] += value
        return dict(sums) if sums and all(map(_sane, sums.values())) else None

    def histogram(self, base: str, scale: float = 1.0, **labels: str) -> Histogram | None:
        """In the page's unit times `scale`; series with further labels are added up."""
        wanted, below = set(labels.items()), defaultdict[float, float](float)
        for each, value in self.families.get(f"{base}_bucket", {}).items():
            if wanted <= set(each):
                below[_edge(dict(each).get("le", ""))] += value
        count, total = self.value(f"{base}_count", **labels), self.value(f"{base}_sum", **labels)
        edges = sorted(below)
        if count is None or total is None or not 2 <= len(edges) <= MOST_BUCKETS:
            return None
        cumulative = [below[edge] for edge in edges]
        counts = [after - before for before, after in zip((0.0, *cumulative), cumulative, strict=False)]
        whole = all(map(_sane, cumulative)) and all(each >= 0 and each.is_integer() for each in counts)
        if not whole or edges[0] <= 0 or edges[-1] != math.inf or cumulative[-1] != count:
            return None
        return Histogram(_shared(tuple(edge * scale for edge in edges[:-1])), tuple(map(int, counts)), total * scale)


@lru_cache(maxsize=1024)
def _shared(edges: tuple[float, ...]) -> tuple[float, ...]:
    """One object for equal edges: windows keep thousands of histograms."""
    return edges


def _sane(value: float) -> bool:
    return 0 <= value <= _LARGEST  # false for not-a-number


def _edge(text: str) -> float:
    try:
        edge = float(text)
    except ValueError:
        return -1.0  # refused by the caller
    return edge if edge == edge else -1.0


def _launcher(page: _Page, at: float) -> Sample:
    counters = {name: page.value(family) for family, name in _COUNTERS.items()}
    failures = page.by_label(_FAILURES, "reason") or {}
    counters |= {name: failures.get(reason) for reason, name in _FAILURE_FIELDS.items()}
    steps = {name: page.value(family) for family, name in _STEPS.items()}
    histograms: dict[str, Any] = {name: page.histogram(base) for base, name in _HISTOGRAMS.items()}
    return Sample(
        at,
        **histograms,
        counters=_known(counters),
        steps=Steps(**_known(steps)) if None not in steps.values() else None,
        **_gauges({name: page.value(family) for family, name in _GAUGES.items()}),
    )


def _triton(page: _Page, at: float) -> Sample:
    """As the models of TensorRT-LLM's own repository export it: no times per token, but their sums."""
    models = {dict(labels).get("model") for labels in page.families.get(f"{_FIRST_RESPONSE}_count", {})}
    models |= {dict(labels).get("model") for labels in page.families.get(_SUCCESSES, {})}
    entrance = next((model for model in _ENTRANCES if model in models), "")
    first = page.histogram(_FIRST_RESPONSE, 1e-3, model=entrance)
    output = page.histogram("nv_llm_output_token_len")
    duration = page.value(_DURATION, model=entrance)
    counters: dict[str, float | None] = {
        "requests": page.value(_SUCCESSES, model=entrance),
        "tokens": output.total if output else None,
    }
    failures = page.by_label(_TRITON_FAILURES, "reason", model=entrance) or {}
    for reason, count in failures.items():
        name = _TRITON_FAILURE_FIELDS.get(reason, "failures")
        counters[name] = (counters.get(name) or 0.0) + count
    if first is not None and output is not None and duration is not None:
        counters["decode_seconds"] = max(0.0, duration * 1e-6 - first.total)
        counters["decode_tokens"] = max(0.0, output.total - output.count)
    states = page.by_label(_REQUEST_GAUGES, "request_type") or {}
    blocks = page.by_label(_KV_GAUGES, "kv_cache_block_type") or {}
    used = blocks.get("fraction")
    if used is None and blocks.get("max"):
        used = blocks.get("used", 0.0) / blocks["max"]
    return Sample(
        at,
        first_token=first,
        input=page.histogram("nv_llm_input_token_len"),
        output=output,
        counters=_known(counters),
        **_gauges(
            {
                "running": states.get("scheduled", states.get("active")),
                "waiting": states.get("waiting"),
                "kv_use": used,
            }
        ),
    )


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _gauges(values: Mapping[str, float | None]) -> dict[str, Any]:
    share = values.get("kv_use")
    return {**values, "kv_use": min(share, 1.0) if share is not None else None}


def sample_of_page(text: str, at: float) -> Sample:
    """Both steps. Raises Unreadable."""
    return sample_of(parse_page(text), at)


def series_of(found: Iterable[tuple[Mapping[str, str], float]]) -> Series:
    """Of series with their name as a label `__name__`, as Prometheus tells them; its own labels are left out."""
    return {
        (labels.get("__name__", ""), tuple(sorted((k, v) for k, v in labels.items() if k in _KEPT_LABELS))): value
        for labels, value in found
        if labels.get("__name__") in NAMES
    }
