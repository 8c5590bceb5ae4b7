"""What the benchmark of many deployments complains about."""

from __future__ import annotations

import dataclasses

from benchmarks.bench_scale import Figures, Page, complaints

FIGURES = Figures(
    deployments=100,
    nodes=17,
    created_seconds=1.0,
    ready_seconds=5.0,
    cpu_seconds=4.0,
    memory_mib=100.0,
    memory_peak_mib=100.0,
    calls={"create": 200},
    calls_per_deployment=10.0,
    writes_per_deployment=8.0,
    passes_per_deployment=12.0,
    reconcile_p95_seconds=0.1,
    idle_writes_per_minute=0.0,
    idle_writes={},
    lost_nodes=5,
    lost_groups=25,
    recovered_seconds=30.0,
    writes_per_lost_group=9.0,
)
RECORDED = {"100": {"calls_per_deployment": 10.0, "memory_mib": 100.0}}


def test_a_fifth_more_is_tolerated_and_no_more() -> None:
    assert complaints([FIGURES], RECORDED) == []
    assert complaints([dataclasses.replace(FIGURES, calls_per_deployment=12.0, ready_seconds=500.0)], RECORDED) == []
    (found,) = complaints([dataclasses.replace(FIGURES, calls_per_deployment=12.1)], RECORDED)
    assert "calls_per_deployment" in found


def test_growth_with_the_number_of_deployments_is_told() -> None:
    larger = dataclasses.replace(FIGURES, deployments=1000, passes_per_deployment=20.0)
    (found,) = complaints([FIGURES, larger], {})
    assert "passes_per_deployment" in found


def test_writes_without_a_cause_are_told() -> None:
    restless = dataclasses.replace(FIGURES, idle_writes_per_minute=1.0, idle_writes={"apply GPUPool": 1})
    assert "apply GPUPool" in complaints([restless], {})[0]


def test_a_page_is_read_without_leases_events_and_reads() -> None:
    page = Page(
        'berth_api_requests_total{verb="create",kind="Pod",code="201"} 3\n'
        'berth_api_requests_total{verb="patch",kind="Lease",code="200"} 9\n'
        'berth_api_requests_total{verb="list",kind="Pod",code="200"} 2\n'
        'berth_reconcile_seconds_bucket{result="done",le="0.1"} 9\n'
        'berth_reconcile_seconds_bucket{result="done",le="0.5"} 10\n'
        'berth_reconcile_seconds_bucket{result="done",le="+Inf"} 10\n'
        'berth_reconcile_seconds_count{result="done"} 10\n'
    )
    assert (page.writes, page.passes, page.calls["patch"], page.reconcile_p95()) == (3, 10, 9, 0.5)
