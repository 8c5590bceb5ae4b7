"""An HTTPS reverse proxy in front of the real API server that counts, records and breaks what passes.

One proxy per client (replica) lets a test break one client's view of the cluster and leave the others alone. Requests
and replies pass unchanged, watches line by line as they come. Faults are values, injected for the calls that match:

    proxy.inject(Refuse(429, retry_after=1), verb="create", resource="pods", times=3)
    proxy.inject(EditEvents(drop_deletions), verb="watch", resource="pods")
    proxy.after_write(5, operator.kill, lose_reply=True)

A write counts once the server has committed it, in the order of the server's answers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web
from yarl import URL

from berth.local.controlplane import ControlPlane
from tests.support.cluster import LONGEST_EVENT

READS = frozenset({"get", "list", "watch"})
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"})


@dataclass
class Call:
    """One request in the words of RBAC. `status` is what the client was told: 0 for nothing (yet)."""

    verb: str
    """get, list, watch, create, update, patch, delete or deletecollection."""
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    query: dict[str, str]
    body: bytes
    status: int = 0
    committed: bool = False
    """The server answered a write with 2xx, whether or not the client learnt of it; never for a dry run."""

    @property
    def permission(self) -> tuple[str, str, str]:
        """(verb, group, resource or resource/subresource): what a Role must grant."""
        return self.verb, self.group, f"{self.resource}/{self.subresource}" if self.subresource else self.resource


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refuse:
    """The server answers with an error of its own and does nothing; `retry_after` in seconds."""

    status: int
    reason: str = ""
    message: str = "refused by the fault proxy"
    retry_after: int | None = None


@dataclass(frozen=True)
class Delay:
    """The request reaches the server `seconds` late."""

    seconds: float


@dataclass(frozen=True)
class Hang:
    """The request never reaches the server and the connection stays open."""


@dataclass(frozen=True)
class Reset:
    """The connection breaks before the request reaches the server."""


@dataclass(frozen=True)
class LoseReply:
    """The server does the work, then the connection breaks."""


@dataclass(frozen=True)
class Stale:
    """Each read is answered as it was when it was first asked under this fault: a server that lags behind."""


@dataclass(frozen=True)
class EditEvents:
    """Each watch event becomes what `edit` makes of it: nothing, itself, several. Bookmarks pass through it too."""

    edit: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class BreakWatch:
    """After `events` whole events: `freeze` says no more and stays open; `close` ends the stream in good order;
    `truncate` breaks the connection inside the next event; `expire` sends 410 Gone as an ERROR event and ends."""

    how: Literal["freeze", "close", "truncate", "expire"]
    events: int = 0


Fault = Refuse | Delay | Hang | Reset | LoseReply | Stale | EditEvents | BreakWatch


@dataclass
class Rule:
    """A fault, the calls it is for, and how many of them it still hits (None: all)."""

    fault: Fault
    matches: Callable[[Call], bool]
    remaining: int | None
    hits: int = 0


@dataclass
class _WriteHook:
    number: int
    hook: Callable[[Call], object]
    lose_reply: bool


# --- the proxy --------------------------------------------------------------------------------------------------------


class FaultProxy:
    """`async with FaultProxy(control_plane) as proxy`; clients use `proxy.url` with the control plane's CA and tokens.

    `calls` has every request in order of arrival, `writes` the committed ones. `counted` decides which writes
    `after_write` counts (a test may leave out the renewals of Leases, which follow the clock).
    """

    def __init__(self, control_plane: ControlPlane, *, counted: Callable[[Call], bool] = lambda call: True) -> None:
        self.calls: list[Call] = []
        self.writes: list[Call] = []
        self.url = ""
        self._control_plane = control_plane
        self._counted = counted
        self._rules: list[Rule] = []
        self._hooks: list[_WriteHook] = []
        self._connected = asyncio.Event()
        self._connected.set()
        self._stale: dict[str, bytes] = {}
        self._working: set[asyncio.Task[web.StreamResponse]] = set()

    async def __aenter__(self) -> Self:
        certificates = self._control_plane.directory / "certificates"
        identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        identity.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
        trust = ssl.create_default_context(cafile=str(self._control_plane.certificate_authority))
        self._upstream = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=LONGEST_EVENT,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )
        self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(self._server, "127.0.0.1", 0, ssl=identity)
        self.url = f"https://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.cut()
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._server.shutdown(timeout=0)
        await self._upstream.close()

    def inject(
        self,
        fault: Fault,
        *,
        verb: str | None = None,
        resource: str | None = None,
        subresource: str | None = None,
        name: str | None = None,
        where: Callable[[Call], bool] = lambda call: True,
        times: int | None = None,
    ) -> Rule:
        """From now on the first matching rule decides; a rule with `times` ends after that many calls."""

        def matches(call: Call) -> bool:
            wanted = {"verb": verb, "resource": resource, "subresource": subresource, "name": name}
            return all(value is None or getattr(call, key) == value for key, value in wanted.items()) and where(call)

        rule = Rule(fault, matches, times)
        self._rules.append(rule)
        return rule

    def withdraw(self, rule: Rule) -> None:
        """The rule applies to no further call; calls that it holds stay held."""
        self._rules.remove(rule)

    def after_write(self, number: int, hook: Callable[[Call], object], *, lose_reply: bool = False) -> None:
        """Calls `hook` when the `number`-th counted write (from 1, since the start) is committed, before its reply
        passes; with `lose_reply` it never does. An async hook is awaited. Killing the client undoes no write."""
        self._hooks.append(_WriteHook(number, hook, lose_reply))

    def partition(self) -> None:
        """Nothing passes in either direction, and nobody is told: open connections stay open, new ones hang."""
        self._connected.clear()

    def heal(self) -> None:
        """What a partition held passes now, late."""
        self._connected.set()

    def cut(self) -> None:
        """Breaks every open connection; new ones work."""
        for connection in list(self._server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def permissions(self) -> set[tuple[str, str, str]]:
        """Every (verb, group, resource[/subresource]) that was asked for."""
        return {call.permission for call in self.calls if call.resource}

    # --- one request --------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """A write that has begun is carried through even if its client dies; a read ends with its client."""
        call = _call(request, b"".join([chunk async for chunk in request.content.iter_any()]))
        self.calls.append(call)
        task = asyncio.ensure_future(self._answer(request, call))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        if call.verb in READS:
            return await task
        return await asyncio.shield(task)

    async def _answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        fault = self._fault(call)
        await self._connected.wait()
        match fault:
            case Refuse():
                call.status = fault.status
                return _refusal(fault)
            case Reset():
                return _abort(request)
            case Hang():
                await asyncio.Event().wait()
            case Delay():
                await asyncio.sleep(fault.seconds)
        try:
            return await self._forward(request, call, fault)
        except (aiohttp.ClientError, ConnectionError):
            return _abort(request)

    async def _forward(self, request: web.BaseRequest, call: Call, fault: Fault | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = self._control_plane.url + request.raw_path
        async with self._upstream.request(
            request.method, URL(url, encoded=True), headers=headers, data=call.body or None
        ) as answer:
            if call.verb == "watch" and answer.status == 200 and answer.content_type == "application/json":
                return await self._stream(request, call, fault, answer)
            body = await answer.read()
            if isinstance(fault, Stale):
                body = self._stale.setdefault(request.raw_path, body)
            if await self._committed(call, answer.status) or isinstance(fault, LoseReply):
                return _abort(request)
            await self._connected.wait()
            call.status = answer.status
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, headers=passed, body=body)

    async def _committed(self, call: Call, status: int) -> bool:
        """Counts a write and runs its hooks; True if the reply must be lost."""
        if call.verb in READS or status >= 300 or "dryRun" in call.query:
            return False
        call.committed = True
        self.writes.append(call)
        if not self._counted(call):
            return False
        number = sum(map(self._counted, self.writes))
        lost = False
        for hook in [each for each in self._hooks if each.number == number]:
            lost |= hook.lose_reply
            if inspect.isawaitable(result := hook.hook(call)):
                await result
        return lost

    async def _stream(
        self, request: web.BaseRequest, call: Call, fault: Fault | None, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        call.status = 200
        passed = 0
        async for line in _lines(answer, fault):
            await self._connected.wait()
            if isinstance(fault, BreakWatch) and passed >= fault.events:
                return await self._break_watch(request, response, fault, line)
            await response.write(line)
            passed += 1
        await self._connected.wait()
        await response.write_eof()
        return response

    async def _break_watch(
        self, request: web.BaseRequest, response: web.StreamResponse, fault: BreakWatch, line: bytes
    ) -> web.StreamResponse:
        match fault.how:
            case "freeze":
                await asyncio.Event().wait()
            case "truncate":
                await response.write(line[: len(line) // 2])
                return _abort(request)
            case "expire":
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        await response.write_eof()
        return response

    def _fault(self, call: Call) -> Fault | None:
        for rule in self._rules:
            if rule.remaining != 0 and rule.matches(call):
                rule.hits += 1
                if rule.remaining is not None:
                    rule.remaining -= 1
                return rule.fault
        return None


async def _lines(answer: aiohttp.ClientResponse, fault: Fault | None) -> AsyncIterator[bytes]:
    """Whole watch events, after the fault's edits; none if the server breaks off."""
    with suppress(aiohttp.ClientError, ConnectionError):
        async for line in answer.content:
            if not isinstance(fault, EditEvents):
                yield line
                continue
            for event in fault.edit(json.loads(line)):
                yield json.dumps(event).encode() + b"\n"


def _call(request: web.BaseRequest, body: bytes) -> Call:
    """The request as the API server's authorizer sees it; anything outside /api and /apis has no resource."""
    query = dict(request.query)
    parts = [part for part in request.path.split("/") if part]
    group = ""
    if parts[:1] == ["apis"] and len(parts) > 2:
        group, parts = parts[1], parts[3:]
    elif parts[:1] == ["api"]:
        parts = parts[2:]
    else:
        parts = []
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces" and parts[2] not in {"status", "finalize"}:
        namespace, parts = parts[1], parts[2:]
    resource, name, subresource = (*parts[:3], "", "", "")[:3]
    verbs = {
        "GET": "get" if name else ("watch" if query.get("watch") in {"true", "1"} else "list"),
        "HEAD": "get",
        "POST": "create",
        "PUT": "update",
        "PATCH": "patch",
        "DELETE": "delete" if name else "deletecollection",
    }
    return Call(verbs[request.method], group, resource, subresource, namespace, name, query, body)


def _refusal(fault: Refuse) -> web.Response:
    details = {} if fault.retry_after is None else {"retryAfterSeconds": fault.retry_after}
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": fault.status,
        "reason": fault.reason,
        "message": fault.message,
        "details": details,
    }
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return web.json_response(status, status=fault.status, headers=headers)


def _abort(request: web.BaseRequest) -> web.StreamResponse:
    """Breaks the connection; the returned response goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)
