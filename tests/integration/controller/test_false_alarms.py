"""Nothing healthy is ever removed: the API server away, late, lying or refusing, Berth cut off, plugins that flap.

Every scenario lasts longer than all of Berth's patience, on the real API server behind a fault proxy, and ends well.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from berth.local.controlplane import ControlPlane
from tests.integration.controller.conftest import Site
from tests.integration.controller.test_nodes_fail import report_gpu
from tests.support.berth import Clock, RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import eventually
from tests.support.fault_proxy import BreakWatch, Call, Delay, FaultProxy, LoseReply, Refuse, Stale

SETTINGS = {
    "node_late": 3.0,
    "node_silent": 4.5,
    "gpu_fault_hold": 8.0,  # a flap takes half a second, and longer where the machine is busy
    "watch": 5.0,
    # The process lives through every outage here: what it remembers must not mislead it afterwards.
    "lease_duration": 120.0,
    "lease_renew_deadline": 110.0,
    "lease_retry": 1.0,
}
LONG = 10.0
"""Seconds: twice the silence after which a node is given up."""
AFTERWARDS = 5.0
"""Seconds in which what was misunderstood would be acted on."""


@dataclass
class Scene:
    site: Site
    proxy: FaultProxy
    leaders: ScriptedLeaders
    clock: Clock
    berth: RunningBerth
    control_plane: ControlPlane

    async def nodes(self) -> list[str]:
        return sorted({pod["spec"]["nodeName"] for pod in await self.site.pods()})

    async def touch(self) -> None:
        """Passes go on whatever happens: each could be the one that acts wrongly."""
        with contextlib.suppress(Exception):
            await self.site.patch({"metadata": {"annotations": {"touched": secrets.token_hex(4)}}})

    async def endure(self, seconds: float = LONG) -> None:
        """What must not happen has no event that could be awaited: so much time passes, pass by pass."""
        for _ in range(int(seconds)):
            await self.touch()
            await asyncio.sleep(1)

    async def looked(self, times: int = 2) -> None:
        """Waits until Berth has read the Leases of the nodes so many times more."""

        def reads() -> int:
            return sum(
                call.permission == ("list", "coordination.k8s.io", "leases") and call.status == 200
                for call in self.proxy.calls
            )

        before = reads()

        async def read_again() -> bool:
            return reads() >= before + times

        await eventually(read_again)


@asynccontextmanager
async def scene(
    site: Site,
    control_plane: ControlPlane,
    operator_token: str,
    leaders: ScriptedLeaders,
    clock: Clock,
    folder: Path,
) -> AsyncIterator[Scene]:
    """Four groups of a pool of four nodes serve; nothing but writes of metadata and status may happen from then on."""
    async with FaultProxy(control_plane) as proxy:
        path = folder / "berth.kubeconfig"
        control_plane.write_kubeconfig(path, token=operator_token, server=proxy.url)
        async with running_berth(path, site.namespace, leaders, clock, **SETTINGS) as berth:
            await site.create(site.deployment(await site.pool(nodes=4), tp=8, groups=4))
            await site.settled()
            yield Scene(site, proxy, leaders, clock, berth, control_plane)


async def nothing_at_all(scene: Scene) -> None:
    await scene.endure()


async def api_server_down(scene: Scene) -> None:
    """And nobody can be reached either, as when Berth's own network is gone."""
    scene.proxy.partition()
    scene.leaders.unreachable.add("*")
    await asyncio.sleep(LONG)  # nothing can be seen of Berth meanwhile, and what it must not do has no event
    scene.proxy.heal()
    scene.proxy.cut()
    await scene.looked()
    scene.leaders.unreachable.clear()
    await scene.endure(4)


async def api_server_slow(scene: Scene) -> None:
    rule = scene.proxy.inject(Delay(3.0))
    await scene.endure()
    scene.proxy.withdraw(rule)


async def watches_stalled(scene: Scene) -> None:
    rule = scene.proxy.inject(BreakWatch("freeze"), verb="watch")
    scene.proxy.cut()
    await scene.endure()
    scene.proxy.withdraw(rule)


async def refusals(scene: Scene) -> None:
    """Three of four requests, of all kinds of errors."""
    count = iter(range(10**9))
    for status, retry in ((429, 1), (500, None), (503, None)):
        number = {429: 0, 500: 1, 503: 2}[status]
        scene.proxy.inject(
            Refuse(status, retry_after=retry), where=lambda call, number=number: next(count) % 4 == number
        )
    await scene.endure()
    scene.proxy._rules.clear()


async def lost_replies(scene: Scene) -> None:
    def is_write(call: Call) -> bool:
        return call.verb in ("create", "patch", "delete", "update")

    rule = scene.proxy.inject(LoseReply(), where=is_write)
    await scene.endure()
    scene.proxy.withdraw(rule)


async def stale_reads(scene: Scene) -> None:
    """A server that lags behind: no Lease is ever seen to change."""
    rule = scene.proxy.inject(Stale(), verb="list")
    scene.leaders.unreachable.add("*")
    await scene.endure()
    scene.proxy.withdraw(rule)
    scene.leaders.unreachable.clear()


async def clock_skew(scene: Scene) -> None:
    for ahead in (300.0, -300.0, 0.0):
        scene.clock.ahead = ahead
        await scene.endure(LONG / 2)


async def berth_blocked(scene: Scene) -> None:
    """A NetworkPolicy, or a mesh that refuses Berth: clients are served, Berth reaches nobody."""
    scene.leaders.unreachable.add("*")
    scene.leaders.silent.add("*")
    await scene.endure()
    scene.leaders.unreachable.clear()
    scene.leaders.silent.clear()


async def one_leader_blocked(scene: Scene) -> None:
    scene.leaders.unreachable.add((await scene.site.pods())[0]["status"]["podIP"])
    await scene.endure()
    scene.leaders.unreachable.clear()


async def kubelets_cut_off(scene: Scene) -> None:
    """Leases stop, and all that they stand for is well: leaders answer."""
    nodes = await scene.nodes()
    for node in nodes:
        await scene.site.cluster.kill_node(node)
    await scene.endure()
    await scene.site.revive(*nodes)


async def everything_silent(scene: Scene) -> None:
    """Leases of the whole pool stop and Berth reaches nobody: the pool, or Berth? Nobody can tell, so it is frozen."""
    nodes = await scene.nodes()
    scene.leaders.unreachable.add("*")
    for node in nodes:
        await scene.site.cluster.kill_node(node)

    async def frozen() -> bool:
        return (await scene.site.condition("EvacuationsFrozen")).get("status") == "True"

    async def said_of_the_pool() -> bool:
        pool = await scene.site.cluster.get("gpupools", nodes[0].rpartition("-")[0])
        return any(
            (each["type"], each["status"]) == ("EvacuationsFrozen", "True") for each in pool["status"]["conditions"]
        )

    await eventually(frozen)
    await eventually(said_of_the_pool)
    assert "berth_evacuation_freezes_total 1.0" in scene.berth.app.metrics.render().decode()
    await scene.endure()
    await scene.site.revive(*nodes)
    await scene.looked()
    scene.leaders.unreachable.clear()


async def overload(scene: Scene) -> None:
    """Queues so full that no canary comes through, and engines that work all the time."""
    scene.leaders.silent.add("*")
    for pod in await scene.site.pods():
        scene.leaders.in_flight_by_address[pod["status"]["podIP"]] = 900
    await scene.endure()
    scene.leaders.silent.clear()
    scene.leaders.in_flight_by_address.clear()


async def device_plugin_flaps(scene: Scene) -> None:
    """It restarts again and again: all GPUs gone, health unknown, some unhealthy for a moment, all back."""
    pods = await scene.site.pods()

    async def offer(gpus: int) -> None:
        for node in await scene.nodes():
            amounts = {"allocatable": {"nvidia.com/gpu": str(gpus)}}
            await scene.site.cluster.patch("nodes", node, None, {"status": amounts}, subresource="status")

    for _ in range(3):
        await offer(0)
        for pod in pods:
            await report_gpu(scene.site, pod, "Unknown")
        await scene.endure(4)
        await report_gpu(scene.site, pods[0], "Unhealthy")
        await asyncio.sleep(0.5)  # the flap itself: far shorter than what has to last to be believed
        for pod in pods:
            await report_gpu(scene.site, pod, "Healthy")
        await offer(8)
        await scene.endure(2)


SCENARIOS: list[Callable[[Scene], Awaitable[None]]] = [
    nothing_at_all,
    api_server_down,
    api_server_slow,
    watches_stalled,
    refusals,
    lost_replies,
    stale_reads,
    clock_skew,
    berth_blocked,
    one_leader_blocked,
    kubelets_cut_off,
    everything_silent,
    overload,
    device_plugin_flaps,
]


async def pods_by_uid(site: Site) -> dict[str, dict[str, Any]]:
    return {pod["metadata"]["uid"]: pod for pod in await site.pods()}


@pytest.mark.parametrize("happens", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_nothing_healthy_is_removed_or_cut_off_for_good(
    happens: Callable[[Scene], Awaitable[None]],
    site: Site,
    control_plane: ControlPlane,
    operator_token: str,
    leaders: ScriptedLeaders,
    clock: Clock,
    tmp_path: Path,
) -> None:
    async with scene(site, control_plane, operator_token, leaders, clock, tmp_path) as stage:
        before = await pods_by_uid(site)
        done = len(stage.proxy.writes)
        await happens(stage)
        await stage.endure(AFTERWARDS)
        await site.settled()
        assert set(await pods_by_uid(site)) == set(before)
        removed = [call for call in stage.proxy.writes[done:] if call.verb == "delete"]
        made = [call for call in stage.proxy.writes[done:] if call.verb == "create" and call.resource != "events"]
        assert removed == made == []
        assert {group["metadata"]["labels"]["berth.dev/lifecycle"] for group in await site.groups()} == {"committed"}
        assert len(await site.serving()) == 4
        metrics = stage.berth.app.metrics.render().decode()
        assert "berth_group_failures_total{" not in metrics
