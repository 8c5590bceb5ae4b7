"""As much HTTP/1.1 as the launcher needs: one request per connection, small, bounded in time, on asyncio streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

MAX_CONNECTIONS: Final = 32
MAX_HEAD: Final = 4096
MAX_BODY: Final = 4096
TIMEOUT: Final = 5.0
_WORDS: Final = {200: "OK", 202: "Accepted", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: str
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, status: int, document: dict[str, Any]) -> Response:
        return cls(status, json.dumps(document) + "\n", "application/json")


Handler = Callable[[Request], Awaitable[Response]]


class BadRequest(ValueError):
    """The request makes no sense; the message is the answer."""


async def serve(handler: Handler, host: str | None, port: int) -> asyncio.Server:
    """Listens; beyond MAX_CONNECTIONS new connections are closed unanswered. Raises OSError if the port is taken."""
    open_connections = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            if open_connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(TIMEOUT):
                    await _answer(handler, reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            open_connections -= 1
            writer.close()

    return await asyncio.start_server(connected, host, port, limit=MAX_HEAD)


async def _answer(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        response = await handler(await _read(reader))
    except BadRequest as error:
        response = Response(400, f"{error}\n")
    body = response.body.encode()
    head = (
        f"HTTP/1.1 {response.status} {_WORDS.get(response.status, 'Service Unavailable')}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *fields = head.split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3:
        raise BadRequest("no HTTP request")
    length = 0
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isdecimal():
            length = int(value)
    if length > MAX_BODY:
        raise BadRequest(f"body of {length} bytes: at most {MAX_BODY}")
    target = urlsplit(parts[1])
    return Request(parts[0], target.path, dict(parse_qsl(target.query)), await reader.readexactly(length))


async def ask(
    host: str, port: int, method: str, path: str, document: Any = None, *, seconds: float
) -> tuple[int, bytes]:
    """One request to a neighbour. Returns (status, body). Raises OSError or TimeoutError."""
    body = b"" if document is None else json.dumps(document).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await reader.read(1 << 20)
            while chunk := await reader.read(1 << 20):
                answer += chunk
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    status, _, rest = answer.partition(b"\r\n")
    words = status.split()
    if len(words) < 2 or not words[1].isdigit():
        raise OSError(f"{host}:{port} gave no HTTP answer")
    return int(words[1]), rest.partition(b"\r\n\r\n")[2]
