"""The real `kubectl`: commands that end, and `kubectl drain`, started and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from berth.local import binaries
from tests.support.cluster import PATIENCE


async def _start(kubeconfig: Path, *arguments: str) -> asyncio.subprocess.Process:
    program = await asyncio.to_thread(binaries.provide, ["kubectl"])
    return await asyncio.create_subprocess_exec(
        *(program["kubectl"], "--kubeconfig", kubeconfig, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def kubectl(kubeconfig: Path, *arguments: str) -> str:
    """What a command says; it must succeed."""
    process = await _start(kubeconfig, *arguments)
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


class Drain:
    """One `kubectl drain`; give it arguments and await `ended`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._output = asyncio.create_task(process.communicate())

    @property
    def running(self) -> bool:
        return not self._output.done()

    async def ended(self, timeout: float = PATIENCE) -> str:
        """Everything it said; it must have succeeded."""
        out, _ = await asyncio.wait_for(asyncio.shield(self._output), timeout)
        assert self._process.returncode == 0, out.decode()
        return out.decode()

    async def said(self, words: str) -> None:
        """It ended, with an error in these words."""
        out, _ = await asyncio.wait_for(asyncio.shield(self._output), 60)
        assert self._process.returncode != 0
        assert words in out.decode(), out.decode()

    async def stop(self) -> None:
        if self.running:
            self._process.kill()
        await self._output


@asynccontextmanager
async def draining(kubeconfig: Path, node: str) -> AsyncIterator[Drain]:
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    process = await _start(kubeconfig, "drain", node, *options)
    drain = Drain(process)
    try:
        yield drain
    finally:
        await drain.stop()
