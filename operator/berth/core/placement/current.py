"""What the placement in force is expected to do with the traffic of now, and how many of its groups that takes.

`needed` follows the traffic: from `spec.traffic` before anything was measured, then from measurements, and while those
are missing what was known last. Load is taken as a plan takes it: the mean of the hour, or that of the last minutes
where these are busier than `peakToMean` allows for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from berth.api.llmdeployment import LLMDeployment
from berth.api.placement import Allocation
from berth.core.measurement.measured import Measured
from berth.core.measurement.windows import Window
from berth.core.placement import record
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import measured_traffic, question
from berth.core.placement.size import size
from berth.core.placement.supply import Supply
from berth.errors import InvalidSpec

LEAST_SECONDS: Final = 60.0
"""Observed; less says nothing about the traffic."""
FEWEST_FINISHED: Final = 30
"""Requests whose mean length is taken for that of the traffic."""
_CHANGED: Final = 0.1


@dataclass(frozen=True)
class Load:
    """The traffic of now."""

    load: float
    """Requests per second, for closed traffic requests in flight."""
    input_tokens: float | None
    """Mean; None where too few requests finished."""
    output_tokens: float | None

    def near(self, other: Load) -> bool:
        """Whether nothing differs by more than a tenth."""
        pairs = (
            (self.load, other.load),
            (self.input_tokens, other.input_tokens),
            (self.output_tokens, other.output_tokens),
        )
        return all(_near(mine, its) for mine, its in pairs)


@dataclass(frozen=True)
class Current:
    """Of the placement in force, at the traffic of now."""

    groups_for_traffic: int
    """Groups that carry it at the objectives; 0 without traffic."""
    predicted: Mapping[str, Any] | None = None
    """Figures as status has them; None without traffic."""


def load_of(measured: Measured | None, deployment: LLMDeployment) -> Load | None:
    """None where it cannot be told: metrics are missing, too young, or there is no `spec.traffic` to complete them."""
    traffic = deployment.spec.traffic
    if measured is None or not measured.fresh or traffic is None:
        return None
    fast, slow = measured.deployment.fast, measured.deployment.slow
    if slow.seconds < LEAST_SECONDS:
        return None
    if traffic.arrival == "Closed":
        recent, usual = fast.in_flight, slow.in_flight
    else:
        recent, usual = fast.requests_per_second, slow.requests_per_second
    if usual is None:
        return None
    load = max(usual, (recent or 0.0) / float(traffic.peak_to_mean))
    finished = slow.tally.finished >= FEWEST_FINISHED
    return Load(load, _mean(slow, "input") if finished else None, _mean(slow, "output") if finished else None)


def current(
    deployment: LLMDeployment, allocation: Allocation, supply: Supply, load: Load, memory: Memory
) -> Current | None:
    """None where the models cannot tell: the layout meets the objectives at no load."""
    if load.load <= 0:
        return Current(0)
    try:
        planned = question(deployment)
    except InvalidSpec:
        return None
    layout = Layout.of(allocation)
    if layout.variant not in {variant.name for variant in planned.variants}:
        return None
    traffic = measured_traffic(planned.traffic, load.load, load.input_tokens, load.output_tokens)
    asked = replace(planned, traffic=traffic)
    evaluation = Estimates(asked, {supply.name: supply}, memory)
    found = size(asked, supply, layout, evaluation, "simulate", groups=allocation.groups)
    if not found.groups_for_traffic or found.latency is None:
        return None
    return Current(found.groups_for_traffic, record.dump(record.predicted(found, evaluation)))


def _mean(window: Window, name: str) -> float | None:
    histogram = getattr(window.tally, name)
    mean: float | None = histogram.mean if histogram is not None else None
    return mean


def _near(mine: float | None, its: float | None) -> bool:
    if mine is None or its is None or min(mine, its) <= 0:
        return mine == its
    return abs(math.log(mine / its)) <= math.log1p(_CHANGED)
