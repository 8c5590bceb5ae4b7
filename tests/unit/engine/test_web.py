"""The launcher's page over a real socket on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from berth.engine import web
from berth.engine.control import Control
from berth.engine.page import pages

HOST = "127.0.0.1"


class Source:
    """A launcher's face."""

    def __init__(self, control: Control) -> None:
        self.phase = "serving"
        self.control = control

    def describe(self) -> dict[str, Any]:
        return {"phase": self.phase, "draining": self.control.draining}

    def metrics(self) -> str:
        return "berth_serving 1\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(Control(tmp_path / "control.json"))


@pytest.fixture
async def port(source: Source) -> AsyncIterator[int]:
    server = await web.serve(pages(source), HOST, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(port: int, method: str, path: str, document: Any = None) -> tuple[int, str]:
    status, body = await web.ask(HOST, port, method, path, document, seconds=5)
    return status, body.decode()


@pytest.mark.parametrize(
    ("phase", "startup", "ready"),
    [
        ("joining", 503, 503),
        ("loading", 503, 503),
        ("warming", 503, 503),
        ("serving", 200, 200),
        ("draining", 200, 503),
        ("stopping", 200, 503),
    ],
)
async def test_probes_follow_the_phase(port: int, source: Source, phase: str, startup: int, ready: int) -> None:
    source.phase = phase
    assert await ask(port, "GET", "/startupz") == (startup, phase + "\n")
    assert await ask(port, "GET", "/readyz") == (ready, phase + "\n")
    assert await ask(port, "GET", "/livez") == (200, "ok\n")


async def test_drain_and_back(port: int, source: Source) -> None:
    status, body = await ask(port, "POST", "/drain?grace=2.5")
    assert (status, json.loads(body)["draining"]) == (202, True)
    status, body = await ask(port, "DELETE", "/drain")
    assert (status, json.loads(body)["draining"]) == (200, False)


async def test_objectives_are_taken_or_refused(port: int, source: Source) -> None:
    assert (await ask(port, "PUT", "/objectives", {"time_to_first_token": 1.5}))[0] == 200
    assert source.control.objectives == {"time_to_first_token": 1.5}
    for document, words in (
        ([], "give an object"),
        ({"ttft": 1}, "give an object"),
        ({"time_to_first_token": 0}, "is 0: give seconds"),
    ):
        status, body = await ask(port, "PUT", "/objectives", document)
        assert (status, words in body) == (400, True)
    assert source.control.objectives == {"time_to_first_token": 1.5}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/state", 405),
        ("GET", "/drain", 405),
        ("POST", "/drain?grace=soon", 400),
        ("POST", "/drain?grace=-1", 400),
    ],
)
async def test_what_is_not_offered_is_refused(port: int, source: Source, method: str, path: str, status: int) -> None:
    assert (await ask(port, method, path))[0] == status
    assert not source.control.draining


async def test_no_bytes_bring_it_down(port: int) -> None:
    for nonsense in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"x" * 10_000,
        b"PUT /drain HTTP/1.1\r\nContent-Length: 999999\r\n\r\n",
        b"",
    ):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(nonsense)
        writer.write_eof()
        answer = await reader.read()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        writer.close()
        await writer.wait_closed()
    assert (await ask(port, "GET", "/livez"))[0] == 200


async def test_idle_connections_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    held = [await asyncio.open_connection(HOST, port) for _ in range(web.MAX_CONNECTIONS)]
    await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(HOST, port)
    assert await reader.read() == b""
    for each, its_writer in held:
        await each.read()
        its_writer.close()
    writer.close()
    assert (await ask(port, "GET", "/livez"))[0] == 200
