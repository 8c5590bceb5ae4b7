"""Talking to a running local cluster: one JSON request and one JSON answer per connection on a Unix socket.

The socket lies in the cluster's folder, which only its user may enter. Its path is given to the kernel through
/proc/self/fd, because Unix sockets have no room for long paths.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from berth.errors import BerthError

SOCKET: Final = "control.sock"
KEEP: Final = b"k"
"""What a starter writes to the supervisor's standard input, so that the cluster outlives it."""
ANSWER_SECONDS: Final = 30.0

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class NotRunning(BerthError):
    """Nobody answers for this cluster."""


class Refused(BerthError):
    """The cluster is running and says why it does not do this."""


@asynccontextmanager
async def serve(folder: Path, handle: Handler) -> AsyncIterator[None]:
    """Answers requests; BerthError and ValueError of `handle` become refusals in words."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = {"result": await handle(json.loads(await reader.readline()))}
        except (BerthError, ValueError) as error:
            reply = {"refusal": str(error)}
        writer.write(json.dumps(reply).encode() + b"\n")
        writer.close()

    (folder / SOCKET).unlink(missing_ok=True)
    with _short(folder) as path:
        server = await asyncio.start_unix_server(answer, path)
        try:
            yield
        finally:
            server.close()


def ask(folder: Path, request: dict[str, Any]) -> Any:
    """The answer of the cluster in `folder`. Raises NotRunning or Refused."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            with _short(folder) as path:
                connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            reply = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
        except (OSError, ValueError) as error:
            raise NotRunning(f"no local cluster answers in {folder}: berth local up") from error
    if "refusal" in reply:
        raise Refused(reply["refusal"])
    return reply["result"]


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)
