"""The whole operator in a process of its own, with leaders that answer at once: simulated nodes run no containers.

python -m benchmarks.stubbed_operator [SILENT]      (settings from BERTH_*, as `berth operator run`)

Addresses in the file SILENT, separated by white space, are heard of no more: they were on nodes that are lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from berth.app import App
from berth.serving.prober import Progress
from berth.settings import Settings
from tests.support.berth import ScriptedLeaders, ScriptedMetrics


class Leaders(ScriptedLeaders):
    """Everybody answers who is not in the file; it is replaced as a whole."""

    def __init__(self, silent: Path) -> None:
        super().__init__()
        self._silent = silent
        self._read: int | None = None

    async def token(self, address: str) -> None:
        self._look()
        await super().token(address)

    async def progress(self, address: str) -> Progress:
        self._look()
        return await super().progress(address)

    def _look(self) -> None:
        version = self._silent.stat().st_mtime_ns
        if version != self._read:
            self._read = version
            self.unreachable = set(self._silent.read_text().split())


async def main() -> None:
    leaders = Leaders(Path(sys.argv[1])) if len(sys.argv) > 1 else ScriptedLeaders()
    app = App(Settings.from_environment(os.environ), prober=leaders, source=ScriptedMetrics())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, app.stop.set)
    await app.run()


if __name__ == "__main__":
    asyncio.run(main())
