from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient

from berth.errors import BerthError, Transient
from berth.kube.client import KubeClient, WatchEvent
from berth.kube.errors import Expired, NotFound, Rejected, TooManyRequests
from berth.kube.kinds import CONFIG_MAP, NODE, POD
from berth.kube.limits import Limits
from berth.metrics import Metrics
from tests.unit.kube.scripted import ScriptedServer, answer, hang, listing, obj, refusal, reset, stream


async def collect(client: KubeClient, **options: Any) -> list[WatchEvent]:
    return [event async for event in client.watch(POD, "prod", resource_version="5", **options)]


async def test_a_list_gathers_its_pages_and_says_what_its_items_are(client: KubeClient, server: ScriptedServer) -> None:
    bare = {"metadata": {"name": "b"}}
    server.script = [listing(obj("a"), version="7", token="next"), listing(bare, version="7")]
    found = await client.list(POD, label_selector="berth.dev/x=y,z", page=1)
    assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
    assert found.items[1]["kind"] == "Pod"
    assert found.resource_version == "7"
    first, second = server.requests
    assert first.query == {"labelSelector": "berth.dev/x=y,z", "limit": "1"}
    assert second.query == {"labelSelector": "berth.dev/x=y,z", "limit": "1", "continue": "next"}


async def test_a_list_whose_pages_expired_is_fetched_once_more_in_one_piece(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [
        listing(obj("old"), token="next"),
        refusal(410, "Expired"),
        listing(obj("a"), obj("b"), version="9"),
    ]
    found = await client.list(POD)
    assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
    assert server.requests[2].query == {"limit": "0"}


async def test_a_transform_sees_each_item_of_each_page_once(client: KubeClient, server: ScriptedServer) -> None:
    def slim(item: dict[str, Any]) -> dict[str, Any]:
        return {"name": item["metadata"]["name"], "kind": item["kind"]}

    server.script = [listing(obj("a"), token="next"), listing(obj("b"))]
    found = await client.list(POD, transform=slim)
    assert found.items == [{"name": "a", "kind": "Pod"}, {"name": "b", "kind": "Pod"}]


async def test_an_answer_that_never_comes_ends_in_time(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [hang]
    started = time.monotonic()
    with pytest.raises(Transient, match="no answer in time"):
        await client.get(POD, "prod", "a")
    assert time.monotonic() - started < 5


async def test_an_answer_that_stops_in_the_middle_ends_in_time(client: KubeClient, server: ScriptedServer) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\n{"a":')
        await hang(writer)

    server.script = [half]
    with pytest.raises(Transient, match="no answer in time"):
        await client.get(POD, "prod", "a")


async def test_a_lost_answer_to_a_write_is_transient_and_the_write_is_sent_once(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [reset]
    with pytest.raises(Transient, match="create /api/v1/namespaces/prod/pods"):
        await client.create(obj("a"))
    assert len(server.requests) == 1


async def test_nobody_listening_is_transient(api: ApiClient, unused_tcp_port: int) -> None:
    api.configuration.host = f"http://127.0.0.1:{unused_tcp_port}"
    with pytest.raises(Transient, match="get /api/v1/nodes/n"):
        await KubeClient(api).get(NODE, None, "n")


@pytest.mark.parametrize("body", ["", "not json", "[]", '{"a": '])
async def test_an_answer_that_is_no_object_is_transient(client: KubeClient, server: ScriptedServer, body: str) -> None:
    server.script = [answer(200, body)]
    with pytest.raises(Transient, match="not a JSON object"):
        await client.get(POD, "prod", "a")


async def test_the_guard_runs_before_every_write_and_before_no_read(api: ApiClient, server: ScriptedServer) -> None:
    class NotLeader(BerthError):
        pass

    def refuse() -> None:
        raise NotLeader

    client = KubeClient(api, before_write=refuse)
    writes = [
        lambda: client.create(obj("a")),
        lambda: client.apply(obj("a"), "berth"),
        lambda: client.merge_patch(POD, "prod", "a", {}),
        lambda: client.delete(POD, "prod", "a"),
        lambda: client.evict("prod", "a"),
    ]
    for write in writes:
        with pytest.raises(NotLeader):
            await write()
    assert server.requests == []
    server.script = [answer(200, obj("a")), listing(), stream()]
    await client.get(POD, "prod", "a")
    await client.list(POD)
    assert await collect(client) == []


async def test_the_guard_is_asked_after_the_waiting_for_a_turn(api: ApiClient, server: ScriptedServer) -> None:
    leads = True

    def guard() -> None:
        if not leads:
            raise BerthError("lost")

    client = KubeClient(api, limits=Limits(parallel=1), before_write=guard)
    gate = asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(200, obj("a"))(writer)

    server.script = [slow]
    reading = asyncio.create_task(client.get(POD, "prod", "a"))
    await asyncio.sleep(0)
    writing = asyncio.create_task(client.create(obj("b")))
    while not server.requests:
        await asyncio.sleep(0.001)
    leads = False
    gate.set()
    await reading
    with pytest.raises(BerthError, match="lost"):
        await writing
    assert [request.method for request in server.requests] == ["GET"]


async def test_writes_say_who_writes_what_and_on_which_condition(client: KubeClient, server: ScriptedServer) -> None:
    server.then = answer(200, {})
    await client.create(obj("a"))
    await client.apply(obj("a"), "berth-status", subresource="status")
    await client.apply(obj("a"), "berth", force=False)
    await client.merge_patch(POD, "prod", "a", {"metadata": {"labels": {"x": None}}}, uid="u")
    await client.delete(POD, "prod", "a", uid="u", resource_version="3", grace_seconds=0, propagation="Foreground")
    await client.delete(CONFIG_MAP, "prod", "c")
    await client.evict("prod", "a", uid="u", grace_seconds=5)
    create, status, apply, patch, delete, bare, evict = server.requests
    assert (create.method, create.path) == ("POST", "/api/v1/namespaces/prod/pods")
    assert create.query == {"fieldManager": "berth", "fieldValidation": "Strict"}
    assert (status.method, status.path) == ("PATCH", "/api/v1/namespaces/prod/pods/a/status")
    assert status.query == {"fieldManager": "berth-status", "force": "true"}
    assert status.headers["content-type"] == "application/apply-patch+yaml"
    assert status.body["metadata"]["uid"] == "uid-a"
    assert apply.query["force"] == "false"
    assert patch.headers["content-type"] == "application/merge-patch+json"
    assert patch.body == {"metadata": {"labels": {"x": None}, "uid": "u"}}
    assert delete.body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": "u", "resourceVersion": "3"},
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Foreground",
    }
    assert bare.body == {"apiVersion": "v1", "kind": "DeleteOptions"}
    assert evict.path == "/api/v1/namespaces/prod/pods/a/eviction"
    assert evict.body["deleteOptions"]["preconditions"] == {"uid": "u"}
    assert evict.body["deleteOptions"]["gracePeriodSeconds"] == 5


async def test_a_patch_is_not_changed_for_the_caller(client: KubeClient, server: ScriptedServer) -> None:
    server.then = answer(200, {})
    patch: dict[str, Any] = {"metadata": {"labels": {}}}
    await client.merge_patch(POD, "prod", "a", patch, uid="u")
    assert patch == {"metadata": {"labels": {}}}


async def test_requests_keep_to_the_rate(api: ApiClient, server: ScriptedServer) -> None:
    server.then = answer(200, {})
    client = KubeClient(api, limits=Limits(per_second=100, burst=2))
    started = time.monotonic()
    await asyncio.gather(*(client.get(POD, "prod", "a") for _ in range(12)))
    assert time.monotonic() - started >= 0.1


async def test_no_more_requests_than_allowed_wait_for_an_answer(api: ApiClient, server: ScriptedServer) -> None:
    client = KubeClient(api, limits=Limits(parallel=2, request_seconds=0.5))
    waiting = [asyncio.create_task(client.get(POD, "prod", "a")) for _ in range(3)]
    while len(server.requests) < 2:
        await asyncio.sleep(0)
    for _ in range(50):  # as many turns as the others took, and no time
        await asyncio.sleep(0)
    assert len(server.requests) == 2
    await asyncio.wait(waiting)
    assert len(server.requests) == 3
    for task in waiting:
        assert isinstance(task.exception(), Transient)


async def test_a_429_of_the_server_slows_later_requests_down(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(429, headers={"Retry-After": "0.2"}), answer(200, {})]
    with pytest.raises(TooManyRequests) as caught:
        await client.get(POD, "prod", "a")
    assert caught.value.retry_after == 0.2
    started = time.monotonic()
    await client.get(POD, "prod", "a")
    assert time.monotonic() - started >= 0.2


async def test_an_eviction_that_a_budget_denies_slows_nobody_down(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [refusal(429, headers={"Retry-After": "10"}), answer(200, {})]
    with pytest.raises(TooManyRequests):
        await client.evict("prod", "a")
    async with asyncio.timeout(5):
        await client.get(POD, "prod", "a")


async def test_a_watch_gives_events_and_bookmarks_until_the_server_ends_it(
    client: KubeClient, server: ScriptedServer
) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    server.script = [stream({"type": "ADDED", "object": obj("a", 6)}, bookmark)]
    events = await collect(client, seconds=30, label_selector="a=b", field_selector="spec.nodeName=n")
    assert [event.type for event in events] == ["ADDED", "BOOKMARK"]
    assert server.requests[0].query == {
        "labelSelector": "a=b",
        "fieldSelector": "spec.nodeName=n",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "5",
        "timeoutSeconds": "30",
    }


async def test_events_are_put_together_from_any_pieces(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [
        stream('{"type": "ADDED", "obj', 'ect": {"a": "\\u00e4', '"}}\n{"type": "DELETED", "object": {}}\n')
    ]
    assert await collect(client) == [WatchEvent("ADDED", {"a": "ä"}), WatchEvent("DELETED", {})]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (stream({"type": "ADDED", "object": {}}, end="cut"), "watch /api/v1"),
        (stream({"type": "ADDED", "object": {}}, end="reset"), "watch /api/v1"),
        (stream('{"type": "ADDED", "object"'), "ended inside a line"),
        (stream("garbage\n"), "not a JSON object"),
        (stream('{"type": "ADDED"}\n'), "line is not an event"),
        (stream({"type": "ERROR", "object": {"code": 500, "message": "etcd"}}), "etcd"),
        (stream({"type": "ERROR", "object": {}}), "500"),
        (refusal(503), "503"),
        (hang, "no answer in time"),
    ],
)
async def test_a_watch_that_breaks_is_transient(
    client: KubeClient, server: ScriptedServer, step: Any, message: str
) -> None:
    server.script = [step]
    with pytest.raises(Transient, match=message):
        await collect(client)


async def test_a_watch_from_a_compacted_version_is_expired(client: KubeClient, server: ScriptedServer) -> None:
    server.script = [stream({"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}), refusal(410, "Expired")]
    for _ in range(2):
        with pytest.raises(Expired):
            await collect(client)


async def test_a_watch_that_falls_silent_ends_soon_after_its_agreed_end(
    client: KubeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.kube.client.WATCH_SLACK_SECONDS", 0.1)
    server.script = [stream({"type": "ADDED", "object": {}}, end="hang")]
    with pytest.raises(Transient, match="silent past its agreed end"):
        await collect(client, seconds=0.1)


async def test_an_endless_line_is_not_gathered(
    client: KubeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.kube.client.MAX_LINE_BYTES", 1000)
    server.script = [stream("x" * 600, "x" * 600, end="hang")]
    with pytest.raises(Transient, match="line of more than 1000 bytes"):
        await collect(client)


async def test_a_missing_kind_is_not_found_and_a_bad_selector_rejected(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.script = [refusal(404), refusal(400)]
    with pytest.raises(NotFound):
        await collect(client)
    with pytest.raises(Rejected):
        await collect(client)


async def test_every_request_is_counted_by_verb_kind_and_code(api: ApiClient, server: ScriptedServer) -> None:
    metrics = Metrics()
    client = KubeClient(api, limits=Limits(request_seconds=0.1), metrics=metrics)
    server.script = [answer(200, {}), refusal(404), hang, reset, stream()]
    await client.get(POD, "prod", "ok")
    for error in (NotFound, Transient):
        with pytest.raises(error):
            await client.get(POD, "prod", "gone")
    with pytest.raises(Transient):
        await client.create(obj("a"))
    await collect(client)
    text = metrics.render().decode()
    for verb, code in (("get", 200), ("get", 404), ("get", "timeout"), ("create", "connection"), ("watch", 200)):
        assert f'berth_api_requests_total{{code="{code}",kind="Pod",verb="{verb}"}} 1.0' in text
    assert 'berth_api_request_seconds_count{kind="Pod",verb="get"} 3.0' in text
