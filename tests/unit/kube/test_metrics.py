from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from berth import metrics as page
from berth.metrics import Answer, Metrics, serve


def broken() -> Answer:
    raise RuntimeError("boom")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    metrics = Metrics()
    metrics.leading(True)
    routes = {"/metrics": metrics.page, "/healthz": lambda: Answer(b"stuck", 503), "/broken": broken}
    server = await serve(routes, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(port: int, request: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode()


async def test_metrics_are_shown_in_the_exposition_format(port: int) -> None:
    answer = await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in answer
    assert "\nberth_leader 1.0\n" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", "503 Service Unavailable"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /broken HTTP/1.1\r\n\r\n", "500 Internal Server Error"),
    ],
)
async def test_everything_else_has_its_status(port: int, request_: bytes, status: str) -> None:
    assert (await ask(port, request_)).startswith(f"HTTP/1.1 {status}\r\n")


async def test_oversized_and_unfinished_requests_are_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "REQUEST_SECONDS", 0.05)
    assert await ask(port, b"GET /metrics HTTP/1.1\r\n") == ""
    assert await ask(port, b"GET /" + b"x" * 20_000) == ""
    assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200")


def test_two_applications_in_one_process_do_not_share_figures() -> None:
    first, second = Metrics(), Metrics()
    first.queue_depth(3)
    assert b"berth_queue_depth 3.0" in first.render()
    assert b"berth_queue_depth 0.0" in second.render()
