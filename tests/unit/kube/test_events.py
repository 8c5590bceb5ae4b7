from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from berth.kube.client import KubeClient
from berth.kube.events import BURST_PER_OBJECT, MAX_WAITING, EventRecorder
from berth.metrics import Metrics
from tests.unit.kube.scripted import ScriptedServer, answer, hang, obj, refusal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def recording(client: KubeClient, **options: Any) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(client, "berth-operator", "berth-1", **options)
    task = asyncio.create_task(recorder.run())
    yield recorder
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def reach(server: ScriptedServer, count: int) -> None:
    async with asyncio.timeout(5):
        while len(server.requests) < count:
            await asyncio.sleep(0.002)


def counted(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("berth_events_total", {"result": result}) or 0.0


async def test_an_event_says_what_happened_to_what_and_why(client: KubeClient, server: ScriptedServer) -> None:
    server.then = answer(201, {})
    async with recording(client) as recorder:
        recorder.record(
            obj("a", 7),
            "GroupFailed",
            "exit 137",
            action="Replace",
            type_="Warning",
            related=obj("node", namespace=None),
        )
        await reach(server, 1)
    request = server.requests[0]
    assert request.path == "/apis/events.k8s.io/v1/namespaces/prod/events"
    event = request.body
    assert (event["reason"], event["action"], event["note"], event["type"]) == (
        "GroupFailed",
        "Replace",
        "exit 137",
        "Warning",
    )
    assert event["reportingController"] == "berth-operator"
    assert event["reportingInstance"] == "berth-1"
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "prod",
        "name": "a",
        "uid": "uid-a",
        "resourceVersion": "7",
    }
    assert event["related"]["name"] == "node"
    assert event["eventTime"].endswith("Z")


async def test_events_about_cluster_scoped_objects_go_to_the_default_namespace(
    client: KubeClient, server: ScriptedServer
) -> None:
    server.then = answer(201, {})
    async with recording(client) as recorder:
        recorder.record(obj("pool", namespace=None), "Overlap", "x", action="Check")
        await reach(server, 1)
    assert server.requests[0].path == "/apis/events.k8s.io/v1/namespaces/default/events"


async def test_the_same_thing_again_is_counted_in_one_event(client: KubeClient, server: ScriptedServer) -> None:
    metrics = Metrics()
    server.then = answer(200, {})
    async with recording(client, flush=0.05, metrics=metrics) as recorder:
        for _ in range(5):
            recorder.record(obj("a"), "Waiting", "no capacity", action="Place")
        recorder.record(obj("a"), "Waiting", "other note", action="Place")
        recorder.record(obj("b"), "Waiting", "no capacity", action="Place")
        await reach(server, 4)
        await asyncio.sleep(0.12)
    assert [request.method for request in server.requests] == ["POST", "POST", "POST", "PATCH"], (
        "written once per change"
    )
    assert server.requests[3].body["series"]["count"] == 5
    assert server.requests[3].path.endswith(server.requests[0].body["metadata"]["name"])
    assert counted(metrics, "posted") == 3
    assert counted(metrics, "counted") == 4


async def test_after_the_window_the_same_thing_is_a_new_event(client: KubeClient, server: ScriptedServer) -> None:
    clock = Clock()
    server.then = answer(201, {})
    async with recording(client, window=100, now=clock) as recorder:
        recorder.record(obj("a"), "Waiting", "x", action="Place")
        clock.now = 99
        recorder.record(obj("a"), "Waiting", "x", action="Place")
        clock.now = 100
        recorder.record(obj("a"), "Waiting", "x", action="Place")
        await reach(server, 2)


async def test_one_noisy_object_is_cut_off_and_others_are_heard(client: KubeClient, server: ScriptedServer) -> None:
    metrics = Metrics()
    clock = Clock()
    server.then = answer(201, {})
    async with recording(client, window=100, now=clock, metrics=metrics) as recorder:
        for number in range(100):
            recorder.record(obj("noisy"), "Flap", f"note {number}", action="Check")
        recorder.record(obj("calm"), "Moved", "x", action="Move")
        await reach(server, BURST_PER_OBJECT + 1)
        assert counted(metrics, "dropped") == 100 - BURST_PER_OBJECT
        clock.now = 50
        recorder.record(obj("noisy"), "Flap", "later", action="Check")
        await reach(server, BURST_PER_OBJECT + 2)


async def test_a_server_that_takes_no_events_disturbs_nobody(client: KubeClient, server: ScriptedServer) -> None:
    metrics = Metrics()
    server.script = [refusal(403), refusal(422), hang]
    server.then = answer(201, {})
    async with recording(client, metrics=metrics) as recorder:
        for number in range(4):
            recorder.record(obj("a"), "X", str(number), action="Y")
        await reach(server, 4)
        async with asyncio.timeout(5):
            while counted(metrics, "posted") < 1:
                await asyncio.sleep(0.002)
    assert counted(metrics, "dropped") == 3


async def test_what_waits_is_bounded(client: KubeClient) -> None:
    metrics = Metrics()
    recorder = EventRecorder(client, "c", "i", metrics=metrics)
    for number in range(MAX_WAITING + 50):
        recorder.record(obj(f"o{number}"), "X", "y", action="Z")
    assert counted(metrics, "dropped") == 50


async def test_long_notes_are_cut_to_the_limit_in_bytes(client: KubeClient, server: ScriptedServer) -> None:
    server.then = answer(201, {})
    async with recording(client) as recorder:
        recorder.record(obj("a" * 253), "R" * 200, "ä" * 1000, action="A" * 200)
        await reach(server, 1)
    event = server.requests[0].body
    assert len(event["note"].encode()) <= 1024
    assert len(event["reason"]) == len(event["action"]) == 128
    assert len(event["metadata"]["name"]) <= 253
