"""A model served on the laptop: tokens through the Service, and what a client sees when things break."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from berth import labels
from berth.local import sandbox
from berth.local.demo.client import Replay
from berth.local.demo.trace import Request
from tests.integration.local.conftest import LocalCluster
from tests.support.cluster import Cluster, Manifest, eventually
from tests.support.kubectl import draining

pytestmark = pytest.mark.triton

SAMPLES = Path(__file__).parents[3] / "manifests" / "samples"
NAME = "llama-70b"


@pytest.fixture
async def served(site: LocalCluster, api: Cluster) -> AsyncIterator[str]:
    """Address of the Service of a deployment with two groups that serve, one per node."""
    await api.apply(sample("fixed-placement.yaml"))
    await eventually(lambda: both_serve(api))
    yield f"{site.address(NAME)}:8001"
    await deleted(api, NAME)


def sample(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((SAMPLES / name).read_text())
    found["metadata"]["namespace"] = "default"
    return found


async def deleted(api: Cluster, name: str) -> None:
    await api.delete("llmdeployments", name, "default")

    async def no_pods() -> bool:
        return not await api.list("pods", "default")

    await eventually(no_pods)


async def leaders(api: Cluster) -> dict[str, Manifest]:
    """By group: the leader that gets requests."""
    pods = await api.list("pods", "default", labels=f"{labels.MEMBER}={labels.LEADER},{labels.SERVING}=true")
    return {pod["metadata"]["labels"][labels.GROUP_LABEL]: pod for pod in pods}


async def both_serve(api: Cluster) -> bool:
    """Both groups serve and the deployment says so."""
    status = (await api.get("llmdeployments", NAME, "default")).get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return ready and len(await leaders(api)) == 2


async def lives(api: Cluster) -> list[str]:
    """Every life of every leader's container: pod and number of restarts."""
    return [
        f"{pod['metadata']['uid']}/{pod['status']['containerStatuses'][0]['restartCount']}"
        for pod in (await leaders(api)).values()
    ]


def one(at: float, tokens: int) -> Request:
    return Request(at, input_tokens=50, output_tokens=tokens)


def stream(address: str, requests: list[Request], connections: int) -> Replay:
    return Replay(address, requests, connections=connections)


@asynccontextmanager
async def traffic(address: str, seconds: float) -> AsyncIterator[Replay]:
    """Ten requests a second over eight connections that are kept; all have ended at the end."""
    replay = stream(address, [one(number / 10, 40) for number in range(int(seconds * 10))], 8)
    running = asyncio.create_task(replay.run())
    try:
        yield replay
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def under_load(replay: Replay) -> None:
    """Waits until as many requests were answered as there are connections: others are under way."""

    async def answered() -> bool:
        return sum(outcome.first is not None for outcome in replay.outcomes) > 8

    await eventually(answered)


async def cut_off(api: Cluster, group: str, seconds: float = 20) -> None:
    """Waits until the group gets no more requests."""

    async def gone() -> bool:
        return group not in await leaders(api)

    await eventually(gone, timeout=seconds)


def failed_since(replay: Replay, moment: float) -> list[str]:
    """Errors of requests that were sent after `moment` on the replay's clock."""
    return [outcome.error for outcome in replay.outcomes if outcome.error and outcome.sent > moment]


async def test_tokens_come_through_the_service_from_every_group(site: LocalCluster, api: Cluster, served: str) -> None:
    replay = stream(served, [one(0, 20) for _ in range(8)], 4)
    await replay.run()
    assert [outcome.tokens for outcome in replay.outcomes] == [20] * 8
    assert failed_since(replay, 0) == []
    for pod in (await leaders(api)).values():
        log = site.run("logs", pod["metadata"]["name"]).stdout
        assert "GRPCInferenceService at 127." in log
    nodes = {pod["spec"]["nodeName"] for pod in (await leaders(api)).values()}
    assert nodes == {"h100-1", "h100-2"}


async def test_a_server_killed_under_load_is_back_and_its_clients_only_had_to_ask_again(
    site: LocalCluster, api: Cluster, served: str
) -> None:
    before = await lives(api)
    victim = (await leaders(api))["g0"]
    async with traffic(served, 12) as replay:
        await under_load(replay)
        mark = site.pod(victim["metadata"]["name"])["mark"]
        servers = [pid for pid in sandbox.marked(mark) if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n"]
        os.kill(servers[0], signal.SIGKILL)
        await cut_off(api, "g0")
        cut_at = replay.now()
        await eventually(lambda: both_serve(api))
    assert failed_since(replay, cut_at) == []
    assert any(outcome.broken_at for outcome in replay.outcomes)
    assert len(set(await lives(api)) - set(before)) == 1


async def test_a_server_that_hangs_with_good_health_is_ended_and_back(
    site: LocalCluster, api: Cluster, served: str
) -> None:
    victim = (await leaders(api))["g1"]["metadata"]
    async with traffic(served, 16) as replay:
        await under_load(replay)
        site.run("fault", victim["name"], "--hang")
        await cut_off(api, "g1")
        cut_at = replay.now()
        site.run("fault", victim["name"])  # the next life of the container is well
        await eventually(lambda: both_serve(api))
    assert failed_since(replay, cut_at) == []
    pod = await api.get("pods", (await leaders(api))["g1"]["metadata"]["name"], "default")
    if pod["metadata"]["uid"] == victim["uid"]:  # restarted in place
        end = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
        assert (end["exitCode"], end["message"].partition(":")[0]) == (70, "Hang")


async def test_a_pod_that_is_deleted_finishes_its_streams_and_gets_no_new_ones(
    site: LocalCluster, api: Cluster, served: str
) -> None:
    victim = (await leaders(api))["g0"]
    # Straight to the pod, and long: it has begun when the pod is deleted.
    direct = stream(f"{victim['status']['podIP']}:8001", [one(0, 400)], 1)
    async with traffic(served, 12) as replay:
        running = asyncio.create_task(direct.run())
        await under_load(replay)
        await api.delete("pods", victim["metadata"]["name"], "default")
        await cut_off(api, "g0")
        await running
        await eventually(lambda: both_serve(api))
    assert [(outcome.tokens, outcome.broken_at) for outcome in direct.outcomes] == [(400, None)]
    assert failed_since(replay, 0) == []
    assert (await leaders(api))["g0"]["metadata"]["uid"] != victim["metadata"]["uid"]


async def test_a_drained_node_costs_no_request(site: LocalCluster, api: Cluster, served: str) -> None:
    victim = (await leaders(api))["g0"]
    node = victim["spec"]["nodeName"]
    async with traffic(served, 25) as replay:
        await under_load(replay)
        async with draining(Path(site.run("kubeconfig").stdout.strip()), node) as drain:
            await drain.ended()
        serving = await leaders(api)
        assert node not in {pod["spec"]["nodeName"] for pod in serving.values()}
        assert set(serving) == {"g0", "g1"}, "the drain ended after the replacement served"
    assert failed_since(replay, 0) == []
    await api.patch("nodes", node, None, {"spec": {"unschedulable": None}})
