"""What measuring a fleet costs: a thousand groups read every ten seconds over real sockets, on one event loop.

    python -m benchmarks.bench_measurement [--groups 1000] [--rounds 12] [--json OUT.json]

Pages are those of the launcher, as large as they get, from a server in a process of its own whose CPU is not counted;
every group answers requests between two readings. Besides reading: the accounts that passes and a scrape of /metrics
ask for, and memory after an hour of batches. CPU seconds of this process, since the clock on the wall shows the
neighbours; the goal is half a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import pickle
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from berth.core.measurement.packed import pack
from berth.core.measurement.report import report
from berth.core.measurement.samples import HISTOGRAMS, Objectives
from berth.core.measurement.windows import BATCH_SECONDS, SLOW_BATCHES, Batch
from berth.engine.engines.base import EngineState
from berth.engine.exposition import render
from berth.engine.meter import Meter
from berth.measurements import Measurements
from berth.serving.reader import Reader
from berth.serving.sources import Leader, Pages

INTERVAL = 10.0
REQUESTS = 54
"""Of each group between two readings: 5.4 per second."""
ADDRESS = "127.89.0.1"
PORT = 8003
OBJECTIVES = Objectives(first_token=1.5, per_token=0.05)


@dataclass(frozen=True)
class Key:
    namespace: str
    name: str


def serve(ready: Event, groups: int) -> None:
    """Each group is told the same page; every round of readings the next of a long row."""
    pages = list(rows())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        body = pages[min(served // groups, len(pages) - 1)]
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, ADDRESS, PORT, backlog=1024)
        ready.set()
        await server.serve_forever()

    served = 0
    asyncio.run(run())


def rows() -> Iterator[bytes]:
    """Pages of one leader, a reading apart."""
    now = 1000.0
    meter, engine = Meter(lambda: now), EngineState(running=7, waiting=1, kv_utilization=0.41)
    meter.set_objectives({"time_to_first_token": 1.5, "time_per_output_token": 0.05})
    for _ in range(SLOW_BATCHES * 6 + 60):
        yield render(meter.document(engine), serving=True, draining=False, now=now, wall=now).encode()
        for number in range(REQUESTS):
            ticket = meter.accept(canary=False)
            ticket.input_tokens, ticket.requested_tokens, ticket.scheduled = 300 + 97 * number % 4000, 1024, now
            now += 0.02 * (1 + number % 40)
            meter.tokens(ticket, 1)
            for _ in range(4):
                now += 0.002 * (1 + number % 9)
                meter.tokens(ticket, 40)
            meter.close(ticket)
        engine.steps += 400
        engine.step_seconds += 9.6
        engine.step_decodes += 400 * 7
        engine.step_context_tokens += 400 * 9000
        engine.step_prefill_tokens += REQUESTS * 1100


@contextmanager
def cpu(found: dict[str, Any], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    found[name] = round(time.process_time() - began, 3)


async def measure(groups: int, rounds: int) -> dict[str, Any]:
    now = 1_000_000_000.0
    pages = Pages(lambda: now)
    told: list[Any] = []
    reader = Reader(pages, told.append, lambda: now, INTERVAL, warm_up_seconds=0)
    keys = [Key("bench", f"d{number}") for number in range(groups)]
    for number, key in enumerate(keys):
        leader = Leader(
            f"u{number}", 0, ADDRESS, "bench", f"p{number}", f"g{number}", f"pool{number % 4}", "r", OBJECTIVES
        )
        reader.follow(key, [leader])
    empty = resident()
    await reader.round()
    found: dict[str, Any] = {"groups": groups}
    costs = []
    for _ in range(rounds):
        now += INTERVAL
        part: dict[str, Any] = {}
        with cpu(part, "seconds"):
            await reader.round()
        costs.append(part["seconds"])
    found["a round of readings, CPU s"] = round(sorted(costs)[len(costs) // 2], 2)
    samples = [reader.measured(key).deployment.fast.tally.requests for key in keys]
    assert min(samples) == REQUESTS * min(rounds, 36), "every reading was counted"
    hour(reader, keys)
    with cpu(found, "accounts of all for their status, after an hour, CPU s"):
        for key in keys:
            report(reader.measured(key), "r")
    with cpu(found, "the same again in the same minute, CPU s"):
        for key in keys:
            report(reader.measured(key), "r")
    with cpu(found, "who is fresh, CPU s"):
        assert all(reader.fresh(key) for key in keys)
    registry = CollectorRegistry()
    registry.register(Measurements(reader))
    with cpu(found, "a scrape of /metrics, CPU s"):
        text = generate_latest(registry)
    found["size of that scrape, MB"] = round(len(text) / 1e6, 2)
    found["memory of an hour, MiB"] = round((resident() - empty) / 2**20)
    await pages.close()
    per_round = found["a round of readings, CPU s"]
    per_minute = found["accounts of all for their status, after an hour, CPU s"]
    scrape = found["a scrape of /metrics, CPU s"]
    # Status once a minute, a scrape every half.
    found["cores, all together"] = round(per_round / INTERVAL + per_minute / 60 + scrape / 30, 2)
    return found


def hour(reader: Reader, keys: list[Key]) -> None:
    """Fills every series with an hour of batches, as their own first ones at earlier minutes."""
    for key in keys:
        for record in reader._records[key].values():
            known = list(record.series.batches())
            last = known[-1].index
            filled = [replace(known[0], index=last - age) for age in range(SLOW_BATCHES, len(known) - 1, -1)]
            over = [*(own(batch) for batch in filled), *known[:-1]]
            record.series._over.clear()
            record.series._over.extend(map(pack, over))
            record.series._known = None


def own(batch: Batch) -> Batch:
    """The batch with memory of its own, as one that was measured has; only edges are shared."""
    copy: Batch = pickle.loads(pickle.dumps(batch))
    shared = {
        name: replace(getattr(copy.tally, name), edges=getattr(batch.tally, name).edges)
        for name in HISTOGRAMS
        if getattr(batch.tally, name) is not None
    }
    return replace(copy, tally=replace(copy.tally, **shared))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    server = context.Process(target=serve, args=(ready, options.groups), daemon=True)
    server.start()
    try:
        assert ready.wait(60)
        found = asyncio.run(measure(options.groups, options.rounds))
    finally:
        server.terminate()
        server.join()
    page = next(rows())
    found = {"bytes of a page": len(page), "seconds between readings": INTERVAL, "batch, s": BATCH_SECONDS, **found}
    for name, value in found.items():
        print(f"{name:58} {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
