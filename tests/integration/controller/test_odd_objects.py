"""Objects of a newer release, errors of Berth's own, refusals: nothing crashes, what serves is left, others go on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml

from berth.controller import reconcile
from berth.core.plan import Plan, make_plan
from tests.integration.controller.conftest import Site
from tests.support.berth import RunningBerth
from tests.support.cluster import CRDS, ApiError, eventually

ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


@asynccontextmanager
async def a_newer_release(site: Site) -> AsyncIterator[None]:
    """Inside the block the server takes fields and values that this release does not know, and keeps them."""
    for path in sorted(CRDS.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            schema = {"type": "object", "properties": {"spec": ANYTHING, "status": ANYTHING}}
            manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema
            await site.cluster.apply(manifest)
    try:
        yield
    finally:
        await site.cluster.install_crds()


async def write(site: Site, kind: str, name: str, body: dict[str, Any], *, subresource: str = "") -> None:
    """Once the server has the schema of the block."""
    namespace = None if kind == "gpupools" else site.namespace

    async def kept() -> bool:
        try:
            found = await site.cluster.patch(kind, name, namespace, body, subresource=subresource)
        except ApiError as error:
            raise AssertionError(str(error)) from None
        part = "status" if subresource else "spec"
        assert all(found[part].get(key) == value for key, value in body[part].items()), found[part]
        return True

    await eventually(kept)


async def test_what_a_newer_release_stored_neither_crashes_nor_stops_anything(site: Site, berth: RunningBerth) -> None:
    pool = await site.pool()
    await site.create(site.deployment(pool))
    await site.settled()
    before = await site.serving()
    group = (await site.groups())[0]
    name = group["metadata"]["name"]
    async with a_newer_release(site):
        newer = {**group["spec"]["allocation"], "precision": "fp4", "kvPrecision": "fp2", "sparsity": "2:4"}
        await write(site, "replicagroups", name, {"spec": {"allocation": newer, "colour": "green"}})
        thinking = {"status": {"state": "Thinking", "mood": "calm"}}
        await write(site, "replicagroups", name, thinking, subresource="status")
        await write(site, "gpupools", pool, {"spec": {"moon": "full"}})
        dreams = {"status": {"dreams": ["sheep"], "moves": {"current": {"id": "m1", "phase": "Dreaming"}}}}
        await write(site, "llmdeployments", "llama", dreams, subresource="status")
    await site.scale(3)
    await eventually(lambda: _serve(site, 3))
    assert before < await site.serving()


async def _serve(site: Site, count: int, name: str = "llama") -> bool:
    assert len(await site.serving(name)) == count, (await site.get(name))["status"]
    return True


async def test_a_spec_that_this_release_cannot_read_is_said_and_its_groups_stay(
    site: Site, berth: RunningBerth
) -> None:
    pool = await site.pool()
    await site.create(site.deployment(pool))
    await site.settled()
    before = await site.serving()
    async with a_newer_release(site):
        await write(site, "llmdeployments", "llama", {"spec": {"engine": {"backend": "quantum"}}})
    found = await site.until("Accepted", "False")
    message = (await site.condition("Accepted"))["message"]
    words = "spec.engine.backend: unsupported value: use 'pytorch', 'tensorrt' or 'simulated'"
    assert message == f"{words} (or a Berth release that knows it)"
    assert found["status"]["summary"]["message"] == f"Not accepted: {message}"
    await site.create(site.deployment(pool, "neighbour"))
    await site.settled("neighbour")
    assert await site.serving() == before
    await site.patch({"spec": {"engine": {"backend": "simulated"}}})
    await site.settled()
    assert await site.serving() == before


async def test_a_pool_that_this_release_cannot_read_is_said_and_its_groups_stay(
    site: Site, berth: RunningBerth
) -> None:
    pool = await site.pool()
    await site.create(site.deployment(pool))
    await site.settled()
    before = await site.serving()
    async with a_newer_release(site):
        await write(site, "gpupools", pool, {"spec": {"interconnect": "Light"}})
    await site.scale(3)
    await site.until("Accepted", "False")
    message = (await site.condition("Accepted"))["message"]
    assert message == (
        f"spec.placement: this release cannot read GPUPool {pool}: its condition Accepted says what to correct"
    )

    async def the_pool_says_what() -> bool:
        status = (await site.cluster.get("gpupools", pool)).get("status", {})
        said = [each["message"] for each in status.get("conditions", []) if each["type"] == "Accepted"]
        assert said, status
        assert said[0].startswith("spec.interconnect: unsupported value"), said
        return True

    await eventually(the_pool_says_what)
    assert await site.serving() == before
    await site.cluster.patch("gpupools", pool, None, {"spec": {"interconnect": "NVLink"}})
    await eventually(lambda: _serve(site, 3))
    assert before < await site.serving()


async def test_an_error_of_berths_own_stops_one_deployment_only(
    site: Site, berth: RunningBerth, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plan(snapshot: Any, *others: Any) -> Plan:
        if snapshot.deployment.metadata.name == "cursed":
            raise RuntimeError("out of magic")
        return make_plan(snapshot, *others)

    pool = await site.pool()
    await site.create(site.deployment(pool, "cursed", groups=1))
    await site.settled("cursed")
    monkeypatch.setattr(reconcile, "make_plan", plan)
    caplog.set_level(logging.CRITICAL, logger="berth.kube.workqueue")  # the traceback is meant for the log alone
    await site.patch({"metadata": {"annotations": {"wake": "up"}}}, "cursed")
    words = "internal error, the operator's log has more: RuntimeError: out of magic"
    await site.until("Stalled", name="cursed")
    assert (await site.condition("Stalled", "cursed"))["message"] == words
    assert (await site.get("cursed"))["status"]["summary"] == {
        **(await site.get("cursed"))["status"]["summary"],
        "ready": "1/1",
        "message": words,
    }
    for name in ("first", "second"):
        await site.create(site.deployment(pool, name, groups=1))
    for name in ("first", "second"):
        await site.settled(name)
    told = [event for event in await site.events("cursed") if event["reason"] == "InternalError"]
    assert len(told) == 1
    assert len(await site.serving("cursed")) == 1

    monkeypatch.undo()
    await site.until("Stalled", "False", name="cursed")
    assert (await site.get("cursed"))["status"]["summary"]["message"] == "Ready"


async def test_refused_pods_are_said_tried_again_later_and_hold_nothing(site: Site, berth: RunningBerth) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": site.namespace}}
    await site.cluster.create({**quota, "spec": {"hard": {"pods": "1"}}})

    async def counted() -> bool:
        return "hard" in (await site.cluster.get("resourcequotas", "full", site.namespace)).get("status", {})

    await eventually(counted)
    async with site.recording("replicagroups") as changes:
        await site.create(site.deployment(await site.pool(), tp=8, pp=2, groups=1))

        async def said() -> bool:
            placed = await site.condition("Placed")
            assert (placed.get("status"), placed.get("reason")) == ("False", "ApiRefused"), placed
            assert "exceeded quota: full" in placed["message"]
            return True

        await eventually(said)

        async def nothing_is_held() -> bool:
            return not await site.pods() and not await site.groups()

        await eventually(nothing_is_held)
    assert len({change.object["metadata"]["uid"] for change in changes}) == 1, "not again at once"
    message = (await site.get())["status"]["summary"]["message"]
    assert message.startswith("Refused: create ")
    await site.cluster.delete("resourcequotas", "full", site.namespace)
    await site.settled()
