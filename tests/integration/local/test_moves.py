"""Moves with real Triton under load: what a deployment leaves, what it comes back to, and that no request is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from berth.local.demo.client import Replay
from tests.integration.local.conftest import LocalCluster, gone, network_of
from tests.integration.local.test_serving import deleted, leaders, one
from tests.support.cluster import Cluster, Manifest, eventually

pytestmark = pytest.mark.triton

NAME = "llama"
LIMIT = 240.0
RATE = 8
"""Requests per second."""
SLOW = "4"
"""Times a step on the slow pool: far beyond the objective, which both pools meet by far as they are."""


@pytest.fixture(scope="module")
def moving_site(triton: None, state: Path) -> Iterator[LocalCluster]:
    """Two pools of one node each, and an operator for whom an hour is over in twenty seconds."""
    cluster = LocalCluster("moving", state)
    cluster.environment |= {
        "BERTH_DECISION_HOUR": "20",
        "BERTH_METRICS_INTERVAL": "0.5",
        "BERTH_METRICS_WARM_UP": "0",
        "BERTH_RESYNC": "5",
    }
    cluster.run("up", "--pool", "h100=1x2", "--pool", "a100-40=1x2")
    network = network_of(cluster.status())
    yield cluster
    cluster.run("down")
    gone(cluster, network)


def deployment() -> Manifest:
    source = {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}}
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "model": {
                "name": "llama-3.1-8b-instruct",
                "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
            },
            "traffic": {
                "requestsPerSecond": str(RATE),
                "inputTokens": {"mean": 50, "p95": 60, "max": 4000},
                "outputTokens": {"mean": 20, "p95": 25, "maxRequested": 1024},
            },
            "objectives": {"timeToFirstToken": {"p95": "2s"}, "timePerOutputToken": {"p95": "36ms"}},
            "scaling": {"min": 1, "max": 1},
            "placement": {"mode": "Auto", "moves": {"cooldown": "1m"}},
            "engine": {"backend": "simulated"},
        },
    }


@asynccontextmanager
async def traffic(address: str) -> AsyncIterator[Replay]:
    """Until the block ends; then every request has ended too."""
    replay = Replay(address, [one(number / RATE, 20) for number in range(RATE * 600)])
    running = asyncio.create_task(replay.run())
    try:
        yield replay
        replay.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def status_of(api: Cluster) -> dict[str, Any]:
    status: dict[str, Any] = (await api.get("llmdeployments", NAME, "default")).get("status") or {}
    return status


async def until_serving(api: Cluster, site: LocalCluster) -> str:
    """The pool it serves on."""

    async def ready() -> bool:
        status = await status_of(api)
        assert any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())), status
        return len(await leaders(api)) == 1

    await eventually(ready, timeout=LIMIT)
    return str((await status_of(api))["placement"]["allocations"][0]["pool"])


async def ended(api: Cluster, before: int) -> dict[str, Any]:
    """The move that ended after `before` others, once nothing bears its marks."""

    async def told() -> dict[str, Any]:
        status = await status_of(api)
        moves = status.get("moves") or {}
        recent = moves.get("recent") or []
        assert len(recent) > before, json.dumps(status)
        assert "current" not in moves
        found: dict[str, Any] = recent[0]
        return found

    return await eventually(told, timeout=LIMIT)


@pytest.mark.timeout(900)
async def test_a_pool_that_becomes_slow_is_left_and_what_is_worse_is_given_back_without_a_lost_request(
    moving_site: LocalCluster,
) -> None:
    site = moving_site
    async with Cluster(Path(site.run("kubeconfig").stdout.strip())) as api:
        await api.create(deployment())
        first = await until_serving(api, site)
        async with traffic(f"{site.address(NAME)}:8001") as replay:

            async def learned() -> bool:
                return bool((await status_of(api)).get("calibration"))

            await eventually(learned, timeout=LIMIT)
            (leader,) = (await leaders(api)).values()
            site.run("fault", leader["metadata"]["name"], "--slow", SLOW)
            left = await ended(api, 0)
            second = await until_serving(api, site)
            assert (left["result"], second != first) == ("Completed", True), left
            assert f"pool {first} take" in left["reason"], left

            # Back to where it came from, on a person's wish; what it finds there is slow again.
            known = {pod["metadata"]["uid"] for pod in await api.list("pods", "default")}
            patch = {"metadata": {"annotations": {"berth.dev/request": f"move {first} bf16 tp1 x1"}}}
            await api.patch("llmdeployments", NAME, "default", patch)

            async def slowed() -> bool:
                new = [pod for pod in await api.list("pods", "default") if pod["metadata"]["uid"] not in known]
                names = [pod["metadata"]["name"] for pod in new]
                return bool(names) and not site.run("fault", names[0], "--slow", SLOW, check=False).returncode

            await eventually(slowed, timeout=LIMIT)
            back = await ended(api, 1)
            assert (back["result"], await until_serving(api, site)) == ("RolledBack", second), back
            assert "of requests miss an objective" in back["reason"]
        assert [outcome.error for outcome in replay.outcomes if outcome.error] == []
        assert len(replay.outcomes) > 10 * RATE
        await deleted(api, NAME)
