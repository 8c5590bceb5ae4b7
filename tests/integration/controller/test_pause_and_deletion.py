"""Hands off while paused; and every way to delete, at any moment, leaves nothing and disturbs nobody."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth
from tests.support.cluster import eventually


async def kept_quiet(site: Site, berth: RunningBerth, seconds: float = 1.5) -> None:
    """Nothing but the deployment's own status is written for a while."""
    async with site.recording("pods", "replicagroups", "services") as changes:
        await asyncio.sleep(seconds)
    assert [(change.type, change.name) for change in changes] == []


async def summary(site: Site, words: str, name: str = "llama") -> dict[str, Any]:
    async def check() -> dict[str, Any] | None:
        found = await site.get(name)
        message = found.get("status", {}).get("summary", {}).get("message", "")
        assert message == words, message
        return found

    return await eventually(check)


async def test_while_changes_are_paused_only_lost_groups_are_replaced(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    before = await site.serving()
    await site.patch({"spec": {"pause": "Changes"}})
    await summary(site, "Ready, changes paused")
    await site.scale(4)
    await site.new_revision()
    await kept_quiet(site, berth)
    assert await site.serving() == before
    lost = sorted(before)[0]
    await site.cluster.delete("pods", lost, site.namespace)

    async def replaced() -> bool:
        found = await site.serving()
        return lost not in found and len(found) == 2

    await eventually(replaced)
    assert len(await site.pods()) == 2
    await site.patch({"spec": {"pause": "None"}})
    assert (await site.settled())["status"]["summary"]["ready"] == "4/4"


async def test_while_all_is_paused_nothing_is_touched(site: Site, berth: RunningBerth) -> None:
    await site.create(site.deployment(await site.pool()))
    await site.settled()
    before = await site.serving()
    await site.patch({"spec": {"pause": "All"}})
    await summary(site, "Paused: hands off")
    lost = sorted(before)[0]
    await site.cluster.delete("pods", lost, site.namespace)
    await site.cluster.delete("services", "llama", site.namespace)

    async def gone() -> bool:
        return lost not in [pod["metadata"]["name"] for pod in await site.pods()]

    await eventually(gone)
    await site.new_revision()
    await kept_quiet(site, berth)
    assert await site.serving() == before - {lost}
    assert (await site.condition("Progressing"))["reason"] == "Paused"
    await site.patch({"spec": {"pause": "None"}})
    found = await site.settled()
    assert found["status"]["summary"]["message"] == "Ready"
    assert await site.cluster.find("services", "llama", site.namespace)


async def left_of(site: Site, uid: str) -> list[str]:
    """Objects that carry the deployment's UID."""
    kinds = ("pods", "replicagroups", "services", "poddisruptionbudgets", "configmaps")
    selector = f"berth.dev/deployment-uid={uid}"
    return [
        f"{kind}/{found['metadata']['name']}"
        for kind in kinds
        for found in await site.cluster.list(kind, site.namespace, labels=selector)
    ]


async def nothing_left(site: Site, uid: str) -> None:
    async def check() -> bool:
        left = await left_of(site, uid)
        assert not left, left
        return True

    await eventually(check)  # the garbage collector learns of new kinds every 30 s


async def test_deleted_at_any_moment_of_its_creation_nothing_is_left(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool(nodes=6)
    await site.create(site.deployment(pool, "neighbour"))
    made = []
    for number, after in enumerate((0.0, 0.05, 0.1, 0.2)):
        name = f"short-{number}"
        made.append(await site.create(site.deployment(pool, name, tp=8, pp=2, groups=1)))
        await asyncio.sleep(after)
        await site.cluster.delete("llmdeployments", name, site.namespace, propagation="Foreground")
    await site.settled("neighbour")
    for each in made:
        await nothing_left(site, each["metadata"]["uid"])
    assert len(await site.serving("neighbour")) == 2


async def test_made_again_under_the_same_name_it_is_another_one(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    first = await site.create(site.deployment(pool))
    await site.settled()
    before = await site.serving()
    await site.cluster.delete("llmdeployments", "llama", site.namespace)
    await site.create(site.deployment(pool, groups=1))
    found = await site.settled()
    assert found["metadata"]["uid"] != first["metadata"]["uid"]
    serving = await site.serving()
    assert len(serving - before) == 1
    await nothing_left(site, first["metadata"]["uid"])
    service = await site.cluster.get("services", "llama", site.namespace)
    assert service["spec"]["selector"]["berth.dev/deployment-uid"] == found["metadata"]["uid"]
    assert service["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]


async def test_deleted_with_its_children_left_behind_they_are_nobodys_business(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    first = await site.create(site.deployment(pool))
    await site.settled()
    before = await site.serving()
    await site.cluster.delete("llmdeployments", "llama", site.namespace, propagation="Orphan")

    async def orphaned() -> bool:
        groups = [each for each in await site.groups() if each["metadata"].get("ownerReferences")]
        return not groups and await site.cluster.find("llmdeployments", "llama", site.namespace) is None

    await eventually(orphaned)
    await kept_quiet(site, berth)
    assert await site.serving() == before
    assert f"pods/{sorted(before)[0]}" in await left_of(site, first["metadata"]["uid"])
    await site.create(site.deployment(pool))
    await site.until("Accepted", "False")
    message = (await site.condition("Accepted"))["message"]
    assert message == "Service llama exists and belongs to someone else: remove it or rename the deployment"
    assert await site.serving() == before
