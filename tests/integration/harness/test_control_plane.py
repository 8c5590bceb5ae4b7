"""The control plane is a real one: what other tests rely on is shown here once."""

from __future__ import annotations

import pytest

from tests.support.cluster import ApiError, Cluster, Manifest, eventually


def config_map(name: str, namespace: str, owner: Manifest | None = None) -> Manifest:
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
    }
    if owner:
        metadata = owner["metadata"]
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": metadata["name"], "uid": metadata["uid"]}
        manifest["metadata"]["ownerReferences"] = [reference]
    return manifest


async def test_children_of_a_deleted_owner_are_collected(cluster: Cluster, namespace: str) -> None:
    owner = await cluster.create(config_map("owner", namespace))
    await cluster.create(config_map("child", namespace, owner))
    await cluster.create(config_map("bystander", namespace))

    await cluster.delete("configmaps", "owner", namespace)

    await eventually(lambda: absent(cluster, "child", namespace))
    assert await cluster.find("configmaps", "bystander", namespace)


async def absent(cluster: Cluster, name: str, namespace: str) -> bool:
    return await cluster.find("configmaps", name, namespace) is None


async def test_unknown_fields_are_refused_by_name(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ApiError, match='unknown field "dtaa"') as refused:
        await cluster.create({**config_map("typo", namespace), "dtaa": {}})
    assert refused.value.status == 400


async def test_a_restricted_namespace_refuses_a_privileged_pod(cluster: Cluster, namespace: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await cluster.patch("namespaces", namespace, None, {"metadata": {"labels": labels}})
    container = {"name": "main", "image": "example.invalid/none", "securityContext": {"privileged": True}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"containers": [container]},
    }
    with pytest.raises(ApiError, match='violates PodSecurity "restricted') as refused:
        await cluster.create(pod)
    assert refused.value.status == 403


async def test_a_service_account_may_do_only_what_roles_grant(cluster: Cluster, namespace: str) -> None:
    token = await cluster.service_account_token("default", namespace)
    async with Cluster(cluster.kubeconfig, token=token) as nobody:
        with pytest.raises(ApiError, match=f"system:serviceaccount:{namespace}:default.*cannot list") as refused:
            await nobody.list("configmaps", namespace)
    assert refused.value.status == 403


async def test_a_watch_shows_changes_as_they_happen(cluster: Cluster, namespace: str) -> None:
    before = await cluster.create(config_map("first", namespace))
    version = before["metadata"]["resourceVersion"]
    await cluster.create(config_map("second", namespace))
    await cluster.delete("configmaps", "second", namespace)
    seen = []
    async with cluster.watch("configmaps", namespace, resource_version=version) as events:
        async for event in events:
            seen.append((event["type"], event["object"]["metadata"]["name"]))
            if event["type"] == "DELETED":
                break
    assert seen == [("ADDED", "second"), ("DELETED", "second")]
