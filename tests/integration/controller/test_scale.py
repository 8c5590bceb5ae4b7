"""How many groups: by the placement, by the scale subresource as an HPA uses it, and never by both."""

from __future__ import annotations

from typing import Any

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth
from tests.support.cluster import ApiError, eventually


async def scale(site: Site, verb: str, body: dict[str, Any] | None = None, content: str = "") -> dict[str, Any]:
    path = f"/apis/berth.dev/v1alpha1/namespaces/{site.namespace}/llmdeployments/llama/scale"
    return await site.cluster.request(verb, path, body=body, content=content or "application/json")


async def test_groups_are_added_and_removed_one_slot_each(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    first = await site.serving()
    await site.scale(4)
    found = await site.settled()
    assert found["status"]["summary"]["ready"] == "4/4"
    assert first < await site.serving(), "those that served are left alone"
    await site.scale(1)
    found = await site.settled()
    assert (found["status"]["replicas"], found["status"]["readyReplicas"]) == (1, 1)
    assert len(await site.pods()) == len(await site.groups()) == 1


async def test_scaling_down_keeps_a_group_that_serves(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(), groups=2))
    await site.settled()
    leaving = next(pod for pod in await site.pods() if "-g0-" in pod["metadata"]["name"])
    berth.leaders.silent.add("*")
    await site.cluster.delete("pods", leaving["metadata"]["name"], site.namespace)

    async def g0_was_replaced() -> bool:
        return any("-g0-2-" in pod["metadata"]["name"] for pod in await site.pods())

    await eventually(g0_was_replaced)
    await site.scale(1)

    async def only_g1_is_left() -> bool:
        assert [pod["metadata"]["name"].split("-")[2] for pod in await site.pods()] == ["g1"]
        return True

    await eventually(only_g1_is_left)
    assert len(await site.serving()) == 1


async def test_an_autoscaler_reads_and_writes_the_scale_subresource(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(), groups=2), scaling={"mode": "Manual"})
    await site.settled()
    found = await scale(site, "GET")
    assert (found["spec"]["replicas"], found["status"]["replicas"]) == (1, 1), "the placement's number is not read"
    selected = await site.cluster.list("pods", site.namespace, labels=found["status"]["selector"])
    assert {pod["metadata"]["name"] for pod in selected} == await site.serving()

    async def written() -> bool:
        """As an autoscaler does: on a conflict it reads again."""
        found = await scale(site, "GET")
        found["spec"]["replicas"] = 3
        try:
            await scale(site, "PUT", found)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    await eventually(written)
    assert (await site.settled())["status"]["readyReplicas"] == 3
    patch = {"spec": {"replicas": 2}}
    await scale(site, "PATCH", patch, "application/merge-patch+json")
    assert (await site.settled())["status"]["summary"]["ready"] == "2/2"
    assert (await scale(site, "GET"))["status"]["replicas"] == 2


async def test_the_selector_finds_the_leaders_of_groups_over_several_nodes_only(
    site: Site, berth: RunningBerth
) -> None:
    await site.create(site.deployment(await site.pool(), tp=8, pp=2, groups=1))
    await site.settled()
    found = await scale(site, "GET")
    selected = await site.cluster.list("pods", site.namespace, labels=found["status"]["selector"])
    assert len(await site.pods()) == 2
    assert [pod["metadata"]["labels"]["berth.dev/member"] for pod in selected] == ["leader"]


async def test_replicas_are_ignored_while_berth_decides_and_that_is_said(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool(), groups=1))
    await site.settled()
    await scale(site, "PATCH", {"spec": {"replicas": 5}}, "application/merge-patch+json")
    found = await site.until("ReplicasIgnored")
    assert found["status"]["replicas"] == 1
    condition = await site.condition("ReplicasIgnored")
    assert condition["message"] == "spec.replicas 5 is ignored: set scaling.mode Manual to decide yourself"
    await site.patch({"spec": {"scaling": {"mode": "Manual"}}})
    await site.until("Ready")
    assert await site.condition("ReplicasIgnored") == {}
    assert len(await site.serving()) == 5
