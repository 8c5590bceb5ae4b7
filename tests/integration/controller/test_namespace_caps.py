"""Operator settings bound what all deployments of a namespace hold together, over pools and in any order."""

from __future__ import annotations

from pathlib import Path

from tests.integration.controller.conftest import Site
from tests.integration.placement.test_auto import automatic, pool
from tests.support.berth import running_berth
from tests.support.cluster import eventually


async def test_a_namespace_holds_no_more_than_it_may_and_takes_what_becomes_free(
    site: Site, operator_kubeconfig: Path
) -> None:
    first, second = await site.pool(), await site.pool()
    async with running_berth(operator_kubeconfig, site.namespace, namespace_gpus=6):
        for name, pool in (("a", first), ("b", second)):
            await site.cluster.create(site.deployment(pool, name, tp=2, groups=2))

        async def told() -> str:
            """Which of the two waits, with its condition."""
            for name in ("a", "b"):
                status = (await site.get(name)).get("status") or {}
                placed = {each["type"]: each for each in status.get("conditions", ())}.get("Placed", {})
                if placed.get("reason") == "NamespaceLimitReached":
                    assert "holds 6 of 6 GPUs" in placed["message"], placed
                    assert "namespaceGpus" in placed["message"]
                    return name
            raise AssertionError("nobody waits")

        waits = await eventually(told)
        assert len(await site.groups()) == 3, "both pools have room for more"
        other = "a" if waits == "b" else "b"
        await site.scale(1, other)

        async def all_serve() -> bool:
            status = (await site.get(waits))["status"]
            return status["readyReplicas"] == 2

        await eventually(all_serve)

        async def no_more() -> bool:
            """The one that made room may still have to be taken away."""
            return len([group for group in await site.groups() if "deletionTimestamp" not in group["metadata"]]) == 3

        await eventually(no_more)


async def test_the_planner_chooses_no_more_than_a_namespace_may_hold_and_says_so(
    site: Site, operator_kubeconfig: Path
) -> None:
    async with running_berth(operator_kubeconfig, site.namespace, namespace_gpus=4):
        first = await pool(site, "H100-SXM-80")
        await site.cluster.create(site.deployment(first, "other", tp=2, groups=1))
        await site.settled("other")
        await site.cluster.create(automatic(site, pools=(first,), replicaGroups={"minAvailable": 3}))

        async def told() -> str:
            message = (await site.condition("Placed")).get("message", "")
            assert "may hold 2 GPUs beside its other deployments" in message, await site.get()
            return str(message)

        assert "raise its setting namespaceGpus" in await eventually(told)
        assert not await site.groups("llama")
        await site.cluster.delete("llmdeployments", "other", site.namespace)
        await site.settled()
        assert len(await site.serving()) == 3
