"""All there is of kopf: it watches what users write and tells it; it never writes.

It runs in a thread with an event loop of its own: at its end it cancels every task that began after it did, which must
not be ours. No finalizers, no annotations, no peering, no posting, no retries of its own: the queue does the work, the
Lease decides who works. What kopf would write if it wrote anything is named after Berth.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Protocol

import kopf

from berth import labels
from berth.kube.kinds import Object

MAX_BACKOFF_SECONDS = 30.0
CLOSING_SECONDS = 0.25
"""TLS connections close in the background; aiohttp asks for this time before their event loop does."""


class Backoffs:
    """Endless, jittered delays between attempts of kopf to reach the API server."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            delay = min(2 * delay, MAX_BACKOFF_SECONDS)


class Tell(Protocol):
    """Gets an LLMDeployment as a watch event shows it, not to be changed; `gone` if that is how it was last."""

    def __call__(self, deployment: Object, *, gone: bool) -> object: ...


async def watch_deployments(
    tell: Tell, connection: Callable[[], Awaitable[kopf.ConnectionInfo]], namespace: str
) -> None:
    """Tell each LLMDeployment that changes (in all namespaces if `namespace` is empty), until cancelled."""
    loop = asyncio.get_running_loop()

    def told(deployment: Object, *, gone: bool) -> None:
        loop.call_soon_threadsafe(partial(tell, deployment, gone=gone))

    registry = build_registry(told, connection)
    stop = threading.Event()

    async def watch() -> None:
        scope = {"namespaces": (namespace,)} if namespace else {"clusterwide": True}
        # kopf would make up an identity from the user's name, which a container's user does not have.
        name: Any = "berth"
        await kopf.operator(registry=registry, standalone=True, identity=name, stop_flag=stop, **scope)
        await asyncio.sleep(CLOSING_SECONDS)

    running = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(watch())))
    try:
        await asyncio.shield(running)
    finally:
        stop.set()
        await running


def build_registry(tell: Tell, connection: Callable[[], Awaitable[kopf.ConnectionInfo]]) -> kopf.OperatorRegistry:
    """Handlers that tell a deployment at each of its watch events."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.posting.enabled = False
        settings.queueing.idle_timeout = 0.5  # a task per deployment lingers for so long after its last event
        settings.watching.server_timeout = 290
        settings.watching.connect_timeout = 10
        settings.networking.connect_timeout = 5
        settings.networking.request_timeout = 30
        settings.networking.error_backoffs = Backoffs()
        settings.persistence.finalizer = f"{labels.GROUP}/finalizer"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=labels.GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=labels.GROUP)

    @kopf.on.event(labels.GROUP, labels.VERSION, "llmdeployments", registry=registry)
    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        tell(dict(event["object"]), gone=event["type"] == "DELETED")

    return registry
