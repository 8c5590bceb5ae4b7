"""The whole operator in a process of its own, with leaders that answer at once: simulated nodes run no containers.

python -m benchmarks.stubbed_operator      (settings from BERTH_*, as `berth operator run`)
"""

from __future__ import annotations

import asyncio
import os
import signal

from berth.app import App
from berth.settings import Settings
from tests.support.berth import ScriptedLeaders, ScriptedMetrics


async def main() -> None:
    app = App(Settings.from_environment(os.environ), prober=ScriptedLeaders(), source=ScriptedMetrics())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, app.stop.set)
    await app.run()


if __name__ == "__main__":
    asyncio.run(main())
