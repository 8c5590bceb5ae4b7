"""What a deployment costs the API server: requests by verb and passes from creation to Ready, and nothing when idle.

Counts, not times. `benchmarks/data/scale.json` has what was recorded; what is a fifth above that fails here.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from benchmarks.bench_scale import RANGES, READS, TOLERANCE, Page
from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth, running_berth
from tests.support.cluster import eventually

DEPLOYMENTS = 30
IDLE_SECONDS = 6.0
"""Readings of metrics come every half second here: twelve of them."""


def page(berth: RunningBerth) -> Page:
    return Page(berth.app.metrics.render().decode())


def per_deployment(before: Page, after: Page) -> dict[str, float]:
    """Leases left out: they follow the clock."""
    calls = after.calls_by_kind - before.calls_by_kind
    counts = dict.fromkeys(("create", "apply", "patch", "delete", "read"), 0)
    for (verb, kind), count in calls.items():
        if verb != "watch" and kind != "Lease":
            counts["read" if verb in READS else verb] += count
    counts["pass"] = after.passes - before.passes
    return {name: round(count / DEPLOYMENTS, 2) for name, count in counts.items()}


async def test_a_deployment_costs_what_was_recorded_and_nothing_once_it_is_idle(
    operator_kubeconfig: Path, site: Site
) -> None:
    pool = await site.pool(nodes=-(-DEPLOYMENTS // 8) + 1)
    async with running_berth(
        operator_kubeconfig,
        site.namespace,
        site.leaders,
        metrics_interval=0.5,
        metrics_warm_up=0.0,
        canary_interval=5.0,
    ) as berth:
        before = page(berth)
        names = [f"llama-{number}" for number in range(DEPLOYMENTS)]
        await asyncio.gather(*(site.create(site.deployment(pool, name, tp=1, groups=1)) for name in names))

        async def all_ready() -> bool:
            return sum(map(is_ready, await site.cluster.list("llmdeployments", site.namespace))) == DEPLOYMENTS

        await eventually(all_ready, timeout=120)
        found = per_deployment(before, page(berth))

        async def idle() -> bool:
            writes = page(berth).writes
            await asyncio.sleep(IDLE_SECONDS)
            return page(berth).writes == writes

        await eventually(idle, timeout=60)
    recorded = json.loads(RANGES.read_text())[f"test of {DEPLOYMENTS}"]
    worse = {name: (count, recorded[name]) for name, count in found.items() if count > TOLERANCE * recorded[name]}
    assert not worse, f"per deployment (found, recorded): {worse}; all: {found}"


def is_ready(deployment: dict[str, object]) -> bool:
    status = deployment.get("status")
    conditions = status.get("conditions", ()) if isinstance(status, dict) else ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
