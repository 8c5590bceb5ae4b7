"""The CRDs on a real API server: samples accepted, bad input refused with good words, scale and immutability."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from berth.api.common import parse
from berth.api.crd import RESOURCES
from tests.support.bad_objects import BAD_OBJECTS, BASES, REPLICA_GROUP, Bad, edit, samples
from tests.support.cluster import ApiError, Cluster

Manifest = dict[str, Any]
LLAMA = "llama-70b/LLMDeployment/llama-70b"
POOL = "pools/GPUPool/h100"
MODELS = {resource.kind: resource.model for resource in RESOURCES}
OWN_WORDS_ONLY = ("Too long", "must not be above", "must be")


@pytest.fixture
async def crds(cluster: Cluster) -> None:
    await cluster.install_crds()


def placed(manifest: Manifest, namespace: str) -> Manifest:
    """In the test's namespace, if its kind lives in one."""
    return manifest if manifest["kind"] == "GPUPool" else edit(manifest, {"metadata.namespace": namespace})


async def refusal(cluster: Cluster, manifest: Manifest) -> str:
    """The message a person reads when this is refused."""
    with pytest.raises(ApiError) as error:
        await cluster.create(manifest, dry_run=True)
    assert error.value.status == 422, error.value
    return error.value.message


async def test_samples_are_accepted_with_strict_field_validation(
    cluster: Cluster, crds: None, namespace: str
) -> None:
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
