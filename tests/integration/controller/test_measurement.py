"""What leaders measure comes into the status, on a real control plane; pages of leaders are injected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_scale import Page
from tests.integration.controller.conftest import Site
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import eventually

OBJECTIVES = {"timeToFirstToken": {"p95": "90ms"}, "timePerOutputToken": {"p95": "40ms"}}
FAST: dict[str, object] = {"metrics_interval": 0.5, "metrics_warm_up": 0.0}


@pytest.fixture
async def berth(
    site: Site, operator_kubeconfig: Path, leaders: ScriptedLeaders, clock: Clock
) -> AsyncIterator[RunningBerth]:
    async with running_berth(operator_kubeconfig, site.namespace, leaders, clock, **FAST) as running:
        yield running


async def served(site: Site, **spec: Any) -> list[str]:
    """A deployment of two groups that serve; names of its leaders."""
    await site.create(site.deployment(await site.pool()), objectives=OBJECTIVES, **spec)
    await site.settled()
    return sorted(await site.serving())


async def told(site: Site, **wanted: str) -> dict[str, Any]:
    """The status, once its summary says this."""

    async def check() -> dict[str, Any]:
        status = (await site.get())["status"]
        assert {name: status["summary"][name] for name in wanted} == wanted, status
        return status

    return await eventually(check)


async def counted(berth: RunningBerth, pod: str) -> None:
    """Once the leader counts its objectives exactly, and was read twice since."""

    async def check() -> bool:
        return pod in berth.metrics.edges

    await eventually(check)
    seen = berth.metrics.readings
    await eventually(lambda: _more(berth, seen + 6))


async def _more(berth: RunningBerth, readings: int) -> bool:
    return berth.metrics.readings >= readings


async def test_the_status_says_what_requests_saw_and_whether_that_was_promised(site: Site, berth: RunningBerth) -> None:
    pods = await served(site)
    for pod in pods:
        await counted(berth, pod)
    assert berth.metrics.edges[pods[0]].first_token == 0.09
    for pod in pods:
        berth.metrics.serve(pod, 100, ttft=0.08, tpot=0.015)
    status = await told(site, ttftP95="88ms", tpotP95="19ms")
    assert status["placement"]["measured"]["ttftP95"] == "88ms"
    assert float(status["placement"]["measured"]["outputTokensPerSecond"]["mid"]) > 0
    price = float(status["placement"]["costPerMillionOutputTokens"])
    rate = float(status["placement"]["measured"]["outputTokensPerSecond"]["mid"])
    assert price == pytest.approx(float(status["placement"]["costPerHour"]) / 3600 / rate * 1e6, rel=0.02)
    met = await site.condition("ObjectivesMet")
    assert (met["status"], met["reason"]) == ("True", "ObjectivesReached")
    assert "TTFT p95 88ms, objective 90ms: 100.0 % within it" in met["message"]
    assert (await site.condition("MetricsAvailable"))["status"] == "True"


async def test_a_lasting_breach_is_said_and_taken_back(site: Site, berth: RunningBerth, clock: Clock) -> None:
    pods = await served(site)
    for pod in pods:
        await counted(berth, pod)
        berth.metrics.serve(pod, 50)
    await site.until("ObjectivesMet")
    for pod in pods:
        berth.metrics.serve(pod, 1000, ttft=0.4)
    clock.ahead += 50
    seen = berth.metrics.readings
    await eventually(lambda: _more(berth, seen + 4))
    clock.ahead += 50
    await site.until("ObjectivesMet", "False")
    assert (await site.condition("ObjectivesMet"))["reason"] == "ObjectivesMissed"


async def test_a_silent_leader_is_said_and_old_figures_do_not_stay_for_ever(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    pods = await served(site)
    for pod in pods:
        await counted(berth, pod)
        berth.metrics.serve(pod, 100)
    await told(site, ttftP95="88ms")
    berth.metrics.silent.add(pods[1])
    clock.ahead += 40
    await site.until("MetricsAvailable", "False")

    async def why() -> bool:
        condition = await site.condition("MetricsAvailable")
        assert condition["reason"] == "MetricsMissing"
        assert "silent in this test" in condition["message"], condition
        return True

    await eventually(why)
    assert (await site.condition("ObjectivesMet"))["status"] == "Unknown"
    await told(site, ttftP95="88ms")
    clock.ahead += 320
    await site.patch({"metadata": {"annotations": {"look": "again"}}})
    await told(site, ttftP95="-")
    assert "measured" not in (await site.get())["status"]["placement"]
    berth.metrics.silent.clear()
    await site.until("MetricsAvailable")


async def test_steady_load_writes_nothing(site: Site, berth: RunningBerth, clock: Clock) -> None:
    pods = await served(site)
    for pod in pods:
        await counted(berth, pod)
        berth.metrics.serve(pod, 100)
    await told(site, ttftP95="88ms")

    async def a_minute() -> int:
        """Writes in a minute of the operator's clock with the same load as before."""
        before = berth.writes()
        for _ in range(3):
            clock.ahead += 20
            for pod in pods:
                berth.metrics.serve(pod, 200)
            seen = berth.metrics.readings
            await eventually(lambda seen=seen: _more(berth, seen + 6))
        passes = Page(berth.app.metrics.render().decode()).passes
        await site.patch({"metadata": {"annotations": {"look": str(clock.ahead)}}})

        async def looked() -> bool:
            return Page(berth.app.metrics.render().decode()).passes > passes

        await eventually(looked)  # or what this look writes would count for the next minute
        return berth.writes() - before

    await a_minute()
    for _ in range(5):  # the running average settles: at most one write a minute until then
        assert await a_minute() <= 1
    assert [await a_minute() for _ in range(3)] == [0, 0, 0]


async def test_a_restart_of_the_operator_keeps_the_figures_until_it_knows_better(
    site: Site, operator_kubeconfig: Path, clock: Clock
) -> None:
    async with running_berth(operator_kubeconfig, site.namespace, None, clock, **FAST) as first:
        pods = await served(site)
        for pod in pods:
            await counted(first, pod)
            first.metrics.serve(pod, 100)
        await told(site, ttftP95="88ms")
        metrics = first.metrics
    metrics.silent.add("*")
    async with running_berth(operator_kubeconfig, site.namespace, None, clock, metrics, **FAST) as second:
        seen = metrics.readings
        await eventually(lambda: _more(second, seen + 4))
        await site.until("MetricsAvailable", "False")
        await told(site, ttftP95="88ms")
        metrics.silent.clear()
        await site.until("MetricsAvailable")
