"""Long outages with the settings of an installation: whether anything healthy is removed during and after them.

    python -m benchmarks.bench_outages [--seconds 60 300] [--kind NAME ...] [--json FILE]

Run from the repository root. A real control plane with its usual patience (nodes are called not ready after 50 s of
silence), simulated nodes, the whole operator with default settings behind a fault proxy, in this process; when it ends
because it lost its Lease it is started again, as a kubelet does. Four groups on four nodes serve. Kinds of outage:

    stopped     the API server does not answer anybody: no Lease is renewed, no controller acts
    cut-off     only the operator cannot reach it
    isolated    the operator reaches neither it nor any leader

Afterwards the operator has so long again to do something wrong. Counted: deletions and creations (0 is the goal),
groups given up, requests cut off and given back, restarts of the operator, and whether all groups serve at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from berth.errors import BerthError
from berth.local import binaries
from berth.local.controlplane import PROGRAMS, ControlPlane
from berth.local.kwok import Kwok
from berth.settings import Settings
from tests.integration.controller.conftest import Site, own_site
from tests.support.berth import RunningBerth, ScriptedLeaders, start_berth
from tests.support.cluster import Cluster
from tests.support.fault_proxy import FaultProxy

KINDS: Final = ("stopped", "cut-off", "isolated")
AFTERWARDS: Final = 60.0
"""Seconds: longer than every patience of Berth and of the control plane."""


@dataclass
class Result:
    """One outage."""

    kind: str
    seconds: float
    deleted: int = 0
    created: int = 0
    given_up: int = 0
    cut_off: int = 0
    restarts: int = 0
    serving: int = 0
    healthy_after: float = 0.0
    """Seconds from the end of the outage until the deployment says that all is well."""

    @property
    def clean(self) -> bool:
        return (self.deleted, self.created, self.given_up, self.serving) == (0, 0, 0, 4)


class Operator:
    """Started again whenever it ends."""

    def __init__(self, kubeconfig: Path, namespace: str, leaders: ScriptedLeaders) -> None:
        self._kubeconfig, self._namespace, self._leaders = kubeconfig, namespace, leaders
        self.starts = 0
        self.now: RunningBerth | None = None

    async def run(self) -> None:
        names = ("lease_duration", "lease_renew_deadline", "lease_retry", "canary_interval")
        usual = {name: getattr(Settings(), name) for name in names}
        while True:
            self.starts += 1
            with suppress(BerthError, AssertionError):
                self.now = await start_berth(self._kubeconfig, self._namespace, self._leaders, **usual)
                await self.now.task
            await asyncio.sleep(1)

    async def stop(self) -> None:
        if self.now is not None and not self.now.task.done():
            await self.now.kill()


async def outage(kind: str, seconds: float, plane: ControlPlane, proxy: FaultProxy, leaders: ScriptedLeaders) -> None:
    if kind == "stopped":
        plane.apiserver.pause()
    else:
        proxy.partition()
    if kind == "isolated":
        leaders.unreachable.add("*")
        leaders.silent.add("*")
    await asyncio.sleep(seconds)
    if kind == "stopped":
        plane.apiserver.resume()
    else:
        proxy.heal()
        proxy.cut()
    leaders.unreachable.clear()
    leaders.silent.clear()


async def measure(kind: str, seconds: float, plane: ControlPlane, site: Site, folder: Path) -> Result:
    leaders = ScriptedLeaders()
    async with FaultProxy(plane) as proxy:
        path = folder / f"{kind}-{seconds:g}.kubeconfig"
        plane.write_kubeconfig(path, token=plane.token, server=proxy.url)
        operator = Operator(path, site.namespace, leaders)
        running = asyncio.create_task(operator.run())
        try:
            await site.create(site.deployment(await site.pool(nodes=4), tp=8, groups=4))
            await site.settled(timeout=120)
            before, writes, starts = (
                {pod["metadata"]["uid"] for pod in await site.pods()},
                len(proxy.writes),
                operator.starts,
            )
            await outage(kind, seconds, plane, proxy, leaders)
            ended = time.monotonic()
            await site.settled(timeout=180)
            result = Result(kind, seconds, healthy_after=time.monotonic() - ended)
            await asyncio.sleep(AFTERWARDS)
            await site.settled(timeout=60)
            done = [call for call in proxy.writes[writes:] if call.resource not in ("events", "leases")]
            result.deleted = sum(call.verb == "delete" for call in done)
            result.created = sum(call.verb == "create" for call in done)
            lives = {group["metadata"]["labels"]["berth.dev/lifecycle"]: 1 for group in await site.groups()}
            result.given_up = len(before - {pod["metadata"]["uid"] for pod in await site.pods()}) + len(lives) - 1
            result.cut_off = await cut_off(site)
            result.restarts = operator.starts - starts
            result.serving = len(await site.serving())
            return result
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await operator.stop()


async def cut_off(site: Site) -> int:
    """How often a group lost its requests on suspicion, by what people are told."""
    return sum(event["reason"] == "GroupUnreachable" for event in await site.events())


@asynccontextmanager
async def stage() -> AsyncIterator[tuple[ControlPlane, Cluster, Path]]:
    binaries.provide([*PROGRAMS, "kwok"])
    with tempfile.TemporaryDirectory() as folder:
        async with ControlPlane(Path(folder)) as plane:
            kwok = Kwok(plane.kubeconfig, plane.directory)
            kwok.start()
            try:
                async with Cluster(plane.kubeconfig) as cluster:
                    yield plane, cluster, Path(folder)
            finally:
                kwok.kill()


async def run(kinds: list[str], lengths: list[float]) -> list[Result]:
    results = []
    async with stage() as (plane, cluster, folder):
        for kind in kinds:
            for seconds in lengths:
                async with own_site(cluster, "outage") as site:
                    results.append(await measure(kind, seconds, plane, site, folder))
                print(f"{kind} for {seconds:g} s: {results[-1]}", file=sys.stderr, flush=True)
    return results


def table(results: list[Result]) -> str:
    head = "outage      length  deleted  created  given up  cut off  operator restarts  serving  all well after"
    rows = [
        f"{each.kind:<10} {each.seconds:5.0f} s  {each.deleted:7}  {each.created:7}  {each.given_up:8}"
        f"  {each.cut_off:7}  {each.restarts:17}  {each.serving:5}/4  {each.healthy_after:12.1f} s"
        for each in results
    ]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path, help="one line per outage is appended here")
    arguments = parser.parse_args()
    results = asyncio.run(run(arguments.kind, arguments.seconds))
    print(table(results))
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(asdict(each)) + "\n" for each in results)
    if not all(each.clean for each in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
