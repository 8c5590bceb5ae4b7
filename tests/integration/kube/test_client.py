"""What the real API server answers to each thing one can do wrong, and right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from berth.errors import Conflict, Transient
from berth.kube.auth import configuration
from berth.kube.client import KubeClient
from berth.kube.errors import AlreadyExists, Forbidden, NotFound, Rejected, TooManyRequests
from berth.kube.kinds import CONFIG_MAP, NODE, POD, POD_DISRUPTION_BUDGET, Kind, Object
from tests.support.cluster import Cluster, eventually

STRANGER = "11111111-1111-1111-1111-111111111111"


def config_map(namespace: str, name: str, **data: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "x"}},
        "data": data,
    }


def pod(namespace: str, name: str, **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, **metadata},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }


def with_uid(obj: Object, uid: str) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "uid": uid}}


async def test_an_object_goes_through_its_life(client: KubeClient, namespace: str) -> None:
    created = await client.create(config_map(namespace, "a", x="1"))
    uid = created["metadata"]["uid"]
    assert (await client.get(CONFIG_MAP, namespace, "a"))["data"] == {"x": "1"}
    applied = await client.apply(with_uid(config_map(namespace, "a", y="2"), uid), "berth")
    assert applied["data"] == {"x": "1", "y": "2"}
    patched = await client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": None}}, uid=uid)
    assert patched["data"] == {"y": "2"}
    await client.delete(CONFIG_MAP, namespace, "a", uid=uid, resource_version=patched["metadata"]["resourceVersion"])
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAP, namespace, "a")
    with pytest.raises(NotFound):
        await client.delete(CONFIG_MAP, namespace, "a")


async def test_an_identical_apply_changes_nothing(client: KubeClient, namespace: str) -> None:
    first = await client.apply(config_map(namespace, "a", x="1"), "berth")
    second = await client.apply(config_map(namespace, "a", x="1"), "berth")
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_creating_twice_is_already_exists(client: KubeClient, namespace: str) -> None:
    await client.create(config_map(namespace, "a"))
    with pytest.raises(AlreadyExists):
        await client.create(config_map(namespace, "a"))


async def test_no_write_with_a_uid_reaches_a_later_object_of_that_name(client: KubeClient, namespace: str) -> None:
    before = await client.create(config_map(namespace, "a", x="1"))
    for write in (
        client.apply(with_uid(config_map(namespace, "a", x="2"), STRANGER), "berth"),
        client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": "2"}}, uid=STRANGER),
        client.delete(CONFIG_MAP, namespace, "a", uid=STRANGER),
    ):
        with pytest.raises(Conflict):
            await write
    assert await client.get(CONFIG_MAP, namespace, "a") == before


async def test_a_deleted_object_is_not_brought_back_by_an_apply_with_its_uid(
    client: KubeClient, namespace: str
) -> None:
    uid = (await client.create(config_map(namespace, "a")))["metadata"]["uid"]
    await client.delete(CONFIG_MAP, namespace, "a")
    with pytest.raises(Conflict):
        await client.apply(with_uid(config_map(namespace, "a"), uid), "berth")
    with pytest.raises(NotFound):
        await client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {}}, uid=uid)


async def test_old_versions_conflict(client: KubeClient, namespace: str) -> None:
    old = (await client.create(config_map(namespace, "a")))["metadata"]["resourceVersion"]
    await client.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"x": "1"}})
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAP, namespace, "a", resource_version=old)
    with pytest.raises(Conflict):
        await client.merge_patch(CONFIG_MAP, namespace, "a", {"metadata": {"resourceVersion": old}, "data": {"x": "2"}})


async def test_an_apply_without_force_respects_other_owners(client: KubeClient, namespace: str) -> None:
    await client.apply(config_map(namespace, "a", x="1"), "somebody")
    with pytest.raises(Conflict, match="somebody"):
        await client.apply(config_map(namespace, "a", x="2"), "berth", force=False)
    assert (await client.apply(config_map(namespace, "a", x="2"), "berth"))["data"] == {"x": "2"}


async def test_bodies_that_do_not_fit_the_schema_are_rejected_for_good(client: KubeClient, namespace: str) -> None:
    unknown = {**config_map(namespace, "a"), "nonsense": 1}
    with pytest.raises(Rejected, match="nonsense"):
        await client.create(unknown)
    with pytest.raises(Rejected, match="field not declared"):
        await client.apply(unknown, "berth")
    with pytest.raises(Rejected, match="expected string"):
        await client.apply(config_map(namespace, "a", x=1), "berth")
    with pytest.raises(Rejected, match=r"metadata\.name"):
        await client.create(config_map(namespace, "A_"))
    with pytest.raises(Rejected, match="unable to parse"):
        await client.list(CONFIG_MAP, namespace, label_selector="a in (")


async def test_what_is_missing_is_not_found(client: KubeClient, namespace: str) -> None:
    with pytest.raises(NotFound):
        await client.get(NODE, None, "nobody")
    with pytest.raises(NotFound):
        await client.create(config_map("no-such-namespace", "a"))
    with pytest.raises(NotFound):
        await client.list(Kind("nobody.example.com", "v1", "Nothing", "nothings"))


async def test_a_quota_is_a_rejection_with_the_servers_words(
    client: KubeClient, cluster: Cluster, namespace: str
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": namespace, "name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    await cluster.create(quota)

    async def counted() -> Any:
        return (await cluster.get("resourcequotas", "none", namespace)).get("status", {}).get("hard")

    await eventually(counted)
    with pytest.raises(Rejected, match="exceeded quota: none, requested: pods=1"):
        await client.create(pod(namespace, "a"))


async def test_pod_security_is_a_rejection(client: KubeClient, cluster: Cluster, namespace: str) -> None:
    await cluster.patch(
        "namespaces", namespace, None, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    with pytest.raises(Rejected, match="violates PodSecurity"):
        await client.create(pod(namespace, "a"))


async def test_a_terminating_namespace_is_named_as_the_reason(
    client: KubeClient, cluster: Cluster, namespace: str
) -> None:
    held = {**config_map(namespace, "held")}
    held["metadata"]["finalizers"] = ["berth.dev/test"]
    await client.create(held)
    await cluster.delete("namespaces", namespace)

    async def refused() -> str:
        try:
            await client.create(config_map(namespace, "late"))
        except Rejected as error:
            return error.reason
        await client.delete(CONFIG_MAP, namespace, "late")
        return ""

    assert await eventually(refused) == "NamespaceTerminating"
    await client.merge_patch(CONFIG_MAP, namespace, "held", {"metadata": {"finalizers": None}})


@pytest.fixture
async def powerless(cluster: Cluster, kubeconfig: Path, namespace: str) -> AsyncIterator[KubeClient]:
    """A client with a service account that may do nothing."""
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    answer = await cluster.request("POST", account, body={"spec": {"expirationSeconds": 3600}})
    config = await configuration(str(kubeconfig))
    config.api_key["BearerToken"] = "Bearer " + answer["status"]["token"]
    async with ApiClient(config) as api:
        yield KubeClient(api)


async def test_missing_rights_name_verb_and_resource(powerless: KubeClient, namespace: str) -> None:
    with pytest.raises(Forbidden) as caught:
        await powerless.delete(POD_DISRUPTION_BUDGET, namespace, "a")
    assert (caught.value.verb, caught.value.resource) == ("delete", "poddisruptionbudgets")
    with pytest.raises(Forbidden) as caught:
        await powerless.evict(namespace, "a")
    assert (caught.value.verb, caught.value.resource) == ("create", "pods/eviction")
    with pytest.raises(Forbidden) as caught:
        [_ async for _ in powerless.watch(NODE, resource_version="1", seconds=1)]
    assert (caught.value.verb, caught.value.resource) == ("watch", "nodes")


async def test_evictions_follow_budgets_and_uids(client: KubeClient, cluster: Cluster, namespace: str) -> None:
    created = await client.create(pod(namespace, "a", labels={"app": "x"}))
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    await client.merge_patch(POD, namespace, "a", {"status": ready}, subresource="status")
    for name in ("one", "two"):
        await client.create(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"minAvailable": 1000, "selector": {"matchLabels": {"app": "x"}}},
            }
        )
    with pytest.raises(Rejected, match="more than one PodDisruptionBudget"):
        await client.evict(namespace, "a")
    await client.delete(POD_DISRUPTION_BUDGET, namespace, "two")
    with pytest.raises(TooManyRequests):
        await client.evict(namespace, "a")
    await client.delete(POD_DISRUPTION_BUDGET, namespace, "one")
    with pytest.raises(Conflict):
        await client.evict(namespace, "a", uid=STRANGER)
    await client.evict(namespace, "a", uid=created["metadata"]["uid"], grace_seconds=0)
    with pytest.raises(NotFound):
        await client.evict(namespace, "a")


async def test_pages_put_together_are_the_whole_list(client: KubeClient, namespace: str) -> None:
    for number in range(7):
        await client.create(config_map(namespace, f"c{number}"))
    whole = await client.list(CONFIG_MAP, namespace, label_selector="app=x")
    paged = await client.list(CONFIG_MAP, namespace, label_selector="app=x", page=3)
    assert list(paged.items) == list(whole.items)
    assert len(paged.items) == 7
    assert all(item["kind"] == "ConfigMap" and item["apiVersion"] == "v1" for item in paged.items)
    one = await client.list(CONFIG_MAP, namespace, field_selector="metadata.name=c3")
    assert [item["metadata"]["name"] for item in one.items] == ["c3"]


async def test_a_list_not_older_than_a_write_shows_it(client: KubeClient, namespace: str) -> None:
    for number in range(20):
        written = await client.create(config_map(namespace, f"m{number}"))
        version = written["metadata"]["resourceVersion"]
        listing = await client.list(CONFIG_MAP, namespace, not_older_than=version)
        assert f"m{number}" in {item["metadata"]["name"] for item in listing.items}
        assert int(listing.resource_version) >= int(version)


async def test_a_version_that_the_server_has_not_reached_is_transient(client: KubeClient, namespace: str) -> None:
    version = await client.newest_version(CONFIG_MAP)
    with pytest.raises(Transient, match="Too large resource version"):
        await client.list(CONFIG_MAP, namespace, not_older_than=str(int(version) + 1_000_000))


async def test_a_watch_continues_a_list(client: KubeClient, namespace: str) -> None:
    await client.create(config_map(namespace, "before"))
    listing = await client.list(CONFIG_MAP, namespace)
    await client.create(config_map(namespace, "after"))
    await client.delete(CONFIG_MAP, namespace, "before")
    watch = client.watch(
        CONFIG_MAP, namespace, resource_version=listing.resource_version, label_selector="app=x", seconds=1
    )
    seen = [(event.type, event.object["metadata"]["name"]) async for event in watch]
    assert seen == [("ADDED", "after"), ("DELETED", "before")]


async def test_a_quiet_watch_ends_when_agreed_with_a_bookmark_of_what_went_on_elsewhere(
    client: KubeClient, namespace: str
) -> None:
    listing = await client.list(CONFIG_MAP, namespace, label_selector="app=nobody")
    newest = (await client.create(config_map(namespace, "a")))["metadata"]["resourceVersion"]
    watch = client.watch(
        CONFIG_MAP, namespace, resource_version=listing.resource_version, label_selector="app=nobody", seconds=5
    )
    events = [event async for event in watch]
    assert {event.type for event in events} == {"BOOKMARK"}
    assert int(events[-1].object["metadata"]["resourceVersion"]) >= int(newest)


async def test_the_newest_version_never_lags_behind_a_write(client: KubeClient, namespace: str) -> None:
    written = (await client.create(config_map(namespace, "a")))["metadata"]["resourceVersion"]
    assert int(await client.newest_version(POD)) >= int(written)


async def test_a_wrong_token_is_transient_because_tokens_are_renewed(kubeconfig: Path) -> None:
    config = await configuration(str(kubeconfig))
    config.api_key["BearerToken"] = "Bearer nobody"
    async with ApiClient(config) as api:
        with pytest.raises(Transient, match="401"):
            await KubeClient(api).get(NODE, None, "a")
