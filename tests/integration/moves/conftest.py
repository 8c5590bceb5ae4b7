"""Two pools, a deployment that Berth placed on the cheap one, and a clock that a test can move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.controller.conftest import Change, Site, clock, leaders, site
from tests.integration.placement.test_auto import automatic, pool
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import PATIENCE, eventually

__all__ = ["clock", "leaders", "site"]

REQUEST = "berth.dev/request"


@dataclass
class Stage:
    """A deployment of two groups that serves on pool `here`; `there` is another pool."""

    site: Site
    here: str
    there: str
    leaders: ScriptedLeaders
    clock: Clock

    async def ask(self, request: str) -> None:
        await self.site.patch({"metadata": {"annotations": {REQUEST: request}}})

    async def moves(self) -> dict[str, Any]:
        return dict((await self.site.get()).get("status", {}).get("moves") or {})

    async def reply(self) -> dict[str, Any]:
        return dict((await self.site.get()).get("status", {}).get("request") or {})

    async def serving_pools(self) -> list[str]:
        """The pool of each pod that may get requests."""
        pods = await self.site.pods()
        found = [each["metadata"]["labels"] for each in pods]
        return sorted(each["berth.dev/pool"] for each in found if each.get("berth.dev/serving") == "true")

    async def until_phase(self, *phases: str) -> dict[str, Any]:
        async def reached() -> dict[str, Any]:
            current: dict[str, Any] = (await self.moves()).get("current") or {}
            assert current.get("phase") in phases, (await self.site.get()).get("status")
            return current

        return await eventually(reached)

    async def hold(self, phase: str) -> dict[str, Any]:
        """A move that stays in this phase, as long as nothing else happens."""
        old = {pod["status"]["podIP"] for pod in await self.site.pods()}
        match phase:
            case "Reserving":
                await self.ask(f"move {self.there} bf16 tp8 x3")  # of two nodes
            case "WarmingUp":
                self.leaders.silent.add("*")
                await self.ask(f"move {self.there} bf16 tp1 x2")
            case "Judging":
                await self.ask(f"move {self.there} bf16 tp1 x2")
            case "Draining":
                self.leaders.in_flight_by_address |= dict.fromkeys(old, 1)
                await self.hold("Judging")
                self.clock.ahead += 1300
                await self.site.patch({"metadata": {"annotations": {"wake": "up"}}})
            case "Reverting":
                self.leaders.stubborn |= old
                await self.hold("Judging")
                await eventually(lambda: _all_of(old, self.leaders.draining))
                await self.ask("rollback")
        return await self.until_phase(phase)

    async def until_ended(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The move that ended last, once no group bears its marks."""

        async def over() -> dict[str, Any]:
            moves = await self.moves()
            assert moves.get("recent"), (await self.site.get()).get("status")
            assert "current" not in moves, moves
            marked = [g for g in await self.site.groups() if "berth.dev/move-id" in g["metadata"]["labels"]]
            assert not marked, marked
            ended: dict[str, Any] = moves["recent"][0]
            return ended

        return await eventually(over, timeout=timeout)


async def _all_of(wanted: set[str], found: set[str]) -> bool:
    return wanted <= found


def least_routed(changes: list[Change], before: int) -> int:
    """The fewest pods that got requests at any moment, out of every change of a pod in the server's order."""
    routed: dict[str, bool] = {}
    fewest: int | None = None
    for change in changes:
        metadata = change.object["metadata"]
        serving = metadata.get("labels", {}).get("berth.dev/serving") == "true"
        gone = change.type == "DELETED" or "deletionTimestamp" in metadata
        routed[change.name] = serving and not gone
        count = sum(routed.values())
        if count >= before or fewest is not None:
            fewest = count if fewest is None else min(fewest, count)
    return fewest or 0


def most_alive(changes: list[Change]) -> int:
    """The most pods at any moment that were not told to end, out of the same."""
    alive: set[str] = set()
    most = 0
    for change in changes:
        gone = change.type == "DELETED" or "deletionTimestamp" in change.object["metadata"]
        alive = alive - {change.name} if gone else alive | {change.name}
        most = max(most, len(alive))
    return most


@pytest.fixture
async def berth(
    operator_kubeconfig: Path, site: Site, leaders: ScriptedLeaders, clock: Clock
) -> AsyncIterator[RunningBerth]:
    async with running_berth(operator_kubeconfig, site.namespace, leaders, clock) as running:
        yield running


@pytest.fixture
async def stage(site: Site, berth: RunningBerth, leaders: ScriptedLeaders, clock: Clock) -> Stage:
    here = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
    there = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, pools=(here, there), replicaGroups={"minAvailable": 2}))
    await site.settled()
    found = Stage(site, here, there, leaders, clock)
    assert set(await found.serving_pools()) == {here}
    return found
