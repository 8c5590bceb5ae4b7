"""How many groups the traffic of now takes, and what is expected of them at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from berth.api.common import seconds
from berth.api.placement import Allocation
from berth.core.measurement.histogram import Histogram
from berth.core.measurement.measured import GroupMeasured, Measured
from berth.core.measurement.samples import Tally
from berth.core.measurement.windows import Batch, Windows, batch_index, windows
from berth.core.placement.current import Current, Load, current, load_of
from berth.core.placement.decide import decide
from berth.core.placement.evaluate import Memory
from tests.unit.placement.cases import BF16, deployment, supply
from tests.unit.placement.test_decide import SMALL, small, snapshot

NOW = 1_000_000_000.0
MEMORY = Memory()
POOL = supply("cheap")


def lengths(mean: float, count: int = 100) -> Histogram:
    return Histogram((1e6,), (count, 0), mean * count)


def measured(
    slow: float,
    fast: float | None = None,
    *,
    prompt: float = 600,
    answer: float = 200,
    read_at: float = NOW,
    **tally: Any,
) -> Measured:
    """An hour of so many requests per second, and its last minutes."""
    batches = []
    for age in range(60):
        rate = fast if fast is not None and age <= 5 else slow
        known = {"input": lengths(600), "output": lengths(200), "readings": 6, **tally}
        batches.append(Batch(batch_index(NOW) - age, 60, Tally(group_seconds=60, requests=60 * rate, **known)))
    group = GroupMeasured("g0", "cheap", "r", Windows(), read_at, serving=True)
    return Measured(NOW, (group,), windows(batches, NOW))


def at(load: float, traffic: Mapping[str, Any] = SMALL, groups: int = 2, **lengths: float) -> Current | None:
    wanted = deployment(model="llama-3.1-8b-instruct", variants=[BF16], traffic=traffic)
    allocation = Allocation(pool="cheap", variant="bf16", tensor_parallel=1, groups=groups)
    found = Load(load, lengths.get("prompt"), lengths.get("answer"))
    return current(wanted, allocation, POOL, found, MEMORY)


def test_the_load_is_that_of_the_hour_or_of_minutes_that_are_busier_than_planned_for() -> None:
    wanted = small()
    peak = float(wanted.spec.traffic.peak_to_mean) if wanted.spec.traffic else 0
    usual, busy = load_of(measured(5, 5), wanted), load_of(measured(5, 20), wanted)
    assert usual == Load(5, 600, 200)
    assert busy is not None
    assert busy.load == pytest.approx(20 / peak)


def test_nothing_is_concluded_from_missing_young_or_incomplete_metrics() -> None:
    assert load_of(None, small()) is None
    assert load_of(measured(5, read_at=NOW - 3600), small()) is None
    assert load_of(Measured(NOW, measured(5).groups), small()) is None
    few = load_of(measured(5, output=lengths(900, 0), input=lengths(900, 0)), small())
    assert few == Load(5, None, None)


def test_closed_traffic_is_measured_in_requests_in_flight() -> None:
    closed = {**{k: v for k, v in SMALL.items() if k != "requestsPerSecond"}, "arrival": "Closed", "concurrency": 8}
    found = load_of(measured(5, running_sum=72.0), small(traffic=closed))
    assert found is not None
    assert found.load == pytest.approx(12)


def test_more_traffic_takes_more_groups_and_none_takes_none() -> None:
    loads = (0.5, 5.0, 20.0, 60.0)
    needed = [found.groups_for_traffic for load in loads if (found := at(load)) is not None]
    assert len(needed) == len(loads)
    assert needed == sorted(needed)
    assert needed[0] < needed[-1]
    assert at(0.0) == Current(0)


def test_longer_requests_take_more_groups() -> None:
    short, long = at(30.0), at(30.0, prompt=1800.0, answer=400.0)
    assert short is not None
    assert long is not None
    assert long.groups_for_traffic > short.groups_for_traffic


def test_at_the_planned_traffic_it_says_what_the_plan_said() -> None:
    plan = decide(snapshot(small()), [POOL], MEMORY)
    assert plan.allocation is not None
    found = current(small(), plan.allocation, POOL, Load(float(str(SMALL["requestsPerSecond"])), None, None), MEMORY)
    assert found is not None
    assert found.groups_for_traffic == plan.groups_for_traffic
    assert found.predicted == plan.status["placement"]["predicted"]


def test_less_traffic_is_expected_to_be_served_faster() -> None:
    calm, busy = at(0.5), at(12.0)
    assert calm is not None
    assert busy is not None
    assert calm.predicted is not None
    assert busy.predicted is not None
    assert seconds(calm.predicted["ttftP95"]) < seconds(busy.predicted["ttftP95"])


def test_a_layout_that_never_meets_the_objectives_says_nothing() -> None:
    wanted = small(objectives={"timeToFirstToken": {"p95": "1ms"}})
    allocation = Allocation(pool="cheap", variant="bf16", groups=1)
    assert current(wanted, allocation, POOL, Load(1.0, None, None), MEMORY) is None
    gone = Allocation(pool="cheap", variant="fp8", groups=1)
    assert current(small(), gone, POOL, Load(1.0, None, None), MEMORY) is None


def test_a_tenth_more_or_less_is_the_same_load() -> None:
    assert Load(10, 600, 200).near(Load(10.9, 560, 215))
    assert not Load(10, 600, 200).near(Load(12, 600, 200))
    assert not Load(10, None, 200).near(Load(10, 600, 200))
    assert Load(0, None, None).near(Load(0, None, None))
