"""Live figures of deployments, for people: what the leaders said last, without a write into any status.

Served on a page of its own that anyone may reach who the API server lets through its service proxy. The page tells only
of deployments whose UID the asker knows, and UIDs are random: whoever may read the object may read its figures, and
nobody can list those of others. Only the leader measures, so only the leader answers.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol

from aiohttp import web

from berth.api.common import format_duration
from berth.core.measurement.measured import GroupMeasured, Measured
from berth.core.measurement.report import figures, problem
from berth.core.measurement.windows import Windows

PATH: Final = "/live"
MOST_ASKED: Final = 64
"""Deployments of one request."""
MOST_AT_ONCE: Final = 2
"""Requests in work: whoever asks more takes nothing from the threads that plan."""
NOT_LEADING: Final = "this replica does not lead"
_UID: Final = re.compile(r"[0-9a-f-]{36}")


class Readings(Protocol):
    """The reader; asked from a thread of its own."""

    def measured(self, key: Any) -> Measured: ...


class Live:
    """`service` (namespace/name) is where people find the page; empty where there is none."""

    def __init__(self, readings: Readings, service: str = "") -> None:
        self.service = service
        self._readings = readings
        self._keys: dict[str, Any] = {}
        self._uids: dict[Any, str] = {}

    def know(self, uid: str, key: Any) -> None:
        """From now on the deployment may be asked about; whoever had its name before may not."""
        if self._uids.get(key) != uid:
            self.forget(key)
            self._uids[key], self._keys[uid] = uid, key

    def forget(self, key: Any) -> None:
        """The deployment is gone."""
        self._keys.pop(self._uids.pop(key, ""), None)

    def told(self, uids: Iterable[str]) -> list[dict[str, Any]]:
        """One entry for each that is known."""
        known = [(uid, self._keys[uid]) for uid in dict.fromkeys(uids) if uid in self._keys]
        return [{"uid": uid, **_told(self._readings.measured(key))} for uid, key in known]


async def serve_live(stack: AsyncExitStack, address: tuple[str, int], live: Live, leads: Callable[[], bool]) -> None:
    """Serve until `stack` closes."""

    places = asyncio.Semaphore(MOST_AT_ONCE)

    async def answer(request: web.Request) -> web.Response:
        if not leads():
            return web.Response(status=503, text=f"{NOT_LEADING}\n")
        if places.locked():
            return web.Response(status=429, text="too many ask at once\n", headers={"Retry-After": "1"})
        uids = request.query.getall("uid", [])
        if len(uids) > MOST_ASKED or not all(map(_UID.fullmatch, uids)):
            return web.Response(status=400, text=f"ask with ?uid=..., at most {MOST_ASKED} of them\n")
        async with places:
            return web.json_response({"deployments": await asyncio.to_thread(live.told, uids)})

    application = web.Application(client_max_size=4096)
    application.router.add_get(PATH, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, port = address
    await web.TCPSite(runner, host or None, port).start()


def _told(measured: Measured) -> dict[str, Any]:
    groups = [group for group in measured.groups if group.serving]
    told: dict[str, Any] = {"fresh": measured.fresh, "groups": [_group(group) for group in groups]}
    if not measured.fresh:
        return {**told, "problem": problem(measured)}
    for field in ("running", "waiting"):
        known = [getattr(group, field) for group in groups]
        if None not in known:
            told[field] = round(sum(known))
    rate = measured.deployment.fast.requests_per_second
    if rate is not None:
        told["requestsPerSecond"] = _rate(rate)
    return told | _figures(measured.deployment)


def _group(group: GroupMeasured) -> dict[str, Any]:
    """Its name is that of its ReplicaGroup, `llama-70b-1a2b3-g0-7`."""
    _, name, incarnation = group.name.rsplit("-", 2)
    told: dict[str, Any] = {"name": name, "incarnation": int(incarnation)}
    told |= {field: round(value) for field in ("running", "waiting") if (value := getattr(group, field)) is not None}
    if group.kv_use is not None:
        told["kvUse"] = f"{group.kv_use:.0%}"
    if group.problem:
        told["problem"] = group.problem
    return told | _figures(group.windows)


def _figures(windows: Windows) -> dict[str, str]:
    """What is unknown is absent."""
    found = figures(windows)
    told = {
        field: format_duration(value)
        for field, value in (("ttftP95", found.ttft_p95), ("tpotP95", found.tpot_p95))
        if value is not None and value < math.inf
    }
    if found.output_tokens_per_second is not None:
        told["outputTokensPerSecond"] = _rate(found.output_tokens_per_second)
    return told


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
