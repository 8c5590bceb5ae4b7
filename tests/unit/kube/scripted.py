"""A loopback server that answers by script: only for what a real API server cannot be made to do on demand."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


Step = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Step:
    """A whole answer; the body is JSON unless it is already text."""

    async def step(writer: asyncio.StreamWriter) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        lines = [
            f"HTTP/1.1 {status} x",
            f"Content-Length: {len(data)}",
            *(f"{k}: {v}" for k, v in (headers or {}).items()),
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    return step


def refusal(
    status: int, reason: str = "", message: str = "no", headers: dict[str, str] | None = None, **more: Any
) -> Step:
    return answer(status, {"kind": "Status", "reason": reason, "message": message, **more}, headers)


def listing(*items: dict[str, Any], version: str = "10", token: str = "") -> Step:
    return answer(200, {"metadata": {"resourceVersion": version, "continue": token}, "items": list(items)})


def stream(*parts: Any, end: str = "clean") -> Step:
    """A watch: dictionaries become lines, text goes out as it is. `end`: clean, reset, hang or cut (inside a chunk)."""

    async def step(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            data = (part if isinstance(part, str) else json.dumps(part) + "\n").encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        if end == "clean":
            writer.write(b"0\r\n\r\n")
        elif end == "cut":
            writer.write(b'ff\r\n{"type"')
            await writer.drain()
            writer.close()
        elif end == "reset":
            await writer.drain()
            await reset(writer)
        else:
            await hang(writer)

    return step


async def hang(writer: asyncio.StreamWriter) -> None:
    """Says nothing more and keeps the connection: what a half-open link looks like from this side."""
    await asyncio.Event().wait()


async def reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of an end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@dataclass
class ScriptedServer:
    """Answers the requests it gets with `script`, step by step; once that is used up, with `then`."""

    url: str = ""
    script: list[Step] = field(default_factory=list)
    then: Step = hang
    requests: list[Request] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split()
                headers: dict[str, str] = {}
                while header := (await reader.readline()).decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                url = urlsplit(target)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                self.requests.append(Request(method, url.path, query, headers, json.loads(body) if body else None))
                await (self.script.pop(0) if self.script else self.then)(writer)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()


def obj(name: str, version: int = 1, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "prod",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            **metadata,
        },
    }
