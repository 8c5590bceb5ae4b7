"""Where measurements come from: the leaders' own pages, or a Prometheus that scrapes them.

Every answer is bounded in time and size and follows no redirects; what it says is untrusted. One leader that hangs,
lies or talks for ever costs its own figures and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp

from berth.core.measurement.pages import LAUNCHER_NAME, NAMES, Unreadable, sample_of, sample_of_page, series_of
from berth.core.measurement.samples import Objectives, Sample
from berth.engine import contract
from berth.errors import Transient

MAX_PAGE_BYTES: Final = 256 * 1024
MAX_ANSWER_BYTES: Final = 16 * 2**20
"""Of Prometheus, for PODS_PER_QUERY pods."""
PODS_PER_QUERY: Final = 50
PARALLEL_PAGES: Final = 128
PARALLEL_QUERIES: Final = 4


@dataclass(frozen=True)
class Leader:
    """A leader that serves, verified to be ours, and what it is measured against."""

    uid: str
    restarts: int
    address: str
    namespace: str
    pod: str
    group: str
    """Name of its ReplicaGroup."""
    pool: str
    revision: str
    """Template hash."""
    objectives: Objectives = field(default_factory=Objectives)


Tell = Callable[[Leader, Sample | str], None]
"""Takes a sample of a leader, or in a few words why there is none."""


class Source(Protocol):
    """Where samples come from."""

    async def read(self, leaders: Sequence[Leader], tell: Tell) -> None:
        """Tell about each leader once; returns when all are told."""

    async def want(self, leader: Leader) -> None:
        """Ask the leader to count its objectives exactly. Raises Transient."""

    async def close(self) -> None: ...


class Pages:
    """Reads each leader's launcher page; Triton's own where that one tells nothing of requests.

    Reading is spread over `spread_seconds`, so that a thousand pages do not come at once. `clock` gives Unix seconds.
    """

    def __init__(self, clock: Callable[[], float], timeout_seconds: float = 5.0, spread_seconds: float = 0.0) -> None:
        self._clock = clock
        self._timeout = timeout_seconds
        self._spread = spread_seconds
        self._slots = asyncio.Semaphore(PARALLEL_PAGES)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, leaders: Sequence[Leader], tell: Tell) -> None:
        pause = self._spread / max(1, len(leaders))
        async with asyncio.TaskGroup() as reading:
            for leader in leaders:
                await self._slots.acquire()
                reading.create_task(self._tell(leader, tell))
                await asyncio.sleep(pause)

    async def _tell(self, leader: Leader, tell: Tell) -> None:
        try:
            tell(leader, await self.sample(leader.address))
        except (Transient, Unreadable) as error:
            tell(leader, str(error)[:200])
        finally:
            self._slots.release()

    async def sample(self, address: str) -> Sample:
        """Raises Transient or Unreadable."""
        at = self._clock()
        text = await self._get(address, contract.PORT_PAGE)
        try:
            return sample_of_page(text, at)
        except Unreadable:
            if not text.endswith("\n"):
                raise
        return sample_of_page(await self._get(address, contract.PORT_METRICS), at)

    async def want(self, leader: Leader) -> None:
        wanted = leader.objectives
        objectives = {"time_to_first_token": wanted.first_token, "time_per_output_token": wanted.per_token}
        body = json.dumps({name: value for name, value in objectives.items() if value is not None}).encode()
        await self._request("PUT", leader.address, contract.PORT_PAGE, "/objectives", body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _get(self, address: str, port: int) -> str:
        return (await self._request("GET", address, port, "/metrics")).decode("utf-8", "replace")

    async def _request(self, method: str, address: str, port: int, path: str, body: bytes | None = None) -> bytes:
        if self._session is None:
            self._session = _session(self._timeout, PARALLEL_PAGES)
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"
        return await _bounded(self._session, method, url, body, MAX_PAGE_BYTES, f"{address}:{port}")


class Prometheus:
    """Asks the HTTP API of a Prometheus at `url` that scrapes the leaders with labels `namespace` and `pod`.

    Raw samples of the last `lookback_seconds` are asked for, with the times at which they were scraped, and treated as
    pages: a rate that Prometheus computes would hide resets and staleness.
    """

    def __init__(self, url: str, pages: Pages, lookback_seconds: float, timeout_seconds: float = 10.0) -> None:
        self._url = url.rstrip("/") + "/api/v1/query"
        self._pages = pages
        self._lookback = max(1, round(lookback_seconds))
        self._timeout = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def read(self, leaders: Sequence[Leader], tell: Tell) -> None:
        by_namespace: defaultdict[str, list[Leader]] = defaultdict(list)
        for leader in leaders:
            by_namespace[leader.namespace].append(leader)
        slots = asyncio.Semaphore(PARALLEL_QUERIES)
        async with asyncio.TaskGroup() as asking:
            for namespace, members in by_namespace.items():
                for start in range(0, len(members), PODS_PER_QUERY):
                    some = members[start : start + PODS_PER_QUERY]
                    asking.create_task(self._tell(namespace, some, tell, slots))

    async def want(self, leader: Leader) -> None:
        await self._pages.want(leader)

    async def close(self) -> None:
        await self._pages.close()
        if self._session is not None:
            await self._session.close()

    async def _tell(self, namespace: str, leaders: Sequence[Leader], tell: Tell, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                found = _by_pod(await self._query(namespace, [leader.pod for leader in leaders]))
            except Transient as error:
                for leader in leaders:
                    tell(leader, str(error)[:200])
                return
        for leader in leaders:
            try:
                series, at = found[leader.pod]
                tell(leader, sample_of(series_of(series), at))
            except KeyError:
                tell(leader, f"Prometheus has nothing of pod {leader.pod} in the last {self._lookback} s")
            except Unreadable as error:
                tell(leader, str(error))

    async def _query(self, namespace: str, pods: Sequence[str]) -> Any:
        if self._session is None:
            self._session = _session(self._timeout, PARALLEL_QUERIES)
        names, wanted = "|".join(sorted(NAMES)), "|".join(re.escape(pod) for pod in pods).replace("\\", "\\\\")
        query = f'{{__name__=~"{names}",namespace="{namespace}",pod=~"{wanted}"}}[{self._lookback}s]'
        form = aiohttp.FormData({"query": query})
        body = await _bounded(self._session, "POST", self._url, form, MAX_ANSWER_BYTES, "Prometheus")
        try:
            answer = await asyncio.to_thread(json.loads, body)
            if answer["status"] != "success" or answer["data"]["resultType"] != "matrix":
                raise Transient("Prometheus did not answer the question")
            return answer["data"]["result"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Transient("Prometheus did not answer in its own format") from error


Scrape = tuple[list[tuple[Mapping[str, str], float]], float]
"""Values by labels, and when they were scraped."""


def _by_pod(result: Any) -> dict[str, Scrape]:
    """By pod its newest scrape, of the launcher's page if that is scraped. What has another form is left out."""
    targets: defaultdict[tuple[str, str], list[tuple[Mapping[str, str], float, float]]] = defaultdict(list)
    for labels, at, value in _last_values(result):
        targets[labels["pod"], str(labels.get("instance"))].append((labels, at, value))
    found: dict[str, Scrape] = {}
    for (pod, _), entries in targets.items():
        at = max(entry[1] for entry in entries)
        # What an earlier life of the pod exported, and this one does not, ended before the newest scrape.
        current = [(labels, value) for labels, moment, value in entries if moment == at]
        if pod not in found or any(labels.get("__name__") == LAUNCHER_NAME for labels, _ in current):
            found[pod] = current, at
    return found


def _last_values(result: Any) -> Iterable[tuple[Mapping[str, str], float, float]]:
    for entry in result if isinstance(result, list) else ():
        try:
            labels, (at, value) = entry["metric"], entry["values"][-1]
            if isinstance(labels["pod"], str):
                yield labels, float(at), float(value)
        except (KeyError, IndexError, TypeError, ValueError):
            continue


def _session(timeout: float, connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout),
        connector=aiohttp.TCPConnector(limit=connections, force_close=True),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
    )


async def _bounded(
    session: aiohttp.ClientSession, method: str, url: str, body: bytes | aiohttp.FormData | None, most: int, whom: str
) -> bytes:
    """The whole answer, at most `most` bytes. Raises Transient."""
    try:
        async with session.request(method, url, data=body, allow_redirects=False) as response:
            if response.status >= 300:
                raise Transient(f"{whom} answered {response.status}")
            parts, size = [], 0
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise Transient(f"{whom} answered with more than {most // 1024} KiB")
            return b"".join(parts)
    except TimeoutError as error:
        raise Transient(f"{whom} did not answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Transient(f"{whom} cannot be read: {str(error)[:120] or type(error).__name__}") from error
