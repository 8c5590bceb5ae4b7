"""What leaders measured, for Prometheus: per deployment and per pool, as of the moment it is asked.

Figures are of the fast window (the last five minutes). What was not measured is absent, never 0; series of a deployment
end with it. Labels hold names of deployments and pools and finite words, nothing that grows with requests or pods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from berth.core.measurement.histogram import Histogram
from berth.core.measurement.measured import Measured, PoolMeasured
from berth.core.measurement.windows import Window, Windows

QUANTILES: Final = (0.5, 0.95, 0.99)
IDENTITY: Final = ("namespace", "deployment")
_OF_WINDOWS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "time_to_first_token_seconds": ("Time from arrival to the first token, queue included.", ("quantile",)),
    "time_per_output_token_seconds": ("Per request: (last - first token) / (tokens - 1).", ("quantile",)),
    "request_queue_seconds": ("Time from arrival until the engine started on the request.", ("quantile",)),
    "attainment_ratio": (
        "Share of requests within the p95 objective; metric is ttft or tpot, window fast (5 min) or slow (1 h).",
        ("metric", "window"),
    ),
    "requests_per_second": ("Requests that clients sent and leaders accepted.", ()),
    "output_tokens_per_second": ("Tokens generated for clients.", ()),
    "requests_in_flight": ("Requests accepted and not finished, mean.", ()),
    "requests_waiting": ("Requests that wait for room, mean.", ()),
    "kv_cache_usage_ratio": ("Share of the KV cache in use per group, mean.", ()),
    "failed_requests_per_second": ("Requests that ended without an answer through no fault of the client.", ()),
}
FAMILIES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    **{f"berth_{name}": (about, (*IDENTITY, *own)) for name, (about, own) in _OF_WINDOWS.items()},
    "berth_metrics_age_seconds": ("Age of the oldest newest reading of a group that serves.", IDENTITY),
    **{
        f"berth_pool_{name}": (f"{about[:-1]}, over all deployments of the pool.", ("pool", *own))
        for name, (about, own) in _OF_WINDOWS.items()
    },
}
"""Name, meaning, and labels."""

Sample = tuple[str, tuple[str, ...], float]
"""Name without prefix, values of its own labels, value."""


class Named(Protocol):
    """The key of a deployment."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...


class Readings(Protocol):
    """The reader; asked from a thread of its own."""

    def keys(self) -> tuple[Any, ...]: ...

    def measured(self, key: Any) -> Measured: ...

    def pools(self, *, whole_hour: bool) -> Mapping[str, PoolMeasured]: ...


class Measurements(Collector):
    """Register on `Metrics.registry`; asks `readings` at each scrape."""

    def __init__(self, readings: Readings | None) -> None:
        self._readings = readings

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        if self._readings is not None:
            for key in self._readings.keys():  # noqa: SIM118 - not a dictionary
                measured = self._readings.measured(key)
                identity = [key.namespace, key.name]
                for name, values, value in _of_windows(measured.deployment):
                    families[f"berth_{name}"].add_metric([*identity, *values], value)
                age = _age(measured)
                if age is not None:
                    families["berth_metrics_age_seconds"].add_metric(identity, age)
            for pool, of_pool in self._readings.pools(whole_hour=False).items():
                for name, values, value in _of_windows(of_pool.windows, slow=False):
                    families[f"berth_pool_{name}"].add_metric([pool, *values], value)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {name: GaugeMetricFamily(name, about, labels=list(own)) for name, (about, own) in FAMILIES.items()}


def _of_windows(windows: Windows, *, slow: bool = True) -> Iterator[Sample]:
    fast = windows.fast
    tally = fast.tally
    yield from _quantiles("time_to_first_token_seconds", tally.first_token)
    yield from _quantiles("time_per_output_token_seconds", tally.per_token)
    yield from _quantiles("request_queue_seconds", tally.queue)
    for word, window in (("fast", fast), ("slow", windows.slow)) if slow else (("fast", fast),):
        for metric, share in (("ttft", window.first_token_share), ("tpot", window.per_token_share)):
            if share is not None:
                yield "attainment_ratio", (metric, word), share
    for name, value in _rates(fast).items():
        if value is not None:
            yield name, (), value


def _quantiles(name: str, histogram: Histogram | None) -> Iterator[Sample]:
    if histogram is None or not histogram.count:
        return
    for quantile in QUANTILES:
        value = histogram.quantile(quantile)
        yield name, (f"{quantile:g}",), math.nan if value is None else value


def _rates(window: Window) -> dict[str, float | None]:
    seconds = window.seconds
    return {
        "requests_per_second": window.requests_per_second,
        "output_tokens_per_second": window.output_tokens_per_second,
        "requests_in_flight": window.in_flight,
        "requests_waiting": window.waiting,
        "kv_cache_usage_ratio": window.kv_use,
        "failed_requests_per_second": window.tally.failures / seconds if seconds > 0 else None,
    }


def _age(measured: Measured) -> float | None:
    """None while nothing serves, or one that does was never heard of."""
    read = [group.read_at for group in measured.groups if group.serving]
    known = [at for at in read if at is not None]
    return max(0.0, measured.at - min(known)) if known and len(known) == len(read) else None
