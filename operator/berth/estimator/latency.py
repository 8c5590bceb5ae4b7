"""Words of the queueing model: what is asked of one model copy and what is answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

Bound = Literal["timeToFirstToken", "timePerOutputToken", "throughput", "kvRoom"]
"""What limits a copy: an objective, the engine's throughput, or KV room that the longest request exceeds."""


@dataclass(frozen=True)
class Objectives:
    """p95 limits in seconds; infinite where there is none."""

    time_to_first_token: float = math.inf
    time_per_output_token: float = math.inf

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:  # also refuses NaN
                raise ValueError(f"objectives: {field.name} {value!r} must be more than 0 seconds")

    def excess(self, ttft_p95: float, tpot_p95: float) -> tuple[float, Bound]:
        """The larger p95 / objective, and of which objective; both are met up to 1."""
        first, token = (
            seconds / limit if limit < math.inf else 0.0
            for seconds, limit in (
                (ttft_p95, self.time_to_first_token),
                (tpot_p95, self.time_per_output_token),
            )
        )
        return (first, "timeToFirstToken") if first >= token else (token, "timePerOutputToken")


class Quantiles(NamedTuple):
    """Seconds that 50, 95 and 99 % of requests do not exceed."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """One model copy at one load. Seconds; infinite where the queue grows without end."""

    ttft: Quantiles
    """From the request to its first token, queue and request overhead included."""
    tpot: Quantiles
    """(last - first)/(tokens - 1) of each request with more than one token."""
    in_flight: float
    """Mean number of requests that hold KV cache."""
    utilisation: float
    """Load against saturated throughput; for closed traffic throughput against it."""
    requests_per_second: float
    """Mean throughput."""
    stable: bool
    """False if the load exceeds what the copy can serve, or the longest request fits into no KV cache."""

    @property
    def ttft_p95(self) -> float:
        return self.ttft.p95

    @property
    def tpot_p95(self) -> float:
        return self.tpot.p95

    def meets(self, objectives: Objectives) -> bool:
        return self.stable and objectives.excess(self.ttft.p95, self.tpot.p95)[0] <= 1


def overloaded(utilisation: float = math.inf) -> Latency:
    """The latency of a copy that cannot keep up."""
    never = Quantiles(math.inf, math.inf, math.inf)
    return Latency(never, never, math.inf, utilisation, 0.0, stable=False)


@dataclass(frozen=True)
class Capacity:
    """The largest load of one group that meets the objectives."""

    load: float
    """Requests per second, for closed traffic clients; 0 if hardly any load misses an objective already."""
    requests_per_second: float
    """Throughput at that load."""
    limited_by: Bound
    latency: Latency
    """At that load; where it is 0, at the smallest load that was tried."""
