"""Measurements that come from a Prometheus, a real one, which scrapes the leaders: `settings.prometheus`."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from berth.local.processes import ChildProcess
from berth.serving.sources import Prometheus
from tests.integration.controller.conftest import Site
from tests.support.berth import ScriptedMetrics, free_port, running_berth
from tests.support.cluster import eventually
from tests.unit.serving.pages import Request, http, page, server

LOOKBACK = 10.0
GROWTH = 7
"""Requests between two scrapes."""


@asynccontextmanager
async def scraping(targets: dict[str, str], namespace: str, port: int, folder: Path) -> AsyncIterator[None]:
    """A Prometheus that scrapes these addresses, by pod, every second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus in PATH: it is in Debian's package prometheus")
    job = {
        "job_name": "leaders",
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "static_configs": [
            {"targets": [address], "labels": {"namespace": namespace, "pod": pod}} for pod, address in targets.items()
        ],
    }
    configuration = folder / "prometheus.yaml"
    configuration.write_text(json.dumps({"scrape_configs": [job]}))
    arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    arguments += [f"--web.listen-address=127.0.0.1:{port}"]
    process = ChildProcess("prometheus", [program, *arguments], directory=folder, log=folder / "prometheus.log")
    process.start()
    try:
        yield
    finally:
        await process.stop(grace=5)


async def test_a_prometheus_that_scrapes_the_leaders_is_read_instead_of_them(
    site: Site, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    port, leaders = free_port(), ScriptedMetrics()
    source = Prometheus(f"http://127.0.0.1:{port}", leaders, LOOKBACK)  # type: ignore[arg-type]
    scrapes = 0

    def leader(request: Request) -> bytes:
        nonlocal scrapes
        scrapes += 1
        return http(page(GROWTH * scrapes), headers="Content-Type: text/plain; version=0.0.4\r\n")

    async def says(status: str, words: str) -> bool:
        condition = await site.condition("MetricsAvailable")
        assert condition["status"] == status, condition
        assert words in condition["message"], condition
        return True

    quick: dict[str, object] = {"metrics_interval": 0.5, "metrics_warm_up": 0.0}
    async with running_berth(operator_kubeconfig, site.namespace, metrics=source, **quick):  # type: ignore[arg-type]
        objectives = {"timeToFirstToken": {"p95": "1500ms"}}
        await site.create(site.deployment(await site.pool(), groups=1), objectives=objectives)
        await site.settled()
        (pod,) = await site.serving()
        await eventually(lambda: says("False", "Prometheus cannot be read"))
        async with server(leader) as one, scraping({pod: f"{one.address}:8003"}, site.namespace, port, tmp_path):
            await site.until("MetricsAvailable")
            await site.until("ObjectivesMet")
            status = (await site.get())["status"]
            assert status["summary"]["ttftP95"] not in ("-", ""), status
        assert leaders.readings == 0, "their own pages are not read"
