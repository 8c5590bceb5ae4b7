from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.errors import Transient
from berth.kube.client import KubeClient
from berth.kube.errors import Forbidden
from berth.kube.kinds import POD
from berth.kube.reflector import Reflector, Store
from berth.metrics import Metrics
from tests.unit.kube.scripted import ScriptedServer, Step, hang, listing, obj, refusal, stream

Change = tuple[str | None, str | None]


class Watched:
    """A reflector on a script, with the changes it told: names of (old, new)."""

    def __init__(self, client: KubeClient, **options: Any) -> None:
        self.changes: list[Change] = []
        self.reflector = Reflector(client, POD, **{"on_change": self.note, **options})

    def note(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        self.changes.append((_name(old), _name(new)))

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.reflector.store.all()}

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


def _name(item: dict[str, Any] | None) -> str | None:
    return item["metadata"]["name"] if item else None


@asynccontextmanager
async def reflecting(
    client: KubeClient, server: ScriptedServer, *script: Step, **options: Any
) -> AsyncIterator[Watched]:
    server.script = list(script)
    watched = Watched(client, **options)
    task = asyncio.create_task(watched.reflector.run())
    yield watched
    assert not task.done(), task
    task.cancel()
    await asyncio.wait([task])


def event(type_: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "object": item}


def bookmark(version: int) -> dict[str, Any]:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


def error(code: int) -> dict[str, Any]:
    return event("ERROR", {"kind": "Status", "code": code, "message": "x"})


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("berth.kube.reflector.FIRST_BACKOFF_SECONDS", 0.01)


async def test_what_a_copy_lacks_is_gone_once_it_is_past_its_version(
    client: KubeClient, server: ScriptedServer
) -> None:
    script = (
        listing(obj("a"), version="10"),
        stream(event("ADDED", obj("b", 12)), event("DELETED", obj("b", 13)), end="hang"),
    )
    async with reflecting(client, server, *script) as watched:
        assert not watched.reflector.has_seen("1"), "nothing was listed yet"
        await watched.until(lambda: watched.reflector.has_seen("13"))
        assert watched.reflector.has_seen("12")
        assert not watched.reflector.has_seen("14")


async def test_a_list_and_its_changes_make_the_copy(client: KubeClient, server: ScriptedServer) -> None:
    script = (
        listing(obj("a"), obj("b"), version="10"),
        stream(
            event("ADDED", obj("c", 11)), event("MODIFIED", obj("a", 12)), event("DELETED", obj("b", 13)), end="hang"
        ),
    )
    async with reflecting(client, server, *script) as watched:
        assert watched.reflector.age() == float("inf")
        await watched.until(lambda: len(watched.changes) == 5)
        assert watched.reflector.synced.is_set()
        assert watched.names() == {"a", "c"}
        assert watched.changes == [(None, "a"), (None, "b"), (None, "c"), ("a", "a"), ("b", None)]
        held = watched.reflector.store.get("prod", "a")
        assert held is not None
        assert held["metadata"]["resourceVersion"] == "12"
        assert server.requests[1].query["resourceVersion"] == "10"
        assert watched.reflector.age() < 5


async def test_objects_deleted_while_nobody_watched_vanish_and_are_told(
    client: KubeClient, server: ScriptedServer
) -> None:
    script = (
        listing(obj("a"), obj("ghost"), version="10"),
        stream(error(410)),
        listing(obj("a"), version="20"),
    )
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: ("ghost", None) in watched.changes)
        assert watched.names() == {"a"}
        assert watched.changes.count((None, "a")) == 1, "an unchanged object is not told again"


async def test_a_broken_watch_goes_on_from_the_last_version_without_a_full_list(
    client: KubeClient, server: ScriptedServer
) -> None:
    metrics = Metrics()
    script = (
        listing(version="10"),
        stream(event("ADDED", obj("a", 11)), bookmark(15), end="reset"),
        refusal(503),
        listing(version="15"),
        hang,
        listing(version="15"),
        stream(event("ADDED", obj("b", 16)), end="cut"),
        listing(obj("a", 11), version="99"),
        stream(event("ADDED", obj("c", 17)), end="hang"),
    )
    async with reflecting(client, server, *script, metrics=metrics) as watched:
        await watched.until(lambda: watched.names() == {"a", "b", "c"})
    watches = [request.query for request in server.requests if "watch" in request.query]
    assert [query["resourceVersion"] for query in watches] == ["10", "15", "15", "16"]
    assert [request.query for request in server.requests[2:4]] == [{"limit": "1"}, {"limit": "1"}]
    assert 'berth_reflector_lists_total{kind="Pod",reason="start"} 1.0' in metrics.render().decode()


async def test_a_server_that_comes_back_behind_the_last_version_is_listed_anew(
    client: KubeClient, server: ScriptedServer
) -> None:
    script = (
        listing(obj("late", 90), version="100"),
        stream(end="reset"),
        listing(version="50"),
        listing(obj("early", 40), version="51"),
        stream(event("ADDED", obj("new", 52)), end="hang"),
    )
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: watched.names() == {"early", "new"})
        assert ("late", None) in watched.changes


async def test_a_silent_watch_is_dropped_and_the_age_shows_it(
    client: KubeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.kube.client.WATCH_SLACK_SECONDS", 0.1)
    silent = stream(end="hang")
    answered = listing(version="10")
    script = (answered, silent, answered, silent, hang, answered, stream(event("ADDED", obj("a", 11)), end="hang"))
    async with reflecting(client, server, *script, watch_seconds=0.1) as watched:
        await watched.until(lambda: len(server.requests) == 4)
        assert watched.reflector.age() >= 0.2
        assert isinstance(watched.reflector.error, Transient)
        await watched.until(lambda: watched.names() == {"a"})
        assert watched.reflector.age() < 0.2


async def test_a_watch_that_always_ends_at_once_is_not_reopened_in_a_busy_loop(
    client: KubeClient, server: ScriptedServer
) -> None:
    answered = listing(version="10")
    script = [answered, *[stream(), answered] * 20]
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: "ended at once" in str(watched.reflector.error))
        await asyncio.sleep(0.3)
        assert 4 <= len(server.requests) < 20


async def test_versions_that_go_back_lead_to_a_new_list(client: KubeClient, server: ScriptedServer) -> None:
    script = (
        listing(obj("new", 100), version="100"),
        stream(bookmark(40), end="hang"),
        listing(obj("old", 30), version="40"),
        stream(event("ADDED", obj("more", 41)), end="hang"),
    )
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: watched.names() == {"old", "more"})


async def test_events_out_of_order_never_bring_a_deleted_object_back_for_good(
    client: KubeClient, server: ScriptedServer
) -> None:
    script = (
        listing(obj("a", 5), version="10"),
        stream(event("DELETED", obj("a", 12)), event("MODIFIED", obj("a", 11)), end="hang"),
        listing(version="12"),
    )
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: len(server.requests) >= 4 and watched.names() == set())


async def test_doubled_events_are_told_once(client: KubeClient, server: ScriptedServer) -> None:
    twice = event("ADDED", obj("a", 11))
    script = (listing(version="10"), stream(twice, twice, event("ADDED", obj("b", 12)), end="hang"))
    async with reflecting(client, server, *script) as watched:
        await watched.until(lambda: watched.names() == {"a", "b"})
        assert watched.changes == [(None, "a"), (None, "b")]


async def test_missed_events_are_made_good_by_the_periodic_list(
    client: KubeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berth.kube.client.WATCH_SLACK_SECONDS", 0.01)
    metrics = Metrics()
    script = (
        listing(obj("a"), version="10"),
        stream(bookmark(20), end="hang"),
        listing(obj("b", 12), version="20"),
    )
    options = {"relist_seconds": 0.02, "watch_seconds": 0.05, "metrics": metrics}
    async with reflecting(client, server, *script, **options) as watched:
        await watched.until(lambda: watched.names() == {"b"})
        assert 'reason="periodic"} 1.0' in metrics.render().decode()


async def test_a_failed_list_keeps_the_copy_and_says_what_is_wrong(client: KubeClient, server: ScriptedServer) -> None:
    message = 'pods is forbidden: User "x" cannot list resource "pods" in API group "" at the cluster scope'
    server.then = refusal(403, "Forbidden", message)
    async with reflecting(client, server, listing(obj("a"), version="10"), stream(error(410))) as watched:
        await watched.until(lambda: isinstance(watched.reflector.error, Forbidden))
        assert watched.names() == {"a"}
        assert ("a", None) not in watched.changes


async def test_trouble_is_over_with_the_next_answer(client: KubeClient, server: ScriptedServer) -> None:
    async with reflecting(client, server, refusal(500), listing(version="10")) as watched:
        await watched.until(lambda: isinstance(watched.reflector.error, Transient))
        assert not watched.reflector.synced.is_set()
        await watched.until(watched.reflector.synced.is_set)
        assert watched.reflector.error is None


async def test_a_failing_callback_stops_nothing(
    client: KubeClient, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(old: Any, new: Any) -> None:
        raise RuntimeError("boom")

    script = (listing(obj("a"), obj("b"), version="10"), stream(event("DELETED", obj("a", 11)), end="hang"))
    async with reflecting(client, server, *script, on_change=explode) as watched:
        await watched.until(lambda: watched.names() == {"b"})
    assert caplog.text.count("RuntimeError: boom") == 3


async def test_managed_fields_are_not_kept_unless_the_transform_says_so(
    client: KubeClient, server: ScriptedServer
) -> None:
    full = obj("a", managedFields=[{"manager": "x"}])
    async with reflecting(client, server, listing(full, version="10")) as watched:
        await watched.until(lambda: watched.names() == {"a"})
        assert "managedFields" not in watched.reflector.store.all()[0]["metadata"]


async def test_selectors_narrow_lists_and_watches_alike(client: KubeClient, server: ScriptedServer) -> None:
    options = {"namespace": "prod", "label_selector": "a=b", "field_selector": "spec.nodeName=n"}
    async with reflecting(client, server, listing(version="10"), **options) as watched:
        await watched.until(lambda: len(server.requests) == 2)
    for request in server.requests:
        assert request.path == "/api/v1/namespaces/prod/pods"
        assert request.query["labelSelector"] == "a=b"
        assert request.query["fieldSelector"] == "spec.nodeName=n"


_labels = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("123"), max_size=3)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | _labels)))
def test_indexes_always_equal_a_search_through_all_objects(writes: list[tuple[str, dict[str, str] | None]]) -> None:
    store = Store({"label": lambda item: [f"{k}={v}" for k, v in item["metadata"]["labels"].items()]})
    truth: dict[str, dict[str, Any]] = {}
    for name, labels in writes:
        new = None if labels is None else obj(name, labels=labels)
        assert store.put(("prod", name), new) == truth.pop(name, None)
        if new is not None:
            truth[name] = new
    assert {_name(item) for item in store.all()} == set(truth)
    for key in "xyz":
        for value in "123":
            expected = {name for name, item in truth.items() if item["metadata"]["labels"].get(key) == value}
            assert {_name(item) for item in store.by_index("label", f"{key}={value}")} == expected
