"""The launcher's HTTP page on port 8003, and the client of its drain. Paths as in docs/designs/006-launcher.md."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from typing import Any, Final, Protocol

from berth.engine import contract, web
from berth.engine.control import Control

PATHS: Final = ("/livez", "/startupz", "/readyz", "/state", "/metrics", "/drain", "/objectives")
OBJECTIVES: Final = ("time_to_first_token", "time_per_output_token")
POLL: Final = 0.25


class Source(Protocol):
    """What the page shows: the launcher."""

    @property
    def phase(self) -> str: ...

    @property
    def control(self) -> Control: ...

    def describe(self) -> dict[str, Any]: ...

    def metrics(self) -> str: ...


def pages(source: Source) -> web.Handler:
    """Answers requests from what the source says at that moment."""

    async def answer(request: web.Request) -> web.Response:
        phase = source.phase
        match request.method, request.path:
            case "GET", "/livez":
                return web.Response(200, "ok\n")
            case "GET", "/startupz":
                return web.Response(503 if phase in ("joining", "loading", "warming") else 200, phase + "\n")
            case "GET", "/readyz":
                return web.Response(200 if phase == "serving" else 503, phase + "\n")
            case "GET", "/state":
                return web.Response.json(200, source.describe())
            case "GET", "/metrics":
                return web.Response(200, source.metrics(), "text/plain; version=0.0.4; charset=utf-8")
            case "POST", "/drain":
                source.control.drain(_grace(request.query.get("grace", "0")))
                return web.Response.json(202, source.describe())
            case "DELETE", "/drain":
                source.control.resume()
                return web.Response.json(200, source.describe())
            case "PUT", "/objectives":
                source.control.set_objectives(_objectives(request.body))
                return web.Response.json(200, source.describe())
        if request.path in PATHS:
            return web.Response(405, f"{request.path} does not take {request.method}\n")
        return web.Response(404, "no such page\n")

    return answer


def _grace(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise web.BadRequest(f"grace is {text!r}: give seconds")
    return value


def _objectives(body: bytes) -> dict[str, float]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise web.BadRequest(f"no JSON: {error}") from error
    if not isinstance(document, dict) or not set(document) <= set(OBJECTIVES):
        raise web.BadRequest(f"give an object with {' and '.join(OBJECTIVES)} in seconds")
    for name, value in document.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 3600:
            raise web.BadRequest(f"{name} is {value!r}: give seconds between 0 and 3600")
    return {name: float(value) for name, value in document.items()}


async def drain(host: str, grace: float, seconds: float) -> int:
    """Asks the launcher of this pod to drain: 0 once nothing is in flight, 1 if that takes longer than `seconds`.

    A launcher that only starts is waited for: SIGTERM comes when this returns, and the first process of a container
    ignores it as long as it has no handler; the pod would hold its GPUs for all of its termination grace.
    """
    began = time.monotonic()
    deadline = began + seconds
    method, path, in_flight = "POST", f"/drain?grace={grace:g}", "unknown"
    while time.monotonic() < deadline:
        try:
            _, body = await web.ask(host, contract.PORT_PAGE, method, path, seconds=web.TIMEOUT)
            state = json.loads(body)
        except (OSError, TimeoutError, ValueError) as error:
            starts = isinstance(error, ConnectionRefusedError) and method == "POST"
            if starts and time.monotonic() + POLL < min(deadline, began + contract.STARTING):
                await asyncio.sleep(POLL)
                continue
            print(f"no launcher answers at {host}:{contract.PORT_PAGE}: {error}", file=sys.stderr)
            return 1
        if state["drained"] and not state["accepting"]:
            return 0
        method, path, in_flight = "GET", "/state", state["in_flight"]
        await asyncio.sleep(POLL)
    print(f"requests in flight after {seconds:g}s: {in_flight}", file=sys.stderr)
    return 1
