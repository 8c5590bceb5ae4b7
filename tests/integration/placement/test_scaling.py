"""scaling.mode Auto on a real control plane: the number of groups follows what leaders measure; pages are injected."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.controller.conftest import Site
from tests.integration.placement.test_auto import automatic, placed, pool
from tests.support.berth import Clock, RunningBerth, running_berth
from tests.support.cluster import eventually

STEP = 50.0
"""Seconds of the operator's clock between two readings that a test makes; more than a minute says nothing."""
ONE_GROUP = {"timeToFirstToken": {"p95": "1s"}, "timePerOutputToken": {"p95": "50ms"}}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def berth(operator_kubeconfig: Path, site: Site, clock: Clock) -> AsyncIterator[RunningBerth]:
    settings: dict[str, object] = {"metrics_interval": 0.3, "metrics_warm_up": 0.0}
    async with running_berth(operator_kubeconfig, site.namespace, None, clock, **settings) as running:
        yield running


async def busy(site: Site, berth: RunningBerth, clock: Clock, rate: float, steps: int, **latency: float) -> None:
    """So many steps of the clock in which the leaders that serve share `rate` requests per second."""
    for _ in range(steps):
        pods = sorted(await site.serving())
        clock.ahead += STEP
        for pod in pods:
            berth.metrics.serve(pod, round(rate * STEP / len(pods)), **latency)
        seen = berth.metrics.readings + 2 * len(pods)
        await eventually(lambda seen=seen: _reached(berth, seen))


async def _reached(berth: RunningBerth, readings: int) -> bool:
    return berth.metrics.readings >= readings


async def look(site: Site, clock: Clock) -> None:
    await site.patch({"metadata": {"annotations": {"look": str(clock.ahead)}}})


async def groups_become(site: Site, count: int) -> dict[str, Any]:
    async def check() -> dict[str, Any]:
        found = await site.get()
        assert "placement" in found.get("status", {}), "no status yet"
        assert placed(found)["groups"] == count, found["status"]["placement"]
        return found

    return await eventually(check)


async def one_group(site: Site, berth: RunningBerth, rate: str = "1", **spec: Any) -> str:
    """A deployment that one group of one pool carries."""
    name = await pool(site, "A100-SXM-40")
    deployment = automatic(site, pools=(name,), objectives=ONE_GROUP, **spec)
    deployment["spec"]["traffic"] = {**deployment["spec"]["traffic"], "requestsPerSecond": rate}
    await site.cluster.create(deployment)
    assert placed(await site.settled())["groups"] == 1
    return name


async def test_more_requests_bring_more_groups_within_the_bounds(site: Site, berth: RunningBerth, clock: Clock) -> None:
    await one_group(site, berth, scaling={"mode": "Auto", "min": 1, "max": 3})
    await busy(site, berth, clock, rate=60.0, steps=5)
    await look(site, clock)
    status = (await groups_become(site, 3))["status"]
    assert "per second take" in status["placement"]["reason"]
    assert status["placement"]["groupsForTraffic"] == 3
    settled = await site.settled()
    assert settled["status"]["needed"] == 3
    assert len(await site.serving()) == 3
    told = [each for each in await site.events() if each["reason"] == "PlacementDecided"]
    assert "x 3" in told[-1]["note"]


async def test_nothing_changes_in_manual_scaling(site: Site, berth: RunningBerth, clock: Clock) -> None:
    await one_group(site, berth, scaling={"mode": "Manual"}, replicas=1)
    await busy(site, berth, clock, rate=60.0, steps=5)
    await look(site, clock)
    await site.until("Progressing", "False")
    assert len(await site.groups()) == 1
    await site.patch({"spec": {"replicas": 2}})
    await eventually(lambda: _serving(site, 2))
    await busy(site, berth, clock, rate=60.0, steps=5)
    await look(site, clock)
    await site.until("Progressing", "False")
    assert len(await site.serving()) == 2


async def _serving(site: Site, count: int) -> bool:
    return len(await site.serving()) == count


async def test_while_metrics_are_missing_nothing_changes(site: Site, berth: RunningBerth, clock: Clock) -> None:
    await one_group(site, berth, scaling={"mode": "Auto", "max": 3})
    await busy(site, berth, clock, rate=60.0, steps=2)
    berth.metrics.silent.add("*")
    clock.ahead += 40
    await site.until("MetricsAvailable", "False")
    for pod in await site.serving():
        berth.metrics.serve(pod, 20_000)
    await look(site, clock)
    await site.until("Progressing", "False")
    assert placed(await site.get())["groups"] == 1
    berth.metrics.silent.clear()
    await busy(site, berth, clock, rate=60.0, steps=5)
    await look(site, clock)
    await groups_become(site, 3)


async def test_groups_and_their_number_survive_a_wiped_status(site: Site, berth: RunningBerth, clock: Clock) -> None:
    await one_group(site, berth, scaling={"mode": "Auto", "max": 3})
    await busy(site, berth, clock, rate=60.0, steps=5)
    await look(site, clock)
    await groups_become(site, 3)
    await site.settled()
    await site.cluster.patch("llmdeployments", "llama", site.namespace, {"status": None}, subresource="status")
    await groups_become(site, 3)
    assert len((await site.settled())["status"]["groups"]) == 3


async def test_an_objective_that_no_number_of_groups_meets_is_said_to_limit_scaling(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    """One request alone takes nearly as long as it may, so its misses bring no group."""
    await one_group(site, berth, rate="0.1", scaling={"mode": "Auto", "min": 1, "max": 3})
    predicted = (await site.get())["status"]["placement"]["predicted"]["tpotP95"]
    tight = f"{1.04 * float(predicted.removesuffix('ms')):.1f}ms"
    await site.patch({"spec": {"objectives": {"timePerOutputToken": {"p95": tight}}}})
    await site.settled()
    await busy(site, berth, clock, rate=1.0, steps=5, tpot=0.04)
    await look(site, clock)
    await site.until("ScalingLimited")
    limited = await site.condition("ScalingLimited")
    assert limited["reason"] == "ObjectiveOutOfReach"
    assert "timePerOutputToken" in limited["message"]
    await site.until("Progressing", "False")
    assert placed(await site.get())["groups"] == 1

    await site.patch({"spec": {"objectives": {"timePerOutputToken": {"p95": "50ms"}}}})
    await look(site, clock)
    await site.until("ScalingLimited", "False")
    assert (await site.condition("ScalingLimited"))["reason"] == "ScalesWithTraffic"


async def test_advice_is_told_a_move_without_surge_is_held_and_with_surge_it_begins(
    site: Site, berth: RunningBerth, clock: Clock
) -> None:
    """One group is all that is allowed and it is overloaded for an hour; a larger one elsewhere would do."""
    scaling, moves = {"mode": "Auto", "max": 1}, {"mode": "Advise"}
    small = await one_group(site, berth, scaling=scaling)
    large = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    placement = {"mode": "Auto", "pools": [small, large], "moves": moves}
    await site.patch({"spec": {"placement": placement}})
    await site.settled()
    rate = 12.0
    await busy(site, berth, clock, rate, steps=70, tpot=0.08)
    await look(site, clock)
    found = await site.until("PlacementOutdated")
    outdated = next(each for each in found["status"]["conditions"] if each["type"] == "PlacementOutdated")
    assert outdated["reason"] == "BetterPlacement"
    assert large in outdated["message"]
    first, *others = found["status"]["candidates"]
    assert first["allocations"][0]["pool"] == large
    assert [each["allocations"][0]["pool"] for each in others if each["chosen"]] == [small]
    assert {group["spec"]["allocation"]["pool"] for group in await site.groups()} == {small}

    async def told() -> bool:
        return "BetterPlacement" in {each["reason"] for each in await site.events()}

    await eventually(told)  # an Event comes after the status it tells of

    async def decided_anew(**spec: Any) -> None:
        """After the pause between two close looks."""
        await site.patch({"spec": spec})
        await site.until("Accepted")  # of this spec; what it allows may begin in the same pass
        await busy(site, berth, clock, rate, steps=8, tpot=0.08)
        await look(site, clock)

    placement["moves"] = {"mode": "Auto"}
    await decided_anew(placement=placement, update={"surge": "Never", "maxUnavailable": 1})

    async def held() -> bool:
        moves = (await site.get())["status"].get("moves", {})
        assert moves.get("hold", {}).get("reason") == "NoSurgePossible", moves
        assert large in moves["hold"]["message"], moves
        assert "update.surge is Never" in moves["hold"]["message"], moves
        assert not moves.keys() & {"current", "recent"}, moves
        return True

    await eventually(held)
    outdated = await site.condition("PlacementOutdated")
    assert (outdated["status"], outdated["reason"]) == ("True", "NoSurgePossible")
    assert {group["spec"]["allocation"]["pool"] for group in await site.groups()} == {small}

    await decided_anew(update={"surge": "WhenCapacity", "maxUnavailable": 0})

    async def moving() -> bool:
        moves = (await site.get())["status"].get("moves", {})
        assert moves.get("current", {}).get("to", [{}])[0].get("pool") == large, moves
        assert "hold" not in moves, moves
        return True

    await eventually(moving)
