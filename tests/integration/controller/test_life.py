"""From an LLMDeployment to serving groups and back, on a real control plane with simulated nodes."""

from __future__ import annotations

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth
from tests.support.cluster import eventually


async def both_nodes_are_there(site: Site, pool: str) -> bool:
    """As Berth sees it: what it does not know yet it cannot spread over."""
    return (await site.cluster.get("gpupools", pool)).get("status", {}).get("healthyNodes") == 2


async def test_fixed_placement_becomes_serving_groups(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    await eventually(lambda: both_nodes_are_there(site, pool))
    await site.cluster.create(site.deployment(pool))
    found = await site.settled()
    assert found["status"]["summary"]["ready"] == "2/2"
    assert found["status"]["summary"]["message"] == "Ready"
    assert found["status"]["readyReplicas"] == 2
    pods = await site.pods()
    assert len(pods) == 2
    assert {pod["metadata"]["labels"]["berth.dev/serving"] for pod in pods} == {"true"}
    zones = {pod["spec"]["nodeName"][-1] for pod in pods}
    assert zones == {"0", "1"}, "two groups over two zones stand in both"
    assert [group["status"]["state"] for group in await site.groups()] == ["Serving", "Serving"]


async def test_deletion_leaves_nothing(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    await site.cluster.create(site.deployment(pool))
    await site.settled()
    await site.cluster.delete("llmdeployments", "llama", site.namespace)

    async def gone() -> bool:
        left = [await site.pods(), await site.groups()]
        left += [await site.cluster.list(kind, site.namespace) for kind in ("services", "poddisruptionbudgets")]
        assert not any(left), left
        return True

    await eventually(gone)  # the garbage collector learns of new kinds every 30 s
