"""What clients of real Triton servers see and what the status says of it are the same figures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest

from berth.api.common import seconds
from berth.local.demo.client import Replay
from berth.local.demo.trace import Request
from tests.integration.local.conftest import LocalCluster, gone, network_of
from tests.integration.local.test_serving import NAME, deleted, sample
from tests.support.cluster import Cluster, eventually

pytestmark = pytest.mark.triton

BUCKET = 2**0.5
"""Ratio of neighbouring edges: a p95 is only known to lie between two."""
OVERHEAD = 0.03
"""Seconds between the engine and the client, on a busy machine."""


@pytest.fixture(scope="module")
def measured_site(triton: None, state: Path) -> Iterator[LocalCluster]:
    """A cluster whose operator reads every two seconds and leaves nothing out."""
    cluster = LocalCluster("measured", state)
    cluster.environment |= {"BERTH_METRICS_INTERVAL": "2", "BERTH_METRICS_WARM_UP": "0"}
    cluster.run("up", "--pool", "h100=2x8")
    network = network_of(cluster.status())
    yield cluster
    cluster.run("down")
    gone(cluster, network)


@pytest.fixture
async def served(measured_site: LocalCluster) -> AsyncIterator[tuple[Cluster, str]]:
    async with Cluster(Path(measured_site.run("kubeconfig").stdout.strip())) as api:
        manifest = sample("llama-70b.yaml")
        manifest["spec"]["placement"]["pools"] = ["h100"]
        await api.apply(manifest)
        await eventually(lambda: ready(api))
        yield api, f"{measured_site.address(NAME)}:8001"
        await deleted(api, NAME)


async def ready(api: Cluster) -> bool:
    """All wanted groups serve."""
    status = (await api.get("llmdeployments", NAME, "default")).get("status", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    assert conditions.get("Ready") == "True", status
    return True


def agree(said: str, seen: float) -> bool:
    """Within a bucket, and what the network and the client add."""
    told = seconds(said)
    return told / BUCKET - OVERHEAD <= seen <= told * BUCKET + OVERHEAD


async def test_the_status_says_what_clients_saw(served: tuple[Cluster, str]) -> None:
    api, address = served

    async def fresh() -> bool:
        status = (await api.get("llmdeployments", NAME, "default"))["status"]
        return any(c["type"] == "MetricsAvailable" and c["status"] == "True" for c in status["conditions"])

    await eventually(fresh)
    requests = [Request(number / 4, 60 + 40 * (number % 7), 20 + 5 * (number % 5)) for number in range(240)]
    replay = Replay(address, requests, connections=8)
    await replay.run()
    assert [outcome.error for outcome in replay.outcomes if outcome.error] == []
    first = quantiles([o.time_to_first_token or 0.0 for o in replay.outcomes], n=20)[-1]
    token = quantiles([o.time_per_output_token or 0.0 for o in replay.outcomes], n=20)[-1]

    async def told() -> dict[str, Any]:
        status = (await api.get("llmdeployments", NAME, "default"))["status"]
        summary, placement = status["summary"], status["placement"]
        assert summary["ttftP95"] != "-", status["conditions"]
        assert agree(summary["ttftP95"], first), (summary, first)
        assert agree(summary["tpotP95"], token), (summary, token)
        assert placement["measured"]["ttftP95"] == summary["ttftP95"]
        assert float(placement["predictionError"]["tpotP95"]) > -1
        met = next(c for c in status["conditions"] if c["type"] == "ObjectivesMet")
        assert (met["status"], met["reason"]) == ("True", "ObjectivesReached"), met
        return status

    status = await eventually(told)
    rate = float(status["placement"]["measured"]["outputTokensPerSecond"]["mid"])
    cost = float(status["placement"]["costPerHour"]) / 3600 / rate * 1e6
    assert float(status["placement"]["costPerMillionOutputTokens"]) == pytest.approx(cost, rel=0.05)
    assert status["needed"] >= 1
