"""The local copy against a real API server, with the network in between misbehaving."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from berth.kube.auth import configuration
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import CONFIG_MAP, Object
from berth.kube.reflector import Reflector
from berth.local.controlplane import ControlPlane
from tests.support.cluster import PATIENCE, eventually
from tests.support.fault_proxy import BreakWatch, EditEvents, FaultProxy, Hang, Refuse


@pytest.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(control_plane) as running:
        yield running


class Mirror:
    """What a listener that only hears changes believes to exist."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}

    def __call__(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            del self.objects[old["metadata"]["name"]]
        else:
            assert (old is not None) == (new["metadata"]["name"] in self.objects)
            self.objects[new["metadata"]["name"]] = new


@asynccontextmanager
async def reflecting(
    proxy: FaultProxy, control_plane: ControlPlane, namespace: str, **options: Any
) -> AsyncIterator[tuple[Reflector, Mirror]]:
    """A reflector of the ConfigMaps labelled app=x, through the proxy, with quick time-outs."""
    config = await configuration(str(control_plane.kubeconfig))
    config.host = proxy.url
    mirror = Mirror()
    options = {"watch_seconds": 2.0, "label_selector": "app=x", "on_change": mirror, **options}
    async with ApiClient(config) as api:
        reflector = Reflector(KubeClient(api), CONFIG_MAP, namespace=namespace, **options)
        task = asyncio.create_task(reflector.run())
        await asyncio.wait_for(reflector.synced.wait(), 10)
        yield reflector, mirror
        assert not task.done(), task
        task.cancel()
        await asyncio.wait([task])


def config_map(namespace: str, name: str, **data: str) -> Object:
    metadata = {"namespace": namespace, "name": name, "labels": {"app": "x"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def equal(
    client: KubeClient, namespace: str, reflector: Reflector, mirror: Mirror, timeout: float = PATIENCE
) -> None:
    """Waits until server, copy and listener agree on every object and version."""

    async def agree() -> bool:
        listing = await client.list(CONFIG_MAP, namespace, label_selector="app=x")
        truth = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in listing.items}
        held = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in reflector.store.all()}
        heard = {name: item["metadata"]["resourceVersion"] for name, item in mirror.objects.items()}
        assert truth == held == heard, f"{len(truth)} on the server, {len(held)} held, {len(heard)} heard"
        return True

    await eventually(agree, timeout=timeout)


async def test_the_copy_follows_and_objects_that_leave_the_selector_are_gone(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    await client.create(config_map(namespace, "before"))
    async with reflecting(proxy, control_plane, namespace) as (reflector, mirror):
        assert len(reflector.store) == 1
        await client.create(config_map(namespace, "a"))
        await client.merge_patch(CONFIG_MAP, namespace, "before", {"data": {"x": "1"}})
        await equal(client, namespace, reflector, mirror)
        await client.merge_patch(CONFIG_MAP, namespace, "a", {"metadata": {"labels": {"app": None}}})
        await equal(client, namespace, reflector, mirror)
        held = reflector.store.get(namespace, "before")
        assert held is not None
        assert held["data"] == {"x": "1"}
        assert "managedFields" not in held["metadata"]
        assert set(mirror.objects) == {"before"}


async def test_objects_deleted_in_a_gap_that_the_server_has_forgotten_leave_no_ghosts(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    for number in range(5):
        await client.create(config_map(namespace, f"c{number}"))
    async with reflecting(proxy, control_plane, namespace) as (reflector, mirror):
        proxy.partition()
        for number in range(4):
            await client.delete(CONFIG_MAP, namespace, f"c{number}")
        await client.create(config_map(namespace, "c0", again="1"))
        await eventually(_failing(reflector))
        assert len(reflector.store) == 5, "nothing is forgotten while the server cannot be asked"
        proxy.inject(Refuse(410), verb="watch", times=1)
        proxy.heal()
        await equal(client, namespace, reflector, mirror)
        assert set(mirror.objects) == {"c0", "c4"}


async def test_a_frozen_stream_is_noticed_soon_after_its_agreed_end(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    proxy.inject(BreakWatch("freeze"), verb="watch", resource="configmaps", times=1)
    async with reflecting(proxy, control_plane, namespace) as (reflector, mirror):
        await client.create(config_map(namespace, "a"))
        started = asyncio.get_running_loop().time()
        await equal(client, namespace, reflector, mirror)
        assert asyncio.get_running_loop().time() - started < 2 + 5 + 3
        assert reflector.age() < 3


async def test_dropped_events_are_made_good_by_the_next_list(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    await client.create(config_map(namespace, "a"))
    proxy.inject(EditEvents(_drop_changes), verb="watch", resource="configmaps")
    async with reflecting(proxy, control_plane, namespace, relist_seconds=3.0) as (reflector, mirror):
        await client.delete(CONFIG_MAP, namespace, "a")
        await client.create(config_map(namespace, "b"))
        await equal(client, namespace, reflector, mirror)


async def test_whatever_the_network_does_the_copy_converges(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    rng = random.Random(7)
    proxy.inject(EditEvents(lambda event: [event, event]), verb="watch", times=3)
    async with reflecting(proxy, control_plane, namespace) as (reflector, mirror):
        for step in range(120):
            name = f"c{rng.randrange(12)}"
            try:
                if rng.random() < 0.35:
                    await client.delete(CONFIG_MAP, namespace, name)
                else:
                    await client.apply(config_map(namespace, name, step=str(step)), "test")
            except NotFound:
                pass
            if step % 15 == 14:
                proxy.inject(
                    rng.choice(
                        [BreakWatch("truncate", events=2), Refuse(410), Refuse(500), Refuse(429, retry_after=1)]
                    ),
                    verb="watch",
                    times=1,
                )
                proxy.cut()
        await equal(client, namespace, reflector, mirror)


async def test_a_list_that_hangs_is_given_up_and_tried_again(
    client: KubeClient, proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    await client.create(config_map(namespace, "a"))
    config = await configuration(str(control_plane.kubeconfig))
    config.host = proxy.url
    proxy.inject(Hang(), verb="list", times=1)
    async with ApiClient(config) as api:
        from berth.kube.limits import Limits

        reflector = Reflector(KubeClient(api, limits=Limits(list_seconds=0.5)), CONFIG_MAP, namespace=namespace)
        task = asyncio.create_task(reflector.run())
        await asyncio.wait_for(reflector.synced.wait(), 10)
        task.cancel()


def _failing(reflector: Reflector) -> Any:
    async def condition() -> bool:
        return reflector.error is not None

    return condition


def _drop_changes(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [event] if event["type"] == "BOOKMARK" else []
