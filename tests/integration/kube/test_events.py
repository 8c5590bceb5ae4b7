"""Events as the API server keeps them."""

from __future__ import annotations

import asyncio

from berth.kube.client import KubeClient
from berth.kube.events import EventRecorder
from berth.kube.kinds import EVENT, Kind
from tests.support.cluster import eventually

CORE_EVENT = Kind("", "v1", "Event", "events")
"""Where kubectl describe looks."""


async def test_an_event_is_found_by_the_object_it_is_about_and_counts_repetitions(
    client: KubeClient, namespace: str
) -> None:
    config_map = await client.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": "a"}}
    )
    recorder = EventRecorder(client, "berth-operator", "berth-1", flush=0.2)
    task = asyncio.create_task(recorder.run())
    for _ in range(3):
        recorder.record(config_map, "GroupFailed", "exit 137 ä", action="Replace", type_="Warning", related=config_map)

    async def counted() -> bool:
        events = (await client.list(EVENT, namespace)).items
        return [event.get("series", {}).get("count") for event in events] == [3]

    await eventually(counted)
    task.cancel()
    uid = config_map["metadata"]["uid"]
    (event,) = (await client.list(CORE_EVENT, namespace, field_selector=f"involvedObject.uid={uid}")).items
    assert (event["reason"], event["message"], event["type"]) == ("GroupFailed", "exit 137 ä", "Warning")
    assert event["reportingComponent"] == "berth-operator"
    assert event["related"]["name"] == "a"
