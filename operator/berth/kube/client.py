"""The Kubernetes API for Berth: dictionaries in, dictionaries out, typed errors, nothing without a time-out.

Connections, TLS and tokens come from `kubernetes.aio`; everything above them is here, because its typed models cost
ten times the time of plain JSON and its calls do not limit themselves. Rules that no caller can forget:

* every request takes a token and a parallel place first, and ends by a time-out;
* every write calls `before_write` after that waiting, immediately before it is sent: a process that lost its Lease
  while queueing does not write;
* nothing is retried here. A caller retries by its own back-off, after reading again. A 429 of the server's rate limit
  slows all further requests of this client down;
* a failed write may have been carried out (time-out, lost answer): writes must be repeatable, which fixed names, uids
  and server-side apply give.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import aiohttp
from kubernetes.aio.client import ApiClient

from berth import labels
from berth.errors import Transient
from berth.kube.errors import Expired, TooManyRequests, error_for, error_from_status, trim
from berth.kube.kinds import POD, SERVICE, Kind, Object, kind_of
from berth.kube.limits import Limits, TokenBucket
from berth.metrics import Metrics

PAGE: Final = 200
"""Objects per page of a list: about 1.5 MB of pods. Parsing one page is what the event loop waits for."""
WATCH_SLACK_SECONDS: Final = 5.0
"""A watch that the server has not ended this long after its agreed end is dead."""
LOG_BYTES: Final = 4 * 2**20
MAX_LINE_BYTES: Final = 16 * 2**20
"""No object in etcd is larger than 1.5 MiB; a longer line is not an event."""

_JSON: Final = "application/json"
_MERGE: Final = "application/merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"

Query = list[tuple[str, str]]
Propagation = Literal["Background", "Foreground", "Orphan"]


class Listing(NamedTuple):
    """All objects of a list and the version to start a watch from."""

    items: Sequence[Object]
    resource_version: str


class WatchEvent(NamedTuple):
    """`type` is ADDED, MODIFIED, DELETED or BOOKMARK (then `object` carries only a resourceVersion)."""

    type: str
    object: Object


@dataclass(frozen=True, slots=True)
class _Request:
    verb: str
    kind: Kind
    path: str
    method: str
    query: Query
    body: Object | None = None
    content_type: str = _JSON

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


class KubeClient:
    """One pool of connections under one set of limits; see the module for the rules.

    `api` is configured by `berth.kube.auth` and closed by its owner. All methods raise the errors of
    `berth.kube.errors` and whatever `before_write` raises.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        limits: Limits | None = None,
        before_write: Callable[[], None] | None = None,
        metrics: Metrics | None = None,
        user_agent: str = "berth-operator",
    ) -> None:
        self._api = api
        self._api.user_agent = user_agent
        self._limits = limits or Limits()
        self._before_write = before_write
        self._metrics = metrics or Metrics()
        self._bucket = TokenBucket(self._limits.per_second, self._limits.burst)
        self._places = asyncio.Semaphore(self._limits.parallel)

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object:
        return await self._answer(_Request("get", kind, kind.path(namespace, name), "GET", []))

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        not_older_than: str = "",
        page: int = PAGE,
        transform: Callable[[Object], Object] | None = None,
    ) -> Listing:
        """Every matching object as of one moment (a consistent read), fetched in pages; all namespaces when None.

        `transform` sees each object as its page arrives, so that what it drops is never held for all of them at once.
        With `not_older_than`, a resourceVersion, the moment is that of the server's cache once it has come so far, and
        all is one page: a consistent read waits up to 100 ms for what the cache might lack. `Transient` where it does
        not come so far in three seconds.
        """
        items: list[Object] = []
        token, version = "", ""
        which = _selectors(label_selector, field_selector)
        if not_older_than:
            which += [("resourceVersion", not_older_than), ("resourceVersionMatch", "NotOlderThan")]
            page = 0
        while True:
            query = [*which, ("limit", str(page))]
            if token:
                query.append(("continue", token))
            try:
                answer = await self._answer(_Request("list", kind, kind.path(namespace), "GET", query))
            except Expired:
                if not token:
                    raise
                items, token, page = [], "", 0  # the pages took longer than etcd remembers: once, all in one piece
                continue
            found = ({"apiVersion": kind.api_version, "kind": kind.name, **item} for item in answer.get("items") or ())
            items += map(transform, found) if transform else found
            version = answer["metadata"]["resourceVersion"]
            token = answer["metadata"].get("continue", "")
            if not token:
                return Listing(items, version)

    async def through_service(
        self, namespace: str, name: str, port: str, path: str, query: Sequence[tuple[str, str]] = ()
    ) -> Object:
        """JSON that a pod behind a Service answers, by the API server's proxy."""
        proxy = f"{SERVICE.path(namespace, f'{name}:{port}', 'proxy')}{path}"
        return await self._answer(_Request("get", SERVICE, proxy, "GET", list(query)))

    async def log(self, namespace: str, pod: str, container: str, *, previous: bool, lines: int) -> str:
        """The end of a container's log, or of the life before this one: `lines` of it, LOG_BYTES at most."""
        query = [("container", container), ("tailLines", str(lines)), ("limitBytes", str(LOG_BYTES))]
        query += [("previous", "true")] if previous else []
        request = _Request("get", POD, POD.path(namespace, pod, "log"), "GET", query)
        return (await self._body(request)).decode(errors="replace")

    async def newest_version(self, kind: Kind, namespace: str | None = None) -> str:
        """The version that the server has reached: read with a list of one object."""
        request = _Request("list", kind, kind.path(namespace), "GET", [("limit", "1")])
        version: str = (await self._answer(request))["metadata"]["resourceVersion"]
        return version

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        seconds: float = 15.0,
    ) -> AsyncGenerator[WatchEvent]:
        """Changes after `resource_version`, bookmarks included, until the server ends the watch after `seconds`.

        A bookmark comes shortly before the end if versions went on without a matching change, so that the next watch
        starts from a version the server still remembers. A version that the server has not reached yet is no error:
        it sends nothing until then. Raises `Expired` when this version is compacted, `Transient` for a broken, silent
        or garbled stream.
        """
        query = [
            *_selectors(label_selector, field_selector),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(max(1, round(seconds)))),
        ]
        request = _Request("watch", kind, kind.path(namespace), "GET", query)
        await asyncio.sleep(self._bucket.reserve())
        with _translated(request, self._metrics) as outcome:
            async with asyncio.timeout(self._limits.request_seconds):
                response = await self._send(request, seconds + WATCH_SLACK_SECONDS)
            outcome.code = str(response.status)
            if response.status != 200:
                raise error_for(response.status, await response.read(), response.headers, str(request))
        try:
            async for line in _lines(response, request):
                event = _event(line, request)
                if event.type == "ERROR":
                    raise error_from_status(event.object, int(event.object.get("code") or 500), str(request))
                yield event
        finally:
            response.close()

    # --- writing --------------------------------------------------------------------------------------------------

    async def create(self, obj: Object) -> Object:
        """POST; unknown fields are refused, not pruned. `AlreadyExists` may be our own earlier request, answer lost."""
        kind = kind_of(obj)
        path = kind.path(obj["metadata"].get("namespace"))
        query = [("fieldManager", labels.MANAGER), ("fieldValidation", "Strict")]
        return await self._answer(_Request("create", kind, path, "POST", query, obj))

    async def apply(self, obj: Object, manager: str, *, force: bool = True, subresource: str | None = None) -> Object:
        """Server-side apply of all that `manager` owns of this object.

        With `metadata.uid` in `obj` an object that is gone stays gone (`Conflict`); without it, apply creates.
        On a subresource the server ignores the uid.
        """
        metadata = obj["metadata"]
        kind = kind_of(obj)
        path = kind.path(metadata.get("namespace"), metadata["name"], subresource)
        query = [("fieldManager", manager), ("force", str(force).lower())]
        return await self._answer(_Request("apply", kind, path, "PATCH", query, obj, _APPLY))

    async def merge_patch(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        patch: Object,
        *,
        subresource: str | None = None,
        uid: str | None = None,
        manager: str = labels.MANAGER,
        dry_run: bool = False,
    ) -> Object:
        """JSON merge patch: lists are replaced whole, null removes. With `uid` only that very object (`Conflict`)."""
        if uid is not None:
            patch = {**patch, "metadata": {**patch.get("metadata", {}), "uid": uid}}
        path = kind.path(namespace, name, subresource)
        query = [("fieldManager", manager), *([("dryRun", "All")] if dry_run else [])]
        return await self._answer(_Request("patch", kind, path, "PATCH", query, patch, _MERGE))

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: Propagation | None = None,
    ) -> None:
        """Delete under preconditions: `Conflict` when the object is another one (`uid`) or has changed since."""
        options = _delete_options(uid, resource_version, grace_seconds)
        if propagation is not None:
            options["propagationPolicy"] = propagation
        await self._answer(_Request("delete", kind, kind.path(namespace, name), "DELETE", [], options))

    async def evict(
        self, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Ask for a pod to go, subject to disruption budgets: `TooManyRequests` while one forbids it."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": _delete_options(uid, None, grace_seconds),
        }
        await self._answer(_Request("evict", POD, POD.path(namespace, name, "eviction"), "POST", [], body))

    # --- one request ----------------------------------------------------------------------------------------------

    async def _answer(self, request: _Request) -> Object:
        return _loads(await self._body(request), request)

    async def _body(self, request: _Request) -> bytes:
        """Wait for a turn, send, read the whole answer, translate refusals."""
        async with self._places:
            await asyncio.sleep(self._bucket.reserve())
            if request.method != "GET" and self._before_write is not None:
                self._before_write()
            with _translated(request, self._metrics) as outcome:
                response = await self._send(request, self._limits.seconds_for(request.verb))
                body = await response.read()
                outcome.code = str(response.status)
            if 200 <= response.status < 300:
                return body
            error = error_for(response.status, body, response.headers, str(request))
            if isinstance(error, TooManyRequests) and error.retry_after and request.verb != "evict":
                self._bucket.hold(error.retry_after)
            raise error

    async def _send(self, request: _Request, total_seconds: float) -> aiohttp.ClientResponse:
        """Send and wait for the headers of the answer; `total_seconds` also bounds the reading of its body."""
        method, url, headers, _, _ = await self._api.param_serialize(
            request.method,
            request.path,
            query_params=request.query,
            header_params={"Accept": _JSON, "Content-Type": request.content_type},
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=total_seconds, sock_connect=self._limits.connect_seconds)
        answer = await self._api.call_api(method, url, headers, request.body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


class _Outcome:
    code = "cancelled"


@contextlib.contextmanager
def _translated(request: _Request, metrics: Metrics) -> Iterator[_Outcome]:
    """Count one request and turn what a network can do to it into `Transient`."""
    outcome = _Outcome()
    started = time.monotonic()
    try:
        yield outcome
    except TimeoutError:
        outcome.code = "timeout"
        raise Transient(f"{request}: no answer in time") from None
    except (aiohttp.ClientError, OSError) as error:
        outcome.code = "connection"
        raise Transient(trim(f"{request}: {error or type(error).__name__}")) from error
    finally:
        metrics.api_call(request.verb, request.kind.name, outcome.code, time.monotonic() - started)


async def _lines(response: aiohttp.ClientResponse, request: _Request) -> AsyncIterator[bytes]:
    """The lines of a stream until the server ends it; a rest without a line end is a line cut in two."""
    rest = b""
    try:
        while chunk := await response.content.readany():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line:
                    yield line
            if len(rest) > MAX_LINE_BYTES:
                raise Transient(f"{request}: line of more than {MAX_LINE_BYTES} bytes")
    except TimeoutError:
        raise Transient(f"{request}: silent past its agreed end") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Transient(trim(f"{request}: {error or type(error).__name__}")) from error
    if rest:
        raise Transient(f"{request}: stream ended inside a line")


def _loads(body: bytes, request: _Request) -> Object:
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Transient(f"{request}: answer is not a JSON object")
    return parsed


def _event(line: bytes, request: _Request) -> WatchEvent:
    match _loads(line, request):
        case {"type": str(type_), "object": dict(obj)}:
            return WatchEvent(type_, obj)
    raise Transient(f"{request}: line is not an event")


def _selectors(label_selector: str | None, field_selector: str | None) -> Query:
    named: Mapping[str, str | None] = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return [(name, value) for name, value in named.items() if value]


def _delete_options(uid: str | None, resource_version: str | None, grace_seconds: int | None) -> Object:
    options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
    preconditions = {"uid": uid, "resourceVersion": resource_version}
    if given := {name: value for name, value in preconditions.items() if value is not None}:
        options["preconditions"] = given
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    return options
