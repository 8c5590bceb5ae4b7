"""A local copy of all objects of one kind that keeps itself true, and tells what changed.

List everything, **replace** the copy, watch from the listed version. Replacing is what makes it right: an object
deleted while nobody watched is in no event ever, so whatever the new list lacks is removed and told like a deletion.

Invariants and limits:

* `store` is partial before `synced`; later it may be old. `age()` says how old at most; a
  reader that would act on absence has to look at it, and to ask the server before it destroys anything;
* a watch is agreed to end after `watch_seconds` and is dropped a little later if the server does not end it, so a dead
  connection is noticed in that time;
* after a failure the watch goes on from the last version seen, once the server has shown that it has not fallen behind
  that version (etcd restored from a backup): it would silently send nothing until it has caught up;
* a compacted version (410), a version that goes back and `relist_seconds` lead to a new list;
* `on_change(old, new)` runs on the event loop right after the copy changed, in order: it may only note or wake.
  Objects are shared with the store, so nobody may change them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial

from berth.errors import BerthError, Transient
from berth.kube import clock
from berth.kube.client import KubeClient
from berth.kube.errors import Expired
from berth.kube.kinds import Kind, Object
from berth.kube.sharing import shared
from berth.metrics import Metrics

_log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""
OnChange = Callable[[Object | None, Object | None], None]
IndexFunction = Callable[[Object], Iterable[str]]

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 10.0


def trim(obj: Object) -> Object:
    """The default transform: without managedFields, which nobody reads here and which are often half of an object."""
    obj["metadata"].pop("managedFields", None)
    return obj


def _kept(transform: Callable[[Object], Object], obj: Object) -> Object:
    return shared(transform(obj))


class Store:
    """Objects by key, and by the values that index functions give them; only the reflector writes."""

    def __init__(self, indexes: Mapping[str, IndexFunction] | None = None) -> None:
        self._objects: dict[Key, Object] = {}
        self._functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._functions}
        self._followers: list[set[Key]] = []

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str | None, name: str) -> Object | None:
        return self._objects.get((namespace or "", name))

    def all(self) -> Sequence[Object]:
        return list(self._objects.values())

    def by_index(self, index: str, value: str) -> Sequence[Object]:
        """Objects for which the index function gave `value`, in the order they came."""
        return [self._objects[key] for key in self._indexes[index].get(value, ())]

    def keys(self) -> set[Key]:
        return set(self._objects)

    def follow(self) -> set[Key]:
        """Gets the key of every object from now on that comes, changes or goes, and has those that are here; whoever
        follows takes them out."""
        changed = set(self._objects)
        self._followers.append(changed)
        return changed

    def put(self, key: Key, new: Object | None) -> Object | None:
        """Replace or (None) remove one object; returns the former one."""
        for changed in self._followers:
            changed.add(key)
        old = self._objects.pop(key, None) if new is None else self._objects.get(key)
        if new is not None:
            self._objects[key] = new
        for name, function in self._functions.items():
            index = self._indexes[name]
            before = set(function(old)) if old is not None else set()
            after = set(function(new)) if new is not None else set()
            for value in before - after:
                del index[value][key]
                if not index[value]:
                    del index[value]
            for value in after - before:
                index.setdefault(value, {})[key] = None
        return old


class Reflector:
    """Keeps `store` equal to the server for one kind, namespace and selector; `run()` works until cancelled."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_change: OnChange | None = None,
        transform: Callable[[Object], Object] = trim,
        indexes: Mapping[str, IndexFunction] | None = None,
        watch_seconds: float = 15.0,
        relist_seconds: float = 600.0,
        rng: random.Random | None = None,
        now: Callable[[], float] = clock.now,
        metrics: Metrics | None = None,
    ) -> None:
        self.kind = kind
        self.store = Store(indexes)
        self.synced = asyncio.Event()
        self.error: BerthError | None = None
        """What stands in the way now, None while all is well."""
        self._client = client
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._on_change = on_change
        self._transform = partial(_kept, transform)
        self._watch_seconds = watch_seconds
        self._relist_seconds = relist_seconds
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._now = now
        self._metrics = metrics or Metrics()
        self._contact: float | None = None
        self._version = ""
        self._failures = 0

    def age(self) -> float:
        """Seconds since the server last sent or confirmed what the copy holds; infinite before the first list."""
        return float("inf") if self._contact is None else self._now() - self._contact

    @property
    def version(self) -> str:
        """The resourceVersion that the copy is at; empty before the first list."""
        return self._version

    def has_seen(self, version: str) -> bool:
        """Whether the copy is at this resourceVersion or past it: what it lacks then is gone, not still to come."""
        return bool(self._version) and not _older(self._version, version)

    async def run(self) -> None:
        reason = "start"
        while True:
            try:
                await self._list(reason)
            except BerthError as error:
                await self._back_off(error)
            else:
                reason = await self._watch_until_relist()

    async def _list(self, reason: str) -> None:
        """Replace the whole copy by the server's, and tell every difference."""
        listing = await self._client.list(
            self.kind,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            transform=self._transform,
        )
        self._metrics.reflector_list(self.kind.name, reason)
        self._heard()
        self._version = listing.resource_version
        gone = self.store.keys()
        for item in listing.items:
            gone.discard(_key(item))
            self._put(item)
        for key in gone:
            self._tell(self.store.put(key, None), None)
        self.synced.set()

    async def _watch_until_relist(self) -> str:
        """Follow the changes, watch after watch; returns why a new list is due."""
        due = self._now() + self._relist_seconds * self._rng.uniform(0.8, 1.0)
        failure: BerthError | None = None
        while self._now() < due:
            started = self._now()
            try:
                if failure is not None:
                    await self._expect_version()
                await self._watch()
                failure = None
            except BerthError as error:
                failure = error
            if self._now() - started >= min(1.0, self._watch_seconds / 2):
                self._failures = 0
            elif failure is None:
                failure = BerthError(f"watch {self.kind.plural}: ended at once")
            if failure is not None:
                await self._back_off(failure)
            if isinstance(failure, Expired):
                return "expired"
        return "periodic"

    async def _expect_version(self) -> None:
        """Raises `Expired` when the server is behind the last version seen."""
        newest = await self._client.newest_version(self.kind, self._namespace)
        if _older(newest, self._version):
            raise Expired(f"list {self.kind.plural}: the server is at version {newest}, behind {self._version}")

    async def _watch(self) -> None:
        """One watch to its end."""
        watch = self._client.watch(
            self.kind,
            self._namespace,
            resource_version=self._version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            seconds=self._watch_seconds,
        )
        async with aclosing(watch) as events:
            async for event in events:
                version = event.object["metadata"]["resourceVersion"]
                if _older(version, self._version):
                    raise Expired(f"watch {self.kind.plural}: version {version} came after {self._version}")
                self._version = version
                self._heard()
                if event.type == "DELETED":
                    self._tell(self.store.put(_key(event.object), None), None)
                elif event.type != "BOOKMARK":
                    self._put(self._transform(event.object))
        self._heard()

    def _put(self, new: Object) -> None:
        key = _key(new)
        if new != self.store.get(*key):
            self._tell(self.store.put(key, new), new)

    def _tell(self, old: Object | None, new: Object | None) -> None:
        if self._on_change is None or (old is None and new is None):
            return
        try:
            self._on_change(old, new)
        except Exception:
            _log.exception("%s: the callback for a change failed", self.kind.plural)

    def _heard(self) -> None:
        self._contact = self._now()
        self.error = None

    async def _back_off(self, error: BerthError) -> None:
        self.error = error
        longest = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        delay = longest * self._rng.uniform(0.5, 1.0)
        if isinstance(error, Transient) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        _log.warning("%s, again in %.1f s", error, delay)
        await asyncio.sleep(delay)


def _key(obj: Object) -> Key:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def newest(*versions: str) -> str:
    """Of resourceVersions, some of them empty; empty if all are."""
    return max(versions, key=lambda version: int(version) if version.isdecimal() else -1)


def _older(version: str, than: str) -> bool:
    """Whether a resourceVersion lies before another; they are comparable as integers for everything stored in etcd."""
    with suppress(ValueError):
        return int(version) < int(than)
    return False
