"""placement.mode Auto on a real control plane: objects in, placement out, and it follows what objects say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from berth.cli import main
from berth.local.kwok import gpu_node
from tests.integration.controller.conftest import POOL_LABEL, PRODUCTS, Site
from tests.support.berth import RunningBerth, running_berth
from tests.support.cluster import eventually

CHAT = {
    "requestsPerSecond": "3",
    "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
    "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
}


def automatic(site: Site, name: str = "llama", pools: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    """An 8B model, small enough for one GPU of any pool."""
    deployment = site.deployment("unused", name)
    deployment["spec"] |= {
        "traffic": CHAT,
        "objectives": {"timeToFirstToken": {"p95": "1s"}, "timePerOutputToken": {"p95": "50ms"}},
        "placement": {"mode": "Auto", "pools": list(pools)},
        **spec,
    }
    return deployment


async def pool(site: Site, gpu: str, *, nodes: int = 2, gpus: int = 8, **spec: Any) -> str:
    """A pool that Berth has seen with all its GPUs free."""
    name = await site.pool(gpu, nodes, gpus, **spec)

    async def free() -> bool:
        found = await site.cluster.get("gpupools", name)
        return bool(found.get("status", {}).get("gpus", {}).get("free") == nodes * gpus)

    await eventually(free)
    return name


def placed(deployment: dict[str, Any]) -> dict[str, Any]:
    allocation: dict[str, Any] = deployment["status"]["placement"]["allocations"][0]
    return allocation


async def test_a_deployment_lands_where_its_record_says(site: Site, berth: RunningBerth) -> None:
    cheap = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
    dear = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, pools=(cheap, dear)))
    found = await site.settled()

    status = found["status"]
    assert placed(found)["pool"] == cheap
    assert [group["spec"]["allocation"]["pool"] for group in await site.groups()] == [cheap] * placed(found)["groups"]
    assert status["candidates"][0]["chosen"]
    assert {each["allocations"][0]["pool"] for each in status["candidates"]} == {cheap, dear}
    explained = [each for each in status["candidates"] if "factors" in each]
    assert [each["chosen"] for each in explained] == [True, False], "of the chosen one and of the runner-up"
    for each in explained:
        assert set(each["factors"]) == {"communication", "parallelism", "batch", "bandwidth", "failure"}
    assert status["placement"]["predicted"]["ttftP95"].endswith("ms")
    assert status["summary"]["placement"].startswith(f"{cheap} bf16 tp")


async def test_prices_of_real_objects_decide_where_the_next_deployment_lands(site: Site, berth: RunningBerth) -> None:
    a = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
    b = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, "first", pools=(a, b)))
    assert placed(await site.settled("first"))["pool"] == a

    await site.cluster.patch("gpupools", a, None, {"spec": {"pricePerGPUHour": "20"}})
    await site.cluster.create(automatic(site, "second", pools=(a, b)))

    assert placed(await site.settled("second"))["pool"] == b
    assert placed(await site.settled("first"))["pool"] == a, "what is placed does not follow prices"


async def test_a_laptop_says_what_the_cluster_will_do(
    site: Site, berth: RunningBerth, kubeconfig: Path, tmp_path: Path
) -> None:
    full = await pool(site, "A100-SXM-40", nodes=1, gpus=1, pricePerGPUHour="0.90")
    free = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, "first", pools=(full, free)))
    assert placed(await site.settled("first"))["pool"] == full
    asked = automatic(site, "second", pools=(full, free))
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(asked))

    async def none_free() -> bool:
        return bool((await site.cluster.get("gpupools", full))["status"]["gpus"]["free"] == 0)

    await eventually(none_free)
    arguments = ["plan", "-f", str(file), "--kubeconfig", str(kubeconfig), "-o", "json"]
    told = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert told.exit_code == 0, told.output
    await site.cluster.create(asked)
    status = (await site.settled("second"))["status"]

    plan = json.loads(told.stdout)
    assert plan["placement"]["allocations"] == status["placement"]["allocations"]
    assert set(plan["placement"]) <= set(status["placement"]), "the same names"
    assert plan["candidates"][0]["factors"].keys() == status["candidates"][0]["factors"].keys()


async def test_capacity_of_real_nodes_decides_too(site: Site, berth: RunningBerth) -> None:
    small = await pool(site, "A100-SXM-40", nodes=1, gpus=1, pricePerGPUHour="0.90")
    large = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    await site.cluster.create(automatic(site, "first", pools=(small, large)))
    assert placed(await site.settled("first"))["pool"] == small

    await site.cluster.create(automatic(site, "second", pools=(small, large)))
    second = await site.settled("second")

    assert placed(second)["pool"] == large
    full = next(c for c in second["status"]["candidates"] if c["allocations"][0]["pool"] == small)
    assert "none fit now" in full["rejected"]


async def test_without_capacity_it_waits_and_says_what_for(site: Site, berth: RunningBerth) -> None:
    one = await pool(site, "A100-SXM-40", nodes=1, gpus=1)
    await site.cluster.create(automatic(site, "first", pools=(one,)))
    await site.settled("first")
    await site.cluster.create(automatic(site, "second", pools=(one,)))

    waiting = await site.until("Placed", "False", "second")
    condition = next(c for c in waiting["status"]["conditions"] if c["type"] == "Placed")
    assert condition["reason"] == "WaitingForCapacity"
    assert condition["message"] == "needs 1 node x 1 GPU, none free"
    await site.cluster.delete("llmdeployments", "first", site.namespace)
    await site.settled("second")


async def test_nodes_that_come_are_used_at_once(site: Site, berth: RunningBerth) -> None:
    empty = await site.pool("A100-SXM-40", nodes=0)
    await site.cluster.create(automatic(site, pools=(empty,)))
    waiting = await site.until("Placed", "False")
    condition = next(c for c in waiting["status"]["conditions"] if c["type"] == "Placed")
    assert condition["reason"] == "WaitingForCapacity"
    assert f"pool {empty} has no nodes" in condition["message"]

    node = gpu_node(f"{empty}-0", product=PRODUCTS["A100-SXM-40"], gpus=8, zone="a", labels={POOL_LABEL: empty})
    await site.cluster.create(node)
    await site.settled()


async def test_what_cannot_meet_its_objectives_is_not_placed_and_says_what_would_help(
    site: Site, berth: RunningBerth
) -> None:
    one = await pool(site, "A100-SXM-40")
    objectives = {"timePerOutputToken": {"p95": "2ms"}}
    await site.cluster.create(automatic(site, pools=(one,), objectives=objectives))

    refused = await site.until("Placed", "False")
    condition = next(c for c in refused["status"]["conditions"] if c["type"] == "Placed")
    assert condition["reason"] == "SLOInfeasible"
    assert "TPOT p95" in condition["message"]
    assert "relax objectives.timePerOutputToken.p95" in condition["message"]
    assert await site.groups() == []
    assert all(candidate["rejected"] for candidate in refused["status"]["candidates"])

    await site.patch({"spec": {"objectives": {"timePerOutputToken": {"p95": "50ms"}}}})
    await site.settled()


async def test_a_wiped_status_adopts_what_runs(site: Site, operator_kubeconfig: Path) -> None:
    async with running_berth(operator_kubeconfig, site.namespace):
        a = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
        b = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
        await site.cluster.create(automatic(site, pools=(a, b)))
        before = await site.settled()
    pods = {pod["metadata"]["uid"] for pod in await site.pods()}
    await site.cluster.patch("gpupools", a, None, {"spec": {"pricePerGPUHour": "20"}})
    await site.cluster.patch("llmdeployments", "llama", site.namespace, {"status": None}, subresource="status")
    assert "placement" not in (await site.get()).get("status", {})

    async with running_berth(operator_kubeconfig, site.namespace):
        after = await site.settled()
    assert placed(after) == placed(before)
    assert {pod["metadata"]["uid"] for pod in await site.pods()} == pods


async def test_a_new_spec_is_planned_anew_unless_moves_are_off(site: Site, berth: RunningBerth) -> None:
    a = await pool(site, "A100-SXM-40", pricePerGPUHour="0.90")
    b = await pool(site, "H100-SXM-80", pricePerGPUHour="9.90")
    for name, mode in (("follows", "Auto"), ("stays", "Advise")):
        placement = {"mode": "Auto", "pools": [a, b], "moves": {"mode": mode}}
        await site.cluster.create(automatic(site, name, placement=placement))
        assert placed(await site.settled(name))["pool"] == a
    for name in ("follows", "stays"):
        await site.patch({"spec": {"objectives": {"prefer": "Latency"}}}, name)

    async def moved() -> bool:
        return placed(await site.get("follows"))["pool"] == b

    await eventually(moved)
    stays = await site.until("PlacementOutdated", "True", "stays")
    assert placed(stays)["pool"] == a
    condition = next(c for c in stays["status"]["conditions"] if c["type"] == "PlacementOutdated")
    assert condition["reason"] == "BetterPlacement"
    assert b in condition["message"]
