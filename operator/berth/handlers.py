"""All there is of kopf: it watches what users write and wakes the key; it never writes.

No finalizers, no annotations, no peering, no posting, no retries of its own: the queue does the work, the Lease decides
who works. What kopf would write if it wrote anything is named after Berth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from berth import labels
from berth.controller.world import Key, deployment_key

MAX_BACKOFF_SECONDS = 30.0


class Backoffs:
    """Endless, jittered delays between attempts of kopf to reach the API server."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            delay = min(2 * delay, MAX_BACKOFF_SECONDS)


def build_registry(wake: Callable[[Key], None], connection: Callable[[], kopf.ConnectionInfo]) -> kopf.OperatorRegistry:
    """Handlers that wake a deployment's key at each of its watch events."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection()

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.posting.enabled = False
        settings.watching.server_timeout = 290
        settings.watching.connect_timeout = 10
        settings.networking.connect_timeout = 5
        settings.networking.request_timeout = 30
        settings.networking.error_backoffs = Backoffs()
        settings.persistence.finalizer = f"{labels.GROUP}/finalizer"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=labels.GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=labels.GROUP)

    @kopf.on.event(labels.GROUP, labels.VERSION, "llmdeployments", registry=registry)
    async def changed(namespace: str | None, name: str | None, **_: Any) -> None:
        if namespace and name:
            wake(deployment_key(namespace, name))

    return registry
