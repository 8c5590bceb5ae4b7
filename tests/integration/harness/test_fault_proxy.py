"""The fault proxy breaks exactly what it says, and nothing else differs from the API server behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from berth.local.controlplane import ControlPlane
from tests.support.cluster import ApiError, Cluster, Manifest, eventually
from tests.support.fault_proxy import BreakWatch, Call, Delay, EditEvents, FaultProxy, Hang, LoseReply, Refuse, Reset


@pytest.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(control_plane) as running:
        yield running


@pytest.fixture
async def client(control_plane: ControlPlane, proxy: FaultProxy) -> AsyncIterator[Cluster]:
    """A client whose only way is the proxy."""
    async with Cluster(control_plane.kubeconfig, server=proxy.url) as behind:
        await behind.get("namespaces", "default")  # discovery is done
        proxy.calls.clear()
        yield behind


def config_map(name: str, namespace: str, data: str = "") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"value": data},
    }


async def watched(
    client: Cluster, namespace: str, *, since: Manifest, until: str, events: list[tuple[str, str]] | None = None
) -> list[tuple[str, str]]:
    """(type, name) of the events after `since`, up to the one about `until` or to the end of the stream."""
    seen = events if events is not None else []
    version = since["metadata"]["resourceVersion"]
    async with client.watch("configmaps", namespace, resource_version=version) as stream:
        async for event in stream:
            seen.append((event["type"], event["object"].get("metadata", {}).get("name", "")))
            if seen[-1][1] == until:
                break
    return seen


# --- passing ----------------------------------------------------------------------------------------------------------


async def test_calls_pass_and_are_recorded_in_the_words_of_rbac(
    client: Cluster, proxy: FaultProxy, namespace: str
) -> None:
    await client.create(config_map("a", namespace))
    await client.apply(config_map("a", namespace, "new"))
    await client.get("configmaps", "a", namespace)
    await client.list("configmaps", namespace, labels="x=y")
    await client.service_account_token("default", namespace)
    await client.delete("configmaps", "a", namespace)
    assert [(call.verb, call.resource, call.subresource, call.name, call.status) for call in proxy.calls] == [
        ("create", "configmaps", "", "", 201),
        ("patch", "configmaps", "", "a", 200),
        ("get", "configmaps", "", "a", 200),
        ("list", "configmaps", "", "", 200),
        ("create", "serviceaccounts", "token", "default", 201),
        ("delete", "configmaps", "", "a", 200),
    ]
    assert {call.namespace for call in proxy.calls} == {namespace}
    assert [call.verb for call in proxy.writes] == ["create", "patch", "create", "delete"]
    assert ("create", "", "serviceaccounts/token") in proxy.permissions()


async def test_namespaces_and_groups_are_told_apart_from_what_is_in_them(client: Cluster, proxy: FaultProxy) -> None:
    await client.get("namespaces", "default")
    await client.list("leases", "kube-node-lease")
    assert proxy.permissions() == {("get", "", "namespaces"), ("list", "coordination.k8s.io", "leases")}
    assert [call.namespace for call in proxy.calls] == ["", "kube-node-lease"]


async def test_refused_and_dry_run_writes_do_not_count(client: Cluster, proxy: FaultProxy, namespace: str) -> None:
    await client.create(config_map("a", namespace), dry_run=True)
    await client.create(config_map("a", namespace))
    with pytest.raises(ApiError, match="AlreadyExists"):
        await client.create(config_map("a", namespace))
    assert [call.status for call in proxy.calls] == [201, 201, 409]
    assert proxy.writes == [proxy.calls[1]]


async def test_large_objects_pass(client: Cluster, namespace: str) -> None:
    large = "x" * 1_000_000
    first = await client.create(config_map("first", namespace))
    await client.create(config_map("large", namespace, large))
    assert (await client.get("configmaps", "large", namespace))["data"]["value"] == large
    assert await watched(client, namespace, since=first, until="large") == [("ADDED", "large")]


async def test_watch_events_pass_one_by_one(client: Cluster, cluster: Cluster, namespace: str) -> None:
    first = await client.create(config_map("first", namespace))
    seen: list[tuple[str, str]] = []
    watching = asyncio.ensure_future(watched(client, namespace, since=first, until="end", events=seen))
    for name in ("a", "b"):
        await cluster.create(config_map(name, namespace))
        await eventually(partial(last_is, seen, ("ADDED", name)))
    await cluster.create(config_map("end", namespace))
    await watching


async def last_is(seen: list[tuple[str, str]], event: tuple[str, str]) -> bool:
    return seen[-1:] == [event]


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_a_refused_call_is_not_done_and_says_when_to_retry(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    rule = proxy.inject(Refuse(429, "TooManyRequests", retry_after=3), verb="create", resource="configmaps", times=2)
    for _ in range(2):
        with pytest.raises(ApiError, match="429 TooManyRequests"):
            await client.create(config_map("a", namespace))
    assert await cluster.find("configmaps", "a", namespace) is None
    await client.create(config_map("a", namespace))
    assert rule.hits == 2
    async with aiohttp.ClientSession() as session:
        proxy.inject(Refuse(429, retry_after=3))
        async with session.get(proxy.url + "/api/v1/pods", ssl=False) as answer:
            assert answer.headers["Retry-After"] == "3"


async def test_a_lost_reply_is_lost_after_the_work_was_done(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    proxy.inject(LoseReply(), verb="create", resource="configmaps", times=1)
    with pytest.raises(aiohttp.ClientError):
        await client.create(config_map("a", namespace))
    assert await cluster.find("configmaps", "a", namespace)
    assert [(call.committed, call.status) for call in proxy.calls] == [(True, 0)]


async def test_a_reset_or_hanging_call_never_reaches_the_server(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    proxy.inject(Reset(), verb="create", times=1)
    with pytest.raises(aiohttp.ClientError):
        await client.create(config_map("a", namespace))
    proxy.inject(Hang(), verb="create", times=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.create(config_map("a", namespace)), 0.5)
    assert await cluster.find("configmaps", "a", namespace) is None
    assert not proxy.writes


async def test_a_delayed_call_holds_up_nobody_else(client: Cluster, proxy: FaultProxy, namespace: str) -> None:
    proxy.inject(Delay(1), verb="create", times=1)
    late = asyncio.ensure_future(client.create(config_map("late", namespace)))
    await eventually(lambda: arrived(proxy, "create"))
    await client.create(config_map("early", namespace))
    assert not late.done()
    await late


async def arrived(proxy: FaultProxy, verb: str) -> bool:
    return any(call.verb == verb for call in proxy.calls)


async def test_a_hook_after_the_nth_write_sees_it_committed_and_can_take_the_reply(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    found: list[Any] = []

    async def look(call: Call) -> None:
        found.append((call.verb, await cluster.find("configmaps", "b", namespace) is not None))

    proxy.after_write(2, look, lose_reply=True)
    await client.create(config_map("a", namespace))
    with pytest.raises(aiohttp.ClientError):
        await client.create(config_map("b", namespace))
    await client.create(config_map("c", namespace))
    assert found == [("create", True)]


async def test_a_client_killed_after_the_nth_write_writes_no_more(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    async def write_for_ever() -> None:
        for index in range(1_000_000):
            await client.create(config_map(f"c{index}", namespace))

    writer = asyncio.ensure_future(write_for_ever())
    proxy.after_write(3, lambda call: writer.cancel())
    with pytest.raises(asyncio.CancelledError):
        await writer
    names = [each["metadata"]["name"] for each in await cluster.list("configmaps", namespace)]
    assert [name for name in names if name.startswith("c")] == ["c0", "c1", "c2"]


async def test_writes_that_are_not_counted_do_not_move_the_hook(
    control_plane: ControlPlane, cluster: Cluster, namespace: str
) -> None:
    hit: list[Call] = []
    async with (
        FaultProxy(control_plane, counted=lambda call: call.verb != "patch") as proxy,
        Cluster(control_plane.kubeconfig, server=proxy.url) as client,
    ):
        proxy.after_write(2, hit.append)
        await client.create(config_map("a", namespace))
        await client.apply(config_map("a", namespace, "new"))
        await client.create(config_map("b", namespace))
    assert [call.verb for call in hit] == ["create"]
    assert len(proxy.writes) == 3


# --- watches ----------------------------------------------------------------------------------------------------------


async def test_chosen_watch_events_can_be_dropped_and_doubled(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    def edit(event: dict[str, Any]) -> list[dict[str, Any]]:
        return {"DELETED": [], "MODIFIED": [event, event]}.get(event["type"], [event])

    proxy.inject(EditEvents(edit), verb="watch", resource="configmaps")
    first = await cluster.create(config_map("first", namespace))
    await cluster.apply(config_map("first", namespace, "new"))
    await cluster.delete("configmaps", "first", namespace)
    await cluster.create(config_map("end", namespace))
    assert await watched(client, namespace, since=first, until="end") == [
        ("MODIFIED", "first"),
        ("MODIFIED", "first"),
        ("ADDED", "end"),
    ]


@pytest.mark.parametrize(
    ("how", "last"), [("close", ("ADDED", "a")), ("expire", ("ERROR", ""))], ids=["close", "expire"]
)
async def test_a_watch_can_end_after_some_events(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str, how: Any, last: tuple[str, str]
) -> None:
    proxy.inject(BreakWatch(how, events=1), verb="watch", times=1)
    first = await cluster.create(config_map("first", namespace))
    await cluster.create(config_map("a", namespace))
    await cluster.create(config_map("b", namespace))
    seen = await watched(client, namespace, since=first, until="b")
    assert seen[0] == ("ADDED", "a")
    assert seen[-1] == last
    assert await watched(client, namespace, since=first, until="b") == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_truncated_watch_breaks_inside_an_event(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    proxy.inject(BreakWatch("truncate"), verb="watch")
    first = await cluster.create(config_map("first", namespace))
    await cluster.create(config_map("a", namespace))
    with pytest.raises((ValueError, aiohttp.ClientError)):
        await watched(client, namespace, since=first, until="a")


async def test_a_frozen_watch_stays_open_and_says_nothing(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    proxy.inject(BreakWatch("freeze", events=1), verb="watch")
    first = await cluster.create(config_map("first", namespace))
    seen: list[tuple[str, str]] = []
    watching = asyncio.ensure_future(watched(client, namespace, since=first, until="b", events=seen))
    await cluster.create(config_map("a", namespace))
    await eventually(lambda: last_is(seen, ("ADDED", "a")))
    await cluster.create(config_map("b", namespace))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watching, 0.5)
    assert seen == [("ADDED", "a")]


async def test_a_watch_can_be_refused_as_too_old(client: Cluster, proxy: FaultProxy, namespace: str) -> None:
    proxy.inject(Refuse(410, "Expired"), verb="watch", times=1)
    first = await client.create(config_map("first", namespace))
    with pytest.raises(ApiError, match="410 Expired"):
        await watched(client, namespace, since=first, until="a")


# --- the network ------------------------------------------------------------------------------------------------------


async def test_a_partition_holds_calls_and_events_and_lets_them_through_late(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    first = await cluster.create(config_map("first", namespace))
    seen: list[tuple[str, str]] = []
    watching = asyncio.ensure_future(watched(client, namespace, since=first, until="mine", events=seen))
    await cluster.create(config_map("before", namespace))
    await eventually(lambda: last_is(seen, ("ADDED", "before")))

    proxy.partition()
    creating = asyncio.ensure_future(client.create(config_map("mine", namespace)))
    await cluster.create(config_map("during", namespace))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(creating), 0.5)
    assert seen == [("ADDED", "before")]
    assert await cluster.find("configmaps", "mine", namespace) is None

    proxy.heal()
    await creating
    await watching
    assert seen == [("ADDED", "before"), ("ADDED", "during"), ("ADDED", "mine")]


async def test_cut_breaks_open_connections_and_new_ones_work(
    client: Cluster, proxy: FaultProxy, cluster: Cluster, namespace: str
) -> None:
    first = await cluster.create(config_map("first", namespace))
    seen: list[tuple[str, str]] = []
    watching = asyncio.ensure_future(watched(client, namespace, since=first, until="end", events=seen))
    await cluster.create(config_map("a", namespace))
    await eventually(lambda: last_is(seen, ("ADDED", "a")))
    proxy.cut()
    with pytest.raises(aiohttp.ClientError):
        await watching
    assert await client.find("configmaps", "a", namespace)


async def test_an_api_server_that_is_down_is_a_broken_connection(tmp_path: Path) -> None:
    async with (
        ControlPlane(tmp_path / "cluster") as own,
        FaultProxy(own) as proxy,
        Cluster(own.kubeconfig, server=proxy.url) as client,
    ):
        await client.list("configmaps")
        own.apiserver.kill()
        with pytest.raises(aiohttp.ClientError):
            await client.list("configmaps")
        own.apiserver.start()
        await own.ready()
        await client.list("configmaps")
