"""Events: what happened to an object, in a line a person finds by `kubectl describe`.

Events are a courtesy. `record` never waits and never raises; a writer in the background posts them, and what the API
server does not take is dropped and counted. The same thing (object, reason, note) within a window is one Event whose
series counts. One object may tell a burst of different things, then a few per window, so that a flapping deployment
neither drowns its own history nor anybody's API server.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from berth.errors import BerthError
from berth.kube import clock
from berth.kube.client import KubeClient
from berth.kube.kinds import EVENT, Object
from berth.kube.limits import TokenBucket
from berth.metrics import Metrics

_log = logging.getLogger(__name__)

Type = Literal["Normal", "Warning"]

WINDOW_SECONDS: Final = 600.0
"""Two equal events further apart are two Events."""
FLUSH_SECONDS: Final = 30.0
"""How often the counts of series are written."""
BURST_PER_OBJECT: Final = 25
MAX_WAITING: Final = 1000
NOTE_BYTES: Final = 1024
"""Limit of the API for notes; reason and action may have 128."""


@dataclass(slots=True)
class _Series:
    """One Event that was (or is about to be) posted. Once it was tried only its name is kept, for its count."""

    event: Object | None
    namespace: str
    name: str
    first: float
    count: int = 1
    written: int = 1
    posted: bool = False


class EventRecorder:
    """Posts events as `component` (such as `berth-operator`), `instance` (this process); `run()` until cancelled."""

    def __init__(
        self,
        client: KubeClient,
        component: str,
        instance: str,
        *,
        window: float = WINDOW_SECONDS,
        flush: float = FLUSH_SECONDS,
        now: Callable[[], float] = clock.now,
        utc: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        metrics: Metrics | None = None,
    ) -> None:
        self._client = client
        self._component = component
        self._instance = instance[:128]
        self._window = window
        self._flush_seconds = flush
        self._now = now
        self._utc = utc
        self._metrics = metrics or Metrics()
        self._known: OrderedDict[tuple[str, str, str], _Series] = OrderedDict()  # oldest first
        self._allowance: OrderedDict[str, TokenBucket] = OrderedDict()  # by uid, least recently used first
        self._waiting: asyncio.Queue[_Series] = asyncio.Queue(MAX_WAITING)

    def record(
        self,
        regarding: Object,
        reason: str,
        note: str,
        *,
        action: str,
        type_: Type = "Normal",
        related: Object | None = None,
    ) -> None:
        """`reason` is why (CamelCase, stable), `action` what was done or tried (CamelCase), `note` is for people."""
        reference = _reference(regarding)
        note = _cut(note)
        key = (reference.get("uid", ""), reason, note)
        self._forget_old()
        if series := self._known.get(key):
            series.count += 1
            self._metrics.event("counted")
        elif self._waiting.full() or not self._allowed(reference.get("uid", "")):
            self._metrics.event("dropped")
        else:
            event = self._event(reference, reason, note, action, type_, related)
            series = _Series(event, event["metadata"]["namespace"], event["metadata"]["name"], self._now())
            self._known[key] = series
            self._waiting.put_nowait(series)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._post_forever())
            tasks.create_task(self._flush_forever())

    async def _post_forever(self) -> None:
        while True:
            series = await self._waiting.get()
            event, series.event = series.event, None
            assert event is not None, "each is posted once"
            if await self._tried(self._client.create(event)):
                series.posted = True
                self._metrics.event("posted")
            else:
                self._metrics.event("dropped")

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self._flush_seconds)
            for series in list(self._known.values()):
                if series.posted and series.count > series.written:
                    await self._write_count(series)

    async def _write_count(self, series: _Series) -> None:
        count = series.count
        patch = {"series": {"count": count, "lastObservedTime": self._timestamp()}}
        if await self._tried(self._client.merge_patch(EVENT, series.namespace, series.name, patch)):
            series.written = count

    async def _tried(self, request: Awaitable[Object]) -> bool:
        try:
            await request
        except BerthError as error:
            _log.debug("event dropped: %s", error)
            return False
        return True

    def _forget_old(self) -> None:
        while self._known:
            series = next(iter(self._known.values()))
            if self._now() - series.first < self._window:
                return
            self._known.popitem(last=False)

    def _allowed(self, uid: str) -> bool:
        bucket = self._allowance.pop(uid, None) or TokenBucket(2 / self._window, BURST_PER_OBJECT, self._now)
        self._allowance[uid] = bucket
        if len(self._allowance) > MAX_WAITING:
            self._allowance.popitem(last=False)
        return bucket.try_take()

    def _event(
        self, regarding: Object, reason: str, note: str, action: str, type_: Type, related: Object | None
    ) -> Object:
        event: Object = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {
                "namespace": regarding.get("namespace") or "default",
                "name": f"{regarding['name'][:200]}.{uuid.uuid4().hex[:16]}",
            },
            "eventTime": self._timestamp(),
            "reportingController": self._component,
            "reportingInstance": self._instance,
            "type": type_,
            "reason": reason[:128],
            "action": action[:128],
            "note": note,
            "regarding": regarding,
        }
        if related is not None:
            event["related"] = _reference(related)
        return event

    def _timestamp(self) -> str:
        return self._utc().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _reference(obj: Object) -> Object:
    metadata = obj["metadata"]
    parts = {name: metadata.get(name) for name in ("namespace", "name", "uid", "resourceVersion")}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **{name: v for name, v in parts.items() if v}}


def _cut(note: str) -> str:
    """At most NOTE_BYTES of UTF-8, never half a character."""
    data = note.encode()
    return note if len(data) <= NOTE_BYTES else data[: NOTE_BYTES - 3].decode(errors="ignore") + "…"
