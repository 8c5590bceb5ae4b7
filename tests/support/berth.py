"""Berth itself inside a test: the whole application, against a real API server, with the leaders' answers injected.

Nothing is replaced but the conversation with leaders: simulated nodes have no containers to talk to.
"""

from __future__ import annotations

import asyncio
import socket
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from berth.app import App
from berth.core.measurement.histogram import Histogram
from berth.core.measurement.samples import Objectives, Sample
from berth.errors import Transient
from berth.serving.prober import Progress
from berth.serving.sources import Leader, Tell
from berth.settings import Settings


@dataclass
class ScriptedLeaders:
    """Answers for leaders by address; by default everybody produces a token, makes progress, has nothing in flight."""

    silent: set[str] = field(default_factory=set)
    """Addresses that produce no token; "*" is everybody."""
    unreachable: set[str] = field(default_factory=set)
    """Addresses that nothing is heard from; "*" is everybody."""
    frozen: set[str] = field(default_factory=set)
    """Addresses whose engine has work and makes no progress; "*" is everybody."""
    stubborn: set[str] = field(default_factory=set)
    """Addresses that go on draining though told to take requests again."""
    in_flight_by_address: dict[str, int] = field(default_factory=dict)
    drained: list[str] = field(default_factory=list)
    draining: set[str] = field(default_factory=set)
    asked: int = 0
    looked: int = 0

    async def token(self, address: str) -> None:
        """Asked of a new life, which takes requests: addresses of pods that are gone are given to others."""
        self.asked += 1
        self._reach(address)
        self.draining.discard(address)
        if address in self.silent or "*" in self.silent:
            raise Transient(f"no token from {address}: silent in this test")

    async def progress(self, address: str) -> Progress:
        self._reach(address)
        self.looked += 1
        frozen = address in self.frozen or "*" in self.frozen
        in_flight = self.in_flight_by_address.get(address, int(frozen))
        done = 1 if frozen else self.looked
        return Progress(in_flight, steps=done, tokens=done, draining=address in self.draining)

    def _reach(self, address: str) -> None:
        if address in self.unreachable or "*" in self.unreachable:
            raise Transient(f"{address} cannot be reached in this test")

    async def drain(self, address: str) -> None:
        self._reach(address)
        self.drained.append(address)
        self.draining.add(address)

    async def resume(self, address: str) -> None:
        self._reach(address)
        if address not in self.stubborn:
            self.draining.discard(address)


EDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass
class ScriptedMetrics:
    """Pages of leaders: what each served so far, by name of the pod; everybody answers at once, with objectives."""

    requests: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By pod: seconds to the first token and per output token of each request, of 20 tokens each."""
    silent: set[str] = field(default_factory=set)
    """Pods that cannot be read; "*" is everybody."""
    clock: Callable[[], float] = time.time
    readings: int = 0
    edges: dict[str, Objectives] = field(default_factory=dict)

    def serve(self, pod: str, count: int, *, ttft: float = 0.08, tpot: float = 0.015) -> None:
        """The pod answers so many more requests."""
        self.requests.setdefault(pod, []).extend([(ttft, tpot)] * count)

    async def read(self, leaders: Sequence[Leader], tell: Tell) -> None:
        for leader in leaders:
            self.readings += 1
            if leader.pod in self.silent or "*" in self.silent:
                tell(leader, "silent in this test")
            else:
                tell(leader, self._sample(leader.pod))
            await asyncio.sleep(0)  # pages arrive one by one

    def _sample(self, pod: str) -> Sample:
        served, wanted = self.requests.get(pod, []), self.edges.get(pod, Objectives())
        return Sample(
            self.clock(),
            first_token=_histogram([first for first, _ in served], wanted.first_token),
            per_token=_histogram([token for _, token in served], wanted.per_token),
            counters={"requests": float(len(served)), "tokens": 20.0 * len(served)},
            running=1.0,
            waiting=0.0,
            kv_use=0.3,
        )

    async def want(self, leader: Leader) -> None:
        self.edges[leader.pod] = leader.objectives

    async def close(self) -> None:
        pass


def _histogram(values: list[float], objective: float | None) -> Histogram:
    edges = tuple(sorted({*EDGES, *((objective,) if objective else ())}))
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_left(edges, value)] += 1
    return Histogram(edges, tuple(counts), sum(values))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class RunningBerth:
    """One operator; `app` for its page and queue."""

    app: App
    task: asyncio.Task[None]
    leaders: ScriptedLeaders
    metrics: ScriptedMetrics

    async def stop(self) -> None:
        """As SIGTERM does."""
        self.app.stop.set()
        await self.task

    def writes(self) -> int:
        """Requests so far that could have changed something, Leases and Events left out."""
        found = 0.0
        for metric in self.app.metrics.registry.collect():
            for sample in metric.samples:
                reads = sample.labels.get("verb") in ("get", "list", "watch")
                if sample.name == "berth_api_requests_total" and not reads:
                    found += 0 if sample.labels["kind"] in ("Lease", "Event") else sample.value
        return int(found)

    async def kill(self) -> None:
        """As SIGKILL does, as far as the cluster can tell: nothing more is written."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Clock:
    """Time of day that a test can move forward, for what Berth only does after minutes."""

    ahead: float = 0.0
    """Seconds."""

    def __call__(self) -> float:
        return time.time() + self.ahead


async def start_berth(
    kubeconfig: Path,
    namespace: str,
    leaders: ScriptedLeaders | None = None,
    time_of_day: Callable[[], float] = time.time,
    metrics: ScriptedMetrics | None = None,
    **settings: object,
) -> RunningBerth:
    """An operator for one namespace that leads when this returns."""
    leaders = leaders or ScriptedLeaders()
    options: dict[str, object] = {
        "kubeconfig": str(kubeconfig),
        "namespace": namespace,
        "lease_namespace": namespace,
        "lease_duration": 60.0,
        "lease_renew_deadline": 50.0,
        "lease_retry": 0.2,
        "listen": f"127.0.0.1:{free_port()}",
        "canary_interval": 0.5,
    }
    metrics = metrics or ScriptedMetrics(clock=time_of_day)
    known = Settings(**{**options, **settings})  # type: ignore[arg-type]
    app = App(known, prober=leaders, source=metrics, time_of_day=time_of_day)
    task = asyncio.create_task(app.run())
    ready = asyncio.create_task(app.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    if not app.ready.is_set():
        ready.cancel()
        await task
        raise AssertionError("Berth ended before it led")
    return RunningBerth(app, task, leaders, metrics)


@asynccontextmanager
async def running_berth(
    kubeconfig: Path,
    namespace: str,
    leaders: ScriptedLeaders | None = None,
    time_of_day: Callable[[], float] = time.time,
    metrics: ScriptedMetrics | None = None,
    **settings: object,
) -> AsyncIterator[RunningBerth]:
    """Like `start_berth`, and stopped at the end; a Berth that ended in an error by itself fails the test."""
    berth = await start_berth(kubeconfig, namespace, leaders, time_of_day, metrics, **settings)
    try:
        yield berth
    finally:
        if not berth.task.done():
            berth.app.stop.set()
        if not berth.task.cancelled():
            await berth.task
