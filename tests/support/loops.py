"""Event loops that end tidily."""

from __future__ import annotations

import asyncio
import time


async def connections_closed() -> None:
    """asyncio says goodbye on a TLS connection in the background, after the client's close() has returned.

    A loop that closes meanwhile leaves the socket to the garbage collector, and its warning fails some later test.
    What is really left open still does.
    """
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(
        each.get_extra_info("socket").fileno() >= 0 for each in list(transports.values())
    ):
        await asyncio.sleep(0.01)
