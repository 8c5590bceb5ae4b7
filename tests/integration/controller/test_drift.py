"""What others change in Berth's objects comes back, and requests keep flowing meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from tests.integration.controller.conftest import Site, own_site
from tests.support.berth import RunningBerth, ScriptedLeaders, running_berth
from tests.support.cluster import Cluster, eventually
from tests.support.loops import connections_closed

Manifest = dict[str, Any]


def said(found: Manifest) -> Manifest:
    """What an object says, without what the server counts."""
    metadata = {key: found["metadata"].get(key) for key in ("labels", "ownerReferences")}
    spec = {key: value for key, value in found.get("spec", {}).items() if key not in ("clusterIP", "clusterIPs")}
    return {"metadata": metadata, "spec": spec, "data": found.get("data")}


async def child(site: Site, kind: str) -> Manifest:
    children = await site.cluster.list(kind, site.namespace, labels="app.kubernetes.io/managed-by=berth")
    return sorted(children, key=lambda found: str(found["metadata"]["name"]))[0]


CHANGES: dict[str, tuple[str, Manifest | None]] = {
    "Service deleted": ("services", None),
    "Service with another selector": ("services", {"spec": {"selector": {"app": "mine"}}}),
    "Service without its selector": ("services", {"spec": {"selector": None}}),
    "Service with other ports": (
        "services",
        {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 9000, "protocol": "TCP"}]}},
    ),
    "Service without labels": ("services", {"metadata": {"labels": None}}),
    "PodDisruptionBudget deleted": ("poddisruptionbudgets", None),
    "PodDisruptionBudget loosened": ("poddisruptionbudgets", {"spec": {"minAvailable": 1}}),
    "PodDisruptionBudget for others": (
        "poddisruptionbudgets",
        {"spec": {"selector": {"matchLabels": {"app": "mine"}}}},
    ),
    "ConfigMap deleted": ("configmaps", None),
    "ConfigMap without labels": ("configmaps", {"metadata": {"labels": None}}),
}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(control_plane: ControlPlane, kwok: Kwok) -> AsyncIterator[tuple[Site, RunningBerth]]:
    """One deployment for all tests here: each of them ends when everything is as before."""
    async with (
        Cluster(control_plane.kubeconfig) as cluster,
        own_site(cluster) as site,
        running_berth(control_plane.kubeconfig, site.namespace) as berth,
    ):
        await site.create(site.deployment(await site.pool()))
        yield site, berth
    await connections_closed()


@pytest_asyncio.fixture(loop_scope="module")
async def settled(shared: tuple[Site, RunningBerth]) -> Site:
    site, _ = shared
    await site.settled()
    return site


@pytest.fixture
def leaders(shared: tuple[Site, RunningBerth]) -> ScriptedLeaders:
    return shared[1].leaders


@pytest.mark.parametrize("change", CHANGES)
async def test_a_child_is_brought_back(change: str, settled: Site) -> None:
    site = settled
    kind, patch = CHANGES[change]
    before, serving = await child(site, kind), await site.serving()
    name = before["metadata"]["name"]
    if patch is None:
        await site.cluster.delete(kind, name, site.namespace)
    else:
        await site.cluster.patch(kind, name, site.namespace, patch)

    async def mended() -> bool:
        found = await site.cluster.find(kind, name, site.namespace)
        assert found is not None
        assert said(found) == said(before)
        return True

    await eventually(mended)
    assert await site.serving() == serving


async def test_a_service_port_added_by_another_manager_is_taken_away_again(settled: Site) -> None:
    site = settled
    before = await child(site, "services")
    port = {"name": "metrics", "port": 9999, "protocol": "TCP"}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": _named(before), "spec": {"ports": [port]}}
    await site.cluster.apply(body, manager="somebody")

    async def mended() -> bool:
        found = await site.cluster.get("services", before["metadata"]["name"], site.namespace)
        assert said(found) == said(before)
        return True

    await eventually(mended)


async def test_what_others_add_beside_it_stays(settled: Site) -> None:
    site = settled
    before = await child(site, "services")
    extra = {"labels": {"team": "search"}, "annotations": {"example.com/balancer": "internal"}}
    await site.cluster.patch("services", before["metadata"]["name"], site.namespace, {"metadata": extra})
    patch = {"spec": {"selector": {"app": "mine"}}}
    await site.cluster.patch("services", before["metadata"]["name"], site.namespace, patch)

    async def mended() -> Manifest | None:
        found = await site.cluster.get("services", before["metadata"]["name"], site.namespace)
        return found if found["spec"]["selector"] == before["spec"]["selector"] else None

    metadata = (await eventually(mended))["metadata"]
    assert metadata["labels"]["team"] == "search"
    assert metadata["annotations"]["example.com/balancer"] == "internal"


def _named(found: Manifest) -> Manifest:
    return {"name": found["metadata"]["name"], "namespace": found["metadata"]["namespace"]}


async def relabelled(site: Site, pod: str, changes: dict[str, str | None]) -> None:
    await site.cluster.patch("pods", pod, site.namespace, {"metadata": {"labels": changes}})


STRIPPED = {
    "the one it is watched by": ["app.kubernetes.io/managed-by"],
    "the name of the deployment": ["berth.dev/deployment"],
    "the UID of the deployment": ["berth.dev/deployment-uid"],
    "that it is a leader": ["berth.dev/member", "berth.dev/member-index"],
    "its group": ["berth.dev/group", "berth.dev/incarnation", "berth.dev/replica-group"],
    "its layout": ["berth.dev/pool", "berth.dev/tensor-parallel", "berth.dev/template-hash"],
}


@pytest.mark.parametrize("what", STRIPPED)
async def test_a_pod_that_lost_labels_gets_them_back_and_is_not_replaced(what: str, settled: Site) -> None:
    site = settled
    pods = await site.pods()
    lost = pods[0]["metadata"]
    await relabelled(site, lost["name"], dict.fromkeys(STRIPPED[what]))

    async def mended() -> bool:
        found = (await site.cluster.get("pods", lost["name"], site.namespace))["metadata"]
        assert found["labels"] == lost["labels"]
        return True

    await eventually(mended)
    await site.settled()
    assert {pod["metadata"]["uid"] for pod in await site.pods()} == {pod["metadata"]["uid"] for pod in pods}


@pytest.mark.parametrize("value", ["false", None, "maybe"])
async def test_a_serving_label_taken_from_a_serving_leader_comes_back_without_another_token(
    value: str | None, settled: Site, leaders: ScriptedLeaders
) -> None:
    site = settled
    before, asked = await site.serving(), leaders.asked
    await relabelled(site, sorted(before)[0], {"berth.dev/serving": value})

    async def mended() -> bool:
        return await site.serving() == before

    await eventually(mended)
    assert leaders.asked == asked


async def test_a_serving_label_that_was_not_earned_is_taken_away(settled: Site, leaders: ScriptedLeaders) -> None:
    site = settled
    leaders.silent.add("*")
    await site.create(site.deployment(await site.pool(), "large", tp=8, pp=2, groups=1))

    async def both_run() -> list[str]:
        pods = await site.pods("large")
        running = [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]
        return running if len(running) == 2 else []

    leader, worker = sorted(await eventually(both_run))

    async def nobody_serves() -> bool:
        return not await site.serving("large")

    for name in (leader, worker):
        await relabelled(site, name, {"berth.dev/serving": "true"})
        await eventually(nobody_serves)
    leaders.silent.clear()
    await site.settled("large")
    await relabelled(site, worker, {"berth.dev/serving": "true"})

    async def the_leader_alone() -> bool:
        return await site.serving("large") == {leader}

    await eventually(the_leader_alone)
    await site.cluster.delete("llmdeployments", "large", site.namespace)


LOST: dict[str, Callable[[Manifest], Manifest]] = {
    "labels": lambda group: {"labels": None},
    "one label": lambda group: {"labels": {"berth.dev/lifecycle": None}},
    "a label's sense": lambda group: {"labels": {"berth.dev/lifecycle": "unheard-of", "berth.dev/pool": "other"}},
    "its deployment": lambda group: {"labels": {"berth.dev/deployment": "other", "berth.dev/deployment-uid": "0"}},
    "annotations": lambda group: {"annotations": None},
    "which files its pods have": lambda group: {"annotations": {"berth.dev/config-map": "other"}},
    "its part in no move": lambda group: {"labels": {"berth.dev/move-id": "m0", "berth.dev/role": "outgoing"}},
}


@pytest.mark.parametrize("what", LOST)
async def test_a_replica_group_gets_back_what_it_lost(what: str, settled: Site) -> None:
    site = settled
    group = (await site.groups("llama"))[0]["metadata"]
    pods = {pod["metadata"]["uid"] for pod in await site.pods("llama")}
    await site.cluster.patch("replicagroups", group["name"], site.namespace, {"metadata": LOST[what](group)})

    async def mended() -> bool:
        found = (await site.cluster.get("replicagroups", group["name"], site.namespace))["metadata"]
        assert (found.get("labels"), found.get("annotations")) == (group["labels"], group["annotations"])
        return True

    await eventually(mended)
    await site.settled()
    assert {pod["metadata"]["uid"] for pod in await site.pods("llama")} == pods, "nothing was replaced"


async def test_what_others_write_into_a_status_is_taken_away_again(settled: Site) -> None:
    site = settled
    group = (await site.groups("llama"))[0]["metadata"]["name"]
    serving, pods = await site.serving(), {pod["metadata"]["uid"] for pod in await site.pods("llama")}
    move = {"moves": {"current": {"id": "m1", "phase": "Flipped"}}, "summary": {"message": "all is lost"}}
    told = {"failover": {"detectedAfter": "soon"}, "state": "Failed"}
    await site.cluster.patch("llmdeployments", "llama", site.namespace, {"status": move}, subresource="status")
    await site.cluster.patch("replicagroups", group, site.namespace, {"status": told}, subresource="status")

    async def mended() -> bool:
        status = (await site.get("llama"))["status"]
        assert status["summary"]["message"] == "Ready"
        assert "current" not in status.get("moves", {})
        status = (await site.cluster.get("replicagroups", group, site.namespace))["status"]
        assert (status["state"], "failover" in status) == ("Serving", False)
        return True

    await eventually(mended)
    assert await site.serving() == serving
    assert {pod["metadata"]["uid"] for pod in await site.pods("llama")} == pods


async def deleted(site: Site, name: str) -> None:
    await site.cluster.delete("replicagroups", name, site.namespace)


async def orphaned(site: Site, name: str) -> None:
    await site.cluster.delete("replicagroups", name, site.namespace, propagation="Orphan")


async def disowned(site: Site, name: str) -> None:
    await site.cluster.patch("replicagroups", name, site.namespace, {"metadata": {"ownerReferences": None}})


@pytest.mark.parametrize("lose", [deleted, orphaned, disowned], ids=lambda lose: str(lose.__name__))
async def test_a_replica_group_that_is_taken_away_is_replaced_under_a_new_name(
    lose: Callable[[Site, str], Awaitable[None]], settled: Site
) -> None:
    site = settled
    mine = [each for each in await site.groups("llama") if each["metadata"].get("ownerReferences")]
    found = next(each for each in mine if each["spec"]["group"] == "g0")
    group, incarnation = found["metadata"]["name"], found["spec"]["incarnation"]
    others = {name for name in await site.serving() if group not in name}
    await lose(site, group)

    async def successor_serves() -> bool:
        serving = await site.serving()
        assert others < serving
        return f"{group.removesuffix(str(incarnation))}{incarnation + 1}-0" in serving

    await eventually(successor_serves)
    await site.settled()
    if lose is not deleted:
        left = await site.cluster.get("pods", f"{group}-0", site.namespace)
        assert "deletionTimestamp" not in left["metadata"], "what is not Berth's any more is not touched"
