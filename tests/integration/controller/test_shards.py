"""Two installations divide the deployments of one cluster by a label, each with a Lease of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth, running_berth
from tests.support.cluster import eventually


def labelled(deployment: dict[str, Any], team: str) -> dict[str, Any]:
    deployment["metadata"]["labels"] = {"team": team}
    return deployment


async def test_each_shard_works_on_its_own_and_one_takes_over_what_gets_its_label(
    operator_kubeconfig: Path, site: Site
) -> None:
    def shard(team: str) -> Any:
        return running_berth(
            operator_kubeconfig, site.namespace, site.leaders, shard=f"team={team}", lease_name=f"berth-{team}"
        )

    pool = await site.pool(nodes=1)
    await site.cluster.patch("gpupools", pool, None, {"metadata": {"labels": {"team": "ads"}}})
    async with shard("search") as search:
        async with shard("ads") as ads:
            await site.create(labelled(site.deployment(pool, groups=1), "search"))
            await site.create(labelled(site.deployment(pool, "other", groups=1), "ads"))
            await site.settled()
            await site.settled("other")
            assert len(await site.cluster.list("leases", site.namespace)) == 2

            async def all_written() -> bool:
                return written(ads) == {"LLMDeployment", "GPUPool"}

            await eventually(all_written)
            assert written(search) == {"LLMDeployment"}

            await site.create(labelled(site.deployment(pool, "third", tp=8, groups=1), "ads"))
            waiting = await site.until("Placed", "False", name="third")
            said = [each["message"] for each in waiting["status"]["conditions"] if each["type"] == "Placed"]
            assert "best free 1 x 4" in said[0], "what the other shard's groups hold counts"
            await site.cluster.delete("llmdeployments", "third", site.namespace)

        pods = await site.serving("other")
        await site.scale(2, "other")
        await site.scale(2)
        await site.settled()
        assert await site.serving("other") == pods, "nobody works for the shard that ended"

        await site.patch({"metadata": {"labels": {"team": "search"}}}, "other")
        await site.settled("other")
        assert pods < await site.serving("other"), "those that served are left alone"

        await site.patch({"metadata": {"labels": {"team": "ads"}}}, "other")
        before = await site.get("other")
        await site.scale(1, "other")
        await site.scale(1)
        await site.settled()

        async def seen_by_nobody() -> bool:
            found = await site.get("other")
            return bool(found["status"] == before["status"]) and len(await site.serving("other")) == 2

        await eventually(seen_by_nobody)


def written(berth: RunningBerth) -> set[str]:
    """Kinds whose status this operator applied, of those that belong to shards."""
    return {
        sample.labels["kind"]
        for metric in berth.app.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "berth_api_requests_total" and sample.labels["verb"] == "apply" and sample.value
    } & {"LLMDeployment", "GPUPool"}
