"""Probes: a question to a container, and how many answers in a row count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

Ask = Callable[[], Awaitable[str]]
"""One question: empty when all is well, else why not."""


class Target(Protocol):
    """What a probe is put to."""

    address: str

    def port(self, wanted: int | str) -> int:
        """Number of a port that may be given by its name. Raises ValueError."""
        ...

    async def execute(self, command: Sequence[str]) -> str:
        """Runs a command as in the container: empty when it ends with 0, else why not. Cancelled, it is killed."""
        ...


@dataclass(frozen=True)
class Probe:
    """One probe of a container; times in seconds."""

    handler: Mapping[str, Any]
    delay: float
    period: float
    timeout: float
    successes: int
    failures: int
    grace: float | None = None
    """Seconds that the container gets to end when this probe has failed; None: the pod's."""

    @classmethod
    def of(cls, container: Mapping[str, Any], name: str) -> Probe | None:
        """`name` is a field of the container, such as readinessProbe. The API server has filled in all defaults."""
        raw = container.get(name)
        if not raw:
            return None
        return cls(
            handler=raw,
            delay=raw.get("initialDelaySeconds", 0),
            period=raw.get("periodSeconds", 10),
            timeout=raw.get("timeoutSeconds", 1),
            successes=raw.get("successThreshold", 1),
            failures=raw.get("failureThreshold", 3),
            grace=raw.get("terminationGracePeriodSeconds"),
        )


class Prober:
    """Puts one probe again and again; `turn` is awaited before each question."""

    def __init__(self, probe: Probe, ask: Ask, turn: Callable[[], Awaitable[None]]) -> None:
        self._probe = probe
        self._ask = ask
        self._turn = turn
        self._row = 0
        self._last: bool | None = None
        self._told: bool | None = None
        self._pause = probe.delay

    async def verdict(self) -> str:
        """Returns when the thresholds have been reached with another result than before: empty is well, else why."""
        while True:
            await asyncio.sleep(self._pause)
            self._pause = self._probe.period
            await self._turn()
            why = await self._ask()
            well = not why
            self._row = self._row + 1 if well is self._last else 1
            self._last = well
            if self._row >= (self._probe.successes if well else self._probe.failures) and well is not self._told:
                self._told = well
                return why


async def ask_once(probe: Probe, target: Target) -> str:
    """Puts the question: empty when all is well, else why not."""
    try:
        async with asyncio.timeout(probe.timeout):
            if action := probe.handler.get("httpGet"):
                return await _http(action, target)
            if action := probe.handler.get("tcpSocket"):
                return await _tcp(action, target)
            if action := probe.handler.get("exec"):
                return await target.execute(action.get("command") or ())
            return "local nodes have no gRPC probes: use httpGet, tcpSocket or exec"
    except TimeoutError:
        return f"no answer within {probe.timeout:g}s"
    except (OSError, ValueError, aiohttp.ClientError) as error:
        return str(error) or type(error).__name__


async def _http(action: Mapping[str, Any], target: Target) -> str:
    host, port = action.get("host") or target.address, target.port(action["port"])
    url = f"{action.get('scheme', 'HTTP').lower()}://{host}:{port}{action.get('path', '/')}"
    headers = {each["name"]: each["value"] for each in action.get("httpHeaders") or ()}
    # Kubelets do not check certificates of probes.
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url, allow_redirects=False, ssl=False) as answer,
    ):
        return "" if 200 <= answer.status < 400 else f"HTTP probe failed with statuscode: {answer.status}"


async def _tcp(action: Mapping[str, Any], target: Target) -> str:
    _, writer = await asyncio.open_connection(action.get("host") or target.address, target.port(action["port"]))
    writer.close()
    return ""
