"""HTTP servers on loopback addresses of their own, with a leader's ports, that behave or do not."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from berth.serving.sources import Leader

PAGE = """\
berth_client_requests_total {requests}
berth_client_tokens_total {tokens}
trtllm_num_requests_running 2
trtllm_num_requests_waiting 1
trtllm_time_to_first_token_seconds_bucket{{le="0.5"}} {quick}
trtllm_time_to_first_token_seconds_bucket{{le="{edge}"}} {requests}
trtllm_time_to_first_token_seconds_bucket{{le="+Inf"}} {requests}
trtllm_time_to_first_token_seconds_sum {requests}
trtllm_time_to_first_token_seconds_count {requests}
"""
_numbers = itertools.count(os.getpid() % 200 * 250 + 10)


def free_address() -> str:
    """A loopback address that no other test of this process uses."""
    number = next(_numbers)
    return f"127.87.{number // 250 % 250}.{number % 250 + 1}"


def page(requests: int, quick: int | None = None, edge: float = 1.5) -> str:
    return PAGE.format(requests=requests, tokens=20 * requests, quick=requests if quick is None else quick, edge=edge)


@dataclass
class Request:
    method: str
    path: str
    body: bytes


@dataclass
class Server:
    """Answers every request with what `answer` says: bytes as they go over the wire."""

    address: str
    answer: Callable[[Request], Awaitable[bytes] | bytes]
    requests: list[Request] = field(default_factory=list)
    open: int = 0  # requests being answered
    most_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            size = next(
                (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
            )
            method, path, _ = head.split(" ", 2)
            request = Request(method, path, await reader.readexactly(size))
            self.requests.append(request)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                answer = self.answer(request)
                answer = answer if isinstance(answer, bytes) else await answer
            finally:  # before the client can know, which may ask again at once
                self.open -= 1
            writer.write(answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def http(body: str | bytes, status: str = "200 OK", headers: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


@asynccontextmanager
async def server(
    answer: Callable[[Request], Awaitable[bytes] | bytes], port: int = 8003, address: str = ""
) -> AsyncIterator[Server]:
    found = Server(address or free_address(), answer)
    listening = await asyncio.start_server(found.serve, found.address, port)
    try:
        yield found
    finally:
        listening.close()


def leader(address: str, number: int = 0, **fields: object) -> Leader:
    known = {"uid": f"u{number}", "restarts": 0, "namespace": "ns", "pod": f"p{number}", "group": f"g{number}"}
    return Leader(**{**known, "pool": "h100", "revision": "r", "address": address, **fields})  # type: ignore[arg-type]
