"""Groups stand where the loss of a node or zone leaves those that are needed; status says so, and it is so."""

from __future__ import annotations

from typing import Any

from berth import labels
from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth, ScriptedLeaders
from tests.support.cluster import eventually

ZONE = "topology.kubernetes.io/zone"


async def spread(site: Site, message: str) -> dict[str, Any]:
    """`status.spread`, once it says this."""

    async def check() -> dict[str, Any]:
        found: dict[str, Any] = (await site.get()).get("status", {}).get("spread", {})
        assert found.get("message") == message, found
        return found

    return await eventually(check)


async def test_the_loss_of_a_zone_is_survived_as_status_said(
    site: Site, berth: RunningBerth, leaders: ScriptedLeaders
) -> None:
    pool = await site.pool(nodes=4)  # two in each zone
    await site.create(site.deployment(pool, tp=8, groups=2))
    await site.settled()
    found = await spread(site, "losing any node or zone keeps 1 of 1 needed groups")
    assert found["domains"] == [{"name": "a", "groups": 1}, {"name": "b", "groups": 1}]
    assert (found["topologyKey"], found["afterNodeLoss"], found["afterDomainLoss"]) == (ZONE, 1, 1)
    assert (await site.condition("LossTolerated"))["status"] == "True"

    in_b = {
        pod["metadata"]["name"] for pod in await site.pods() if pod["spec"]["nodeName"] in (f"{pool}-1", f"{pool}-3")
    }
    async with site.recording("pods") as changes:
        leaders.unreachable |= {
            pod["status"]["podIP"] for pod in await site.pods() if pod["metadata"]["name"] not in in_b
        }
        for index in (0, 2):
            await site.cluster.kill_node(f"{pool}-{index}")

        async def both_in_b() -> bool:
            nodes = {
                pod["spec"]["nodeName"] for pod in await site.pods() if pod["metadata"]["name"] in await site.serving()
            }
            assert nodes == {f"{pool}-1", f"{pool}-3"}, nodes
            return True

        await eventually(both_in_b)
    touched = [
        each for each in changes if each.name in in_b and each.object["metadata"]["labels"][labels.SERVING] != "true"
    ]
    assert not touched, "the group in the other zone got requests all the time"
    found = await spread(site, "losing zone b would leave 0 of 1 needed groups")
    assert found["domains"] == [{"name": "b", "groups": 2}]
    assert (await site.condition("LossTolerated"))["reason"] == "DomainLossBreaksNeeded"


async def test_a_layout_that_one_node_can_take_down_is_told(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=1)
    await site.create(site.deployment(pool, tp=2, groups=2))
    await site.settled()
    await spread(site, f"losing node {pool}-0 would leave 0 of 1 needed groups")

    async def told() -> bool:
        return any(event["reason"] == "NodeLossBreaksNeeded" for event in await site.events())

    await eventually(told)
