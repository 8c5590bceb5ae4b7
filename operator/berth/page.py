"""The operator's small HTTP page: /metrics for Prometheus, /healthz and /readyz for the kubelet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from aiohttp import web

from berth.metrics import CONTENT_TYPE, Metrics


async def serve_page(
    stack: AsyncExitStack,
    address: tuple[str, int],
    metrics: Metrics,
    why_not_healthy: Callable[[], str],
    why_not_ready: Callable[[], str],
) -> None:
    """Serve until `stack` closes. The two callables give the reason, empty while all is well."""

    async def expose(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(metrics.render)  # thousands of deployments take a while: not on the event loop
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    def probe(why_not: Callable[[], str]) -> Callable[[web.Request], web.Response]:
        async def answer(_: web.Request) -> web.Response:
            reason = why_not()
            return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

        return answer  # type: ignore[return-value]

    application = web.Application(client_max_size=4096)
    application.router.add_get("/metrics", expose)
    application.router.add_get("/healthz", probe(why_not_healthy))  # type: ignore[arg-type]
    application.router.add_get("/readyz", probe(why_not_ready))  # type: ignore[arg-type]
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, port = address
    await web.TCPSite(runner, host or None, port).start()
