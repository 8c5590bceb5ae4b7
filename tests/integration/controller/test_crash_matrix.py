"""Every write can be Berth's last: it is killed after each n-th write of each sequence, restarts, and must end where
the undisturbed run ends, with as many pods created on the way (one more where the loss itself was in flight).

Odd numbers also lose every status in between, since status is output.
"""

from __future__ import annotations

import asyncio
import gc
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth, start_berth
from tests.support.cluster import Cluster, eventually
from tests.support.fault_proxy import Call, FaultProxy
from tests.support.rights import nothing_is_refused
from tests.support.write_sequences import SEQUENCES, WriteSequence

AT_ONCE = 4
MEASURED = ("MetricsAvailable", "ObjectivesMet")
"""They follow the clock: a successor has not measured yet, however far it is."""


def counted(call: Call) -> bool:
    """Leases follow the clock and Events are not part of any sequence."""
    return call.resource not in ("leases", "events")


@dataclass
class Ending:
    """What is compared: the world at the end, and what it cost."""

    world: dict[str, Any]
    pods_created: int
    writes: int = 0
    trace: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What Events warned of, for whoever has to find out why it ended elsewhere."""


@asynccontextmanager
async def own_site(cluster: Cluster) -> AsyncIterator[Site]:
    tag = secrets.token_hex(4)
    async with cluster.namespace(f"crash-{tag}") as namespace:
        yield Site(cluster, namespace, tag)
    for kind in ("gpupools", "nodes"):
        for each in await cluster.list(kind):
            if f"-{tag}-" in each["metadata"]["name"]:
                await cluster.delete(kind, each["metadata"]["name"])


@asynccontextmanager
async def berth_behind(
    proxy: FaultProxy, kubeconfig: Path, folder: Path, site: Site, settings: Mapping[str, float]
) -> AsyncIterator[RunningBerth]:
    """An operator whose every request passes the proxy; gone at the end, whatever happened."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = proxy.url
    path = folder / f"{secrets.token_hex(4)}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    # Many run at once, each is late at times, and none shall lose its Lease; the Lease of the killed one is deleted.
    lease = {"lease_duration": 300.0, "lease_renew_deadline": 290.0}
    nodes = {"node_late": 5.0, "node_silent": 8.0, "gpu_fault_hold": 0.0, **settings}
    berth = await start_berth(path, site.namespace, site.leaders, site.clock, **lease, **nodes)
    try:
        yield berth
    finally:
        await berth.kill()


async def run(
    sequence: WriteSequence,
    kill_after: int | None,
    control_plane: ControlPlane,
    kubeconfig: Path,
    cluster: Cluster,
    folder: Path,
) -> Ending:
    """One run of a sequence; with `kill_after`, Berth dies after that write of it and another takes over."""
    async with (
        own_site(cluster) as site,
        FaultProxy(control_plane, counted=counted) as proxy,
        berth_behind(proxy, kubeconfig, folder, site, sequence.settings) as berth,
    ):
        pool = await site.pool()
        await sequence.prepare(site, pool)
        before = sum(map(counted, proxy.writes))
        died, over = asyncio.Event(), asyncio.Event()
        if kill_after is not None:

            def kill(call: Call) -> None:
                if over.is_set():  # a write after the end, while Berth is told to stop
                    return
                proxy.partition()
                berth.task.cancel()
                died.set()

            proxy.after_write(before + kill_after, kill, lose_reply=True)
        await sequence.act(site, pool)
        finished = asyncio.create_task(sequence.finished(site, pool))
        await asyncio.wait([finished, asyncio.create_task(died.wait())], return_when=asyncio.FIRST_COMPLETED)
        if kill_after is None or not died.is_set():  # passes coalesce: this run may take fewer writes than the first
            over.set()
            await finished
            await groups_as_told(site)
            await berth.stop()
            return await ending(site, sequence, proxy.writes, before)
        finished.cancel()
        await asyncio.gather(berth.task, finished, return_exceptions=True)
        await cluster.delete("leases", "berth-operator", site.namespace)
        if kill_after % 2:
            await site.wipe_status()
        async with (
            FaultProxy(control_plane, counted=counted) as second,
            berth_behind(second, kubeconfig, folder, site, sequence.settings) as successor,
        ):
            await sequence.finished(site, pool)
            await groups_as_told(site)
            await successor.stop()
            return await ending(site, sequence, [*proxy.writes, *second.writes], before)


async def groups_as_told(site: Site) -> None:
    """Returns once ReplicaGroups say of themselves what their deployment says of them.

    Where Berth dies between a record and what it is about, its successor takes the record back and makes it anew; the
    deployment may be Ready before the echo of the first has shown that the second was needed.
    """

    async def agree() -> bool:
        told: Counter[str] = Counter()
        for each in await site.cluster.list("llmdeployments", site.namespace):
            told.update(each["status"].get("groupCounts") or {})
        said = Counter(each.get("status", {}).get("state") for each in await site.groups())
        assert said == told, (said, told)
        return True

    await eventually(agree)


async def ending(site: Site, sequence: WriteSequence, writes: list[Call], before: int) -> Ending:
    relevant = list(filter(counted, writes))
    created = sum(call.verb == "create" and call.resource == "pods" for call in relevant[before:])
    trace = [f"{call.verb} {call.resource}{'/' + call.subresource if call.subresource else ''}" for call in relevant]
    warnings = [each["note"] for each in await site.events() if each["type"] == "Warning"]
    found = await world(site, numbered=sequence.numbered)
    return Ending(found, created, len(relevant) - before, trace[before:], warnings)


async def world(site: Site, *, numbered: bool) -> dict[str, Any]:
    """What must be the same at the end, without what names and times make different; `numbered`: with incarnations."""

    async def all_of(kind: str) -> list[dict[str, Any]]:
        return await site.cluster.list(kind, site.namespace)

    def label(obj: dict[str, Any], name: str) -> str | None:
        return obj["metadata"].get("labels", {}).get(f"berth.dev/{name}")

    deployments = [
        {
            "summary": {name: _without_pools(words) for name, words in each["status"]["summary"].items()},
            "conditions": {
                c["type"]: (c["status"], c["reason"]) for c in each["status"]["conditions"] if c["type"] not in MEASURED
            },
            "groupCounts": each["status"].get("groupCounts"),
            "request": (each["status"].get("request") or {}).get("result"),
        }
        for each in await all_of("llmdeployments")
    ]
    return {
        "deployments": sorted(deployments, key=repr),
        "groups": sorted(
            (
                label(each, "group"),
                label(each, "incarnation") if numbered else "",
                label(each, "lifecycle"),
                each["status"]["state"],
            )
            for each in await all_of("replicagroups")
        ),
        "pods": sorted(
            (label(each, "group"), label(each, "member-index"), label(each, "serving") or "", each["status"]["phase"])
            for each in await all_of("pods")
            if label(each, "group")
        ),
        "services": len(await all_of("services")),
        "budgets": len(await all_of("poddisruptionbudgets")),
    }


def differences(found: Any, wanted: Any, where: str = "") -> str:
    """What is not the same, without all that is."""
    if found == wanted:
        return ""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (differences(found.get(key), wanted.get(key), f"{where}.{key}") for key in {**wanted, **found})
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        parts = (differences(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(found, wanted, strict=True)))
    else:
        return f"{where} {found} instead of {wanted}"
    return "; ".join(filter(None, parts))


def _without_pools(words: str) -> str:
    """Names of pools are made up anew in each run."""
    return re.sub("(h100|a100)-[0-9a-f]{8}-[0-9a-f]{4}", "POOL", words)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the killed close no connections
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
async def test_killed_after_any_write_it_ends_where_it_would_have(
    sequence: WriteSequence,
    control_plane: ControlPlane,
    operator_kubeconfig: Path,
    kwok: Kwok,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    await cluster.install_crds()
    reference = await run(sequence, None, control_plane, operator_kubeconfig, cluster, tmp_path)
    places = asyncio.Semaphore(AT_ONCE)

    async def disturbed(number: int) -> str:
        async with places:
            found = await run(sequence, number, control_plane, operator_kubeconfig, cluster, tmp_path)
        after = reference.trace[number - 1]
        if found.world != reference.world:
            unlike = differences(found.world, reference.world)
            return f"killed after write {number} ({after}): ends with {unlike} ({found.warnings})"
        if not reference.pods_created <= found.pods_created <= reference.pods_created + 1:
            return f"killed after write {number} ({after}): {found.pods_created} pods created"
        return ""

    with nothing_is_refused():
        complaints = await asyncio.gather(*(disturbed(number) for number in range(1, reference.writes + 1)))
    gc.collect()  # whatever the killed left behind is complained of here and not in another test
    found = [complaint for complaint in complaints if complaint]
    assert not found, f"undisturbed: {reference.world}\n" + "\n".join(found)
