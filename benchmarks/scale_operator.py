"""Berth as a process of its own whose leaders answer by script: nobody dials the addresses of simulated pods.

    python -m benchmarks.scale_operator KUBECONFIG NAMESPACE LISTEN SILENT_FILE

Addresses in SILENT_FILE, one a line, are heard of no more. Everything but these answers is the real program.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from berth.app import App
from berth.errors import Transient
from berth.serving.prober import Progress
from berth.settings import Settings
from tests.support.berth import ScriptedLeaders, ScriptedMetrics


class Leaders(ScriptedLeaders):
    """Everybody answers who is not in the file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._read = -1.0

    async def token(self, address: str) -> None:
        self._look(address)
        await super().token(address)

    async def progress(self, address: str) -> Progress:
        self._look(address)
        return await super().progress(address)

    def _look(self, address: str) -> None:
        changed = self._path.stat().st_mtime
        if changed != self._read:
            self._read = changed
            self.unreachable = set(self._path.read_text().split())
        if address in self.unreachable:
            raise Transient(f"{address} is on a node that was lost")


def main(kubeconfig: str, namespace: str, listen: str, silent: str) -> None:
    settings = Settings(
        kubeconfig=kubeconfig,
        lease_namespace=namespace,
        namespace=namespace,
        listen=listen,
        api_rate=1000.0,
        api_burst=2000,
    )
    asyncio.run(App(settings, prober=Leaders(Path(silent)), source=ScriptedMetrics()).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
