"""The CRDs on a real API server: samples accepted, bad input refused in words, the same verdict as the models,
scale subresource, immutability, pruning, printer columns.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berth.api.common import parse
from berth.api.crd import RESOURCES, Resource
from berth.errors import InvalidSpec
from tests.support.api_objects import objects, valid_objects
from tests.support.bad_objects import BAD_OBJECTS
from tests.support.bad_values import Bad
from tests.support.cluster import ApiError, Cluster
from tests.support.samples import BASES, REMOVED, REPLICA_GROUP, Manifest, edit, samples

LLAMA = BASES["fixed-placement/LLMDeployment/llama-70b"]
POOL = BASES["pools/GPUPool/h100"]
LLMD = "llmdeployments"
on_a_real_server = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
async def crds(cluster: Cluster) -> None:
    await cluster.install_crds()


@pytest.fixture
async def deployment(cluster: Cluster, crds: None, namespace: str) -> Manifest:
    """A stored LLMDeployment named llama-70b."""
    return await cluster.create(placed(LLAMA, namespace))


def placed(manifest: Manifest, namespace: str) -> Manifest:
    """In the test's namespace, if its kind lives in one."""
    return manifest if manifest["kind"] == "GPUPool" else edit(manifest, {"metadata.namespace": namespace})


async def test_samples_are_accepted_with_strict_field_validation(cluster: Cluster, crds: None, namespace: str) -> None:
    for manifest in [*samples().values(), REPLICA_GROUP]:
        await cluster.create(placed(manifest, namespace), dry_run=True)


async def test_bad_objects_are_refused_with_field_bound_and_remedy(
    cluster: Cluster, crds: None, namespace: str
) -> None:
    async def complaint(bad: Bad) -> str:
        try:
            await cluster.create(placed(bad.manifest, namespace), dry_run=True)
        except ApiError as error:
            if error.status != 422:
                return f"{bad.name}: {error}"
            if bad.field not in error.message:
                return f"{bad.name}: {bad.field} is not named: {error.message[:400]}"
            if bad.words not in error.message:
                return f"{bad.name}: does not say {bad.words!r}: {error.message[:400]}"
            return ""
        return f"{bad.name}: accepted"

    complaints = await asyncio.gather(*(complaint(bad) for bad in BAD_OBJECTS))
    assert not (failed := [line for line in complaints if line]), "\n".join(failed)


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
@on_a_real_server
@given(st.data())
async def test_server_and_models_agree_on_what_is_valid(
    cluster: Cluster, crds: None, namespace: str, resource: Resource, data: st.DataObject
) -> None:
    manifest = placed(data.draw(objects(resource) | valid_objects(resource)), namespace)
    assert bool(await refusal(cluster, manifest)) == bool(objection(resource, manifest)), (
        f"server: {await refusal(cluster, manifest)}\nmodel: {objection(resource, manifest)}"
    )


async def refusal(cluster: Cluster, manifest: Manifest) -> str:
    """What the API server says against the object; empty if nothing."""
    try:
        await cluster.create(manifest, dry_run=True)
    except ApiError as error:
        return error.message
    return ""


def objection(resource: Resource, manifest: Manifest) -> str:
    """What the model says against the object; empty if nothing."""
    try:
        parse(resource.model, manifest, known_fields_only=True)
    except InvalidSpec as error:
        return str(error)
    return ""


async def test_message_reads_as_promised(cluster: Cluster, crds: None, namespace: str) -> None:
    with pytest.raises(ApiError) as error:
        await cluster.create(placed(edit(LLAMA, {"spec.scaling": {"min": 3, "max": 2}}), namespace), dry_run=True)
    assert error.value.message == (
        'LLMDeployment.berth.dev "llama-70b" is invalid: spec.scaling: Invalid value: '
        "max must not be below min: raise max or lower min"
    )


async def test_unknown_fields_are_named_to_people_and_pruned_for_others(
    cluster: Cluster, crds: None, namespace: str
) -> None:
    unknown = placed(edit(LLAMA, {"spec.scaling.maximum": 3}), namespace)
    with pytest.raises(ApiError, match=r'unknown field "spec\.scaling\.maximum"') as error:
        await cluster.create(unknown)
    assert error.value.status == 400
    path = f"/apis/berth.dev/v1alpha1/namespaces/{namespace}/{LLMD}"
    stored = await cluster.request("POST", path, body=unknown)
    assert stored["spec"]["scaling"] == LLAMA["spec"]["scaling"]


async def test_only_replicas_is_filled_in(deployment: Manifest) -> None:
    assert deployment["spec"] == {**LLAMA["spec"], "replicas": 1}


async def test_scale_reads_and_writes_replicas(cluster: Cluster, deployment: Manifest, namespace: str) -> None:
    status = {"status": {"replicas": 2, "readyReplicas": 1, "selector": "berth.dev/member=leader"}}
    await cluster.patch(LLMD, "llama-70b", namespace, status, subresource="status")
    path = f"/apis/berth.dev/v1alpha1/namespaces/{namespace}/{LLMD}/llama-70b/scale"
    scale = await cluster.request("GET", path)
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 2, "selector": "berth.dev/member=leader"}

    await cluster.patch(LLMD, "llama-70b", namespace, {"spec": {"replicas": 5}}, subresource="scale")
    assert (await cluster.get(LLMD, "llama-70b", namespace))["spec"]["replicas"] == 5


@pytest.mark.parametrize("replicas", [0, -1, 1001])
async def test_scale_beyond_the_bounds_is_refused(
    cluster: Cluster, deployment: Manifest, namespace: str, replicas: int
) -> None:
    with pytest.raises(ApiError, match="replicas") as error:
        await cluster.patch(LLMD, "llama-70b", namespace, {"spec": {"replicas": replicas}}, subresource="scale")
    assert error.value.status == 422


async def test_status_and_spec_are_written_apart(cluster: Cluster, deployment: Manifest, namespace: str) -> None:
    both = {"spec": {"replicas": 7}, "status": {"needed": 2}}
    await cluster.patch(LLMD, "llama-70b", namespace, both, subresource="status")
    stored = await cluster.get(LLMD, "llama-70b", namespace)
    assert (stored["spec"]["replicas"], stored["status"]) == (1, {"needed": 2})
    assert stored["metadata"]["generation"] == 1

    await cluster.patch(LLMD, "llama-70b", namespace, {"spec": {"replicas": 7}, "status": {"needed": 9}})
    stored = await cluster.get(LLMD, "llama-70b", namespace)
    assert (stored["spec"]["replicas"], stored["status"]) == (7, {"needed": 2})


async def test_columns_come_from_the_summary(cluster: Cluster, deployment: Manifest, namespace: str) -> None:
    summary = {"ready": "1/2", "placement": "h100 fp8 tp2", "ttftP95": "412ms", "tpotP95": "-", "message": "Waiting"}
    await cluster.patch(LLMD, "llama-70b", namespace, {"status": {"summary": summary}}, subresource="status")
    table = await table_of(cluster, f"/apis/berth.dev/v1alpha1/namespaces/{namespace}/{LLMD}")
    assert table["columns"] == ["Name", "Ready", "Placement", "TTFT P95", "TPOT P95", "Status", "Age"]
    assert table["rows"][0][:6] == ["llama-70b", "1/2", "h100 fp8 tp2", "412ms", "-", "Waiting"]


async def table_of(cluster: Cluster, path: str) -> dict[str, Any]:
    """What `kubectl get` prints."""
    assert cluster._session is not None
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    async with cluster._session.get(cluster.server + path, headers=accept) as answer:
        table = await answer.json()
    return {
        "columns": [column["name"] for column in table["columnDefinitions"]],
        "rows": [row["cells"] for row in table["rows"]],
    }


@pytest.mark.parametrize(
    ("field", "value"), [("gpu", "H100-PCIe-80"), ("resourceName", "nvidia.com/mig-7g.80gb"), ("gpu", REMOVED)]
)
async def test_identity_of_a_pool_is_immutable(cluster: Cluster, crds: None, field: str, value: Any) -> None:
    pool = edit(POOL, {"metadata.name": "test-immutable"})
    try:
        stored = await cluster.create(pool)
        with pytest.raises(ApiError, match=f"spec.{field}") as error:
            await cluster.replace(edit(stored, {f"spec.{field}": value}))
        assert error.value.status == 422
        assert value is REMOVED or f"{field} is immutable: delete the object and create it anew" in error.value.message
        await cluster.replace(edit(stored, {"spec.pricePerGPUHour": "3.49"}))
    finally:
        await cluster.delete("gpupools", "test-immutable")


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.members": 1, "spec.plannedNodes": []},
        {"spec.allocation.maxBatchSize": 8},
        {"spec.plannedNodes": REMOVED},
        {"spec.allocation.precision": REMOVED},
    ],
    ids=" ".join,
)
async def test_spec_of_a_replica_group_is_immutable(
    cluster: Cluster, crds: None, namespace: str, changes: dict[str, Any]
) -> None:
    stored = await cluster.create(placed(REPLICA_GROUP, namespace))
    with pytest.raises(ApiError, match="spec is immutable: delete the object and create it anew"):
        await cluster.replace(edit(stored, changes))
    await cluster.replace(edit(stored, {"metadata.labels.role": "surge"}))


async def test_a_field_that_is_removed_is_gone(cluster: Cluster, deployment: Manifest, namespace: str) -> None:
    stored = await cluster.replace(edit(deployment, {"spec.scaling": REMOVED, "spec.objectives.limits": REMOVED}))
    assert "scaling" not in stored["spec"]
    assert "limits" not in stored["spec"]["objectives"]
    assert stored["metadata"]["generation"] == 2
