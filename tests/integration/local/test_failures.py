"""What dies on the laptop's cluster with real Triton, under load: cut off, replaced elsewhere, told in status."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from berth.local import sandbox
from tests.integration.local.conftest import LocalCluster, gone, network_of
from tests.integration.local.test_serving import deleted, failed_since, leaders, traffic
from tests.support.cluster import Cluster, Manifest, eventually
from tests.support.manifests import fixed_deployment

pytestmark = pytest.mark.triton

NAME = "llama"


@pytest.fixture(scope="module")
def site(triton: None, state: Path) -> Iterator[LocalCluster]:
    """Three nodes with room for one group each; one that failed is used again at once."""
    cluster = LocalCluster("failures", state)
    cluster.environment["BERTH_NODE_STABLE"] = "0"
    cluster.run("up", "--pool", "h100=3x2")
    network = network_of(cluster.status())
    yield cluster
    cluster.run("down")
    gone(cluster, network)


def deployment(groups: int = 2, **spec: Any) -> Manifest:
    return fixed_deployment(NAME, "default", "h100", groups=groups, **spec)


async def serving(api: Cluster, groups: int = 2) -> bool:
    status = (await api.get("llmdeployments", NAME, "default")).get("status", {})
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())
    return ready and len(await leaders(api)) == groups


@pytest.fixture
async def served(site: LocalCluster, api: Cluster) -> AsyncIterator[str]:
    """Address of the Service of two groups that serve."""
    await api.create(deployment())
    await eventually(lambda: serving(api))
    yield f"{site.address(NAME)}:8001"
    healed(site)
    await deleted(api, NAME)


def healed(site: LocalCluster) -> None:
    """Every node is back, whatever the test did to it and however it ended."""
    for node in site.status()["nodes"]:
        if node["state"] != "Ready":
            site.run("nodes", "revive", node["name"])
        if node["gpus"]["unhealthy"]:
            site.run("nodes", "gpus", node["name"], "--unhealthy", "0")


async def restored(api: Cluster, slot: str, cause: str) -> Manifest:
    """The last failover, once everything serves again."""

    async def told() -> Manifest | None:
        failover = (await api.get("llmdeployments", NAME, "default"))["status"].get("lastFailover", {})
        assert (failover.get("group"), failover.get("reason")) == (slot, cause), failover
        return failover if "restoredAfter" in failover and await serving(api) else None

    return await eventually(told)


async def test_a_node_without_power_loses_its_requests_and_its_group_moves(
    site: LocalCluster, api: Cluster, served: str
) -> None:
    before = await leaders(api)
    node = before["g0"]["spec"]["nodeName"]
    async with traffic(served, 45) as replay:
        site.run("nodes", "kill", node)
        failover = await restored(api, "g0", "NodeSilent")
        restored_at = replay.now()
    after = await leaders(api)
    assert after["g0"]["spec"]["nodeName"] != node
    assert after["g1"]["metadata"]["uid"] == before["g1"]["metadata"]["uid"]
    assert {"trafficCutAfter", "detectedAfter", "replacedAfter"} <= set(failover)
    assert failed_since(replay, restored_at) == []
    old = await api.get("pods", before["g0"]["metadata"]["name"], "default")
    assert "deletionTimestamp" in old["metadata"], "nobody there can say that it ended"


async def test_a_sick_gpu_moves_the_group_that_holds_it(site: LocalCluster, api: Cluster, served: str) -> None:
    before = await leaders(api)
    node = before["g1"]["spec"]["nodeName"]
    async with traffic(served, 15) as replay:
        site.run("nodes", "gpus", node, "--unhealthy", "1")
        await restored(api, "g1", "GPUUnhealthy")
    after = await leaders(api)
    assert after["g1"]["spec"]["nodeName"] != node
    assert after["g0"]["metadata"]["uid"] == before["g0"]["metadata"]["uid"]
    assert failed_since(replay, 0) == [], "its leader answers until it has drained"


async def test_a_server_that_is_stopped_is_ended_and_back(site: LocalCluster, api: Cluster, served: str) -> None:
    mark = site.pod((await leaders(api))["g0"]["metadata"]["name"])["mark"]
    servers = [pid for pid in sandbox.marked(mark) if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n"]
    async with traffic(served, 20):
        os.kill(servers[0], signal.SIGSTOP)
        await restored(api, "g0", "RestartedInPlace")
    (group,) = [each for each in await api.list("replicagroups", "default") if each["spec"]["group"] == "g0"]
    assert group["status"]["evidence"]["exitCode"] == 70


async def test_both_groups_at_once_come_back(site: LocalCluster, api: Cluster, served: str) -> None:
    for pod in (await leaders(api)).values():
        mark = site.pod(pod["metadata"]["name"])["mark"]
        for pid in sandbox.marked(mark):
            if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n":
                os.kill(pid, signal.SIGKILL)

    async def both_restarted() -> bool:
        found = await api.list("replicagroups", "default")
        return [each["status"].get("evidence", {}).get("cause") for each in found] == ["RestartedInPlace"] * 2

    await eventually(both_restarted)
    await eventually(lambda: serving(api))


async def test_a_slow_engine_is_left_alone(site: LocalCluster, api: Cluster, served: str) -> None:
    before = {pod["metadata"]["uid"] for pod in (await leaders(api)).values()}
    victim = (await leaders(api))["g0"]["metadata"]["name"]
    async with traffic(served, 20):
        site.run("fault", victim, "--slow", "8")
    site.run("fault", victim)
    assert {pod["metadata"]["uid"] for pod in (await leaders(api)).values()} == before
    for group in await api.list("replicagroups", "default"):
        assert "evidence" not in group["status"]


async def test_in_a_full_pool_the_group_of_a_dead_node_waits_and_the_others_serve_on(
    site: LocalCluster, api: Cluster
) -> None:
    await api.create(deployment(groups=3))
    await eventually(lambda: serving(api, 3))
    node = (await leaders(api))["g2"]["spec"]["nodeName"]
    async with traffic(f"{site.address(NAME)}:8001", 45) as replay:
        site.run("nodes", "kill", node)

        async def waiting() -> bool:
            status = (await api.get("llmdeployments", NAME, "default"))["status"]
            placed = next(each for each in status["conditions"] if each["type"] == "Placed")
            assert placed["reason"] == "WaitingForCapacity", placed
            return True

        await eventually(waiting)
        cut_at = replay.now()
        assert set(await leaders(api)) == {"g0", "g1"}
    assert failed_since(replay, cut_at) == []
    healed(site)
    await eventually(lambda: serving(api, 3))
    await deleted(api, NAME)


async def test_a_change_that_cannot_load_stalls_and_what_served_before_serves_on(
    site: LocalCluster, api: Cluster
) -> None:
    recovery = {"maxFailures": 2, "initialBackoff": "1s", "maxBackoff": "1s"}
    await api.create(deployment(replicaGroups={"recovery": recovery}))
    await eventually(lambda: serving(api))
    before = {pod["metadata"]["uid"] for pod in (await leaders(api)).values()}
    too_large = {"env": [{"name": "BERTH_SIMULATED", "value": '{"weight_gib": 500}'}]}
    async with traffic(f"{site.address(NAME)}:8001", 20) as replay:
        await api.patch("llmdeployments", NAME, "default", {"spec": {"pod": too_large}})

        async def stalled() -> bool:
            status = (await api.get("llmdeployments", NAME, "default"))["status"]
            found = next((each for each in status["conditions"] if each["type"] == "Stalled"), {})
            assert (found.get("status"), found.get("reason")) == ("True", "FailureBudgetSpent"), found
            return True

        await eventually(stalled)
    assert failed_since(replay, 0) == []
    assert {pod["metadata"]["uid"] for pod in (await leaders(api)).values()} == before
    lost = [each for each in await api.list("replicagroups", "default") if each["status"]["state"] == "Failed"]
    assert len(lost) == 2
    for group in lost:
        evidence = group["status"]["evidence"]
        assert (evidence["cause"], evidence.get("exitCode")) == ("RestartedAgain", 71), evidence
        assert "LoadFailed: out of memory: weights 500.0 GiB" in evidence["message"]
    await api.patch("llmdeployments", NAME, "default", {"spec": {"pod": None}})
    await eventually(lambda: serving(api))
    assert {pod["metadata"]["uid"] for pod in (await leaders(api)).values()} == before, "a corrected spec starts afresh"
    await deleted(api, NAME)
