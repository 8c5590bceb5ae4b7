"""What watching over many groups costs, in CPU time of the operator's process: pages of leaders, and one look at all.

    python -m benchmarks.bench_detection [--groups 1000] [--seconds 20]

Pages are read over real TCP from one small server on loopback that answers as a launcher does (its own CPU time is not
counted); objects are as the API server sends them, each node with one pod. The goal is half a core for 1,000 groups.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from berth import labels
from berth.controller.nodewatch import Limits, NodeWatch
from berth.core.faults import DEFAULT_CONDITIONS, DEFAULT_TAINTS, FaultRules
from berth.core.observed import Ask
from berth.engine import contract
from berth.kube.kinds import LEASE, Object
from berth.kube.reflector import Store
from berth.serving.monitor import Monitor, Question
from berth.serving.prober import Progress, TritonProber

GOAL = 0.5
"""Cores."""
HOST = "127.99.0.1"


def serve(ready: Connection) -> None:
    """A page that shows progress, in a process of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # its asker has given up, as all do at the end
            writer.close()
            return
        steps = int(time.monotonic() * 50)
        state = {"phase": "serving", "in_flight": 7, "steps": steps, "tokens": 7 * steps, "note": "x" * 400}
        body = json.dumps(state).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, HOST, contract.PORT_PAGE, backlog=1024)
        ready.send(True)
        await server.serve_forever()

    asyncio.run(run())


class CountingProber(TritonProber):
    """Counts the pages it read: a machine that is busy with other things reads fewer than are due."""

    pages = 0

    async def progress(self, address: str) -> Progress:
        found = await super().progress(address)
        self.pages += 1
        return found


async def pages(groups: int, seconds: float, interval: float) -> tuple[float, float]:
    """(CPU seconds per page, pages per second)."""
    prober = CountingProber()
    monitor = Monitor(prober, lambda _key: None, time.time, interval)
    for number in range(groups):
        asked = Question(f"uid-{number}", 0, HOST, Ask.PROGRESS)
        monitor.ask(number, frozenset({asked}), frozenset({asked.uid}))
    await asyncio.sleep(interval)
    cpu, wall, before = time.process_time(), time.monotonic(), prober.pages
    await asyncio.sleep(seconds)
    read = prober.pages - before
    each, rate = (time.process_time() - cpu) / max(1, read), read / (time.monotonic() - wall)
    await monitor.close()
    await prober.close()
    return each, rate


class _Listing(NamedTuple):
    items: list[Object]
    resource_version: str


class _Client:
    """Parses the Leases anew each time, as a list does."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._count = 0

    async def list(self, kind: Any, *_: Any, **__: Any) -> _Listing:
        assert kind is LEASE
        self._count += 1
        fields: dict[str, Any] = {"f:spec": {"f:holderIdentity": {}, "f:leaseDurationSeconds": {}, "f:renewTime": {}}}
        managed = [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields, "time": "2026-01-01T00:00:00Z"}]
        text = json.dumps(
            [
                {
                    "metadata": {"name": f"node-{number}", "uid": str(number), "managedFields": managed},
                    "spec": {"leaseDurationSeconds": 40, "renewTime": f"{self._count // 5}"},
                }
                for number in range(self._nodes)
            ]
        )
        start = time.process_time()
        items = json.loads(text)
        self.parsing = time.process_time() - start
        return _Listing(items, "1")


class _Copy:
    def __init__(self, objects: list[Object]) -> None:
        self.store = Store()
        for each in objects:
            metadata = each["metadata"]
            self.store.put((metadata.get("namespace", ""), metadata["name"]), each)


class _World:
    def __init__(self, groups: int) -> None:
        gpus = {"nvidia.com/gpu": "8", "cpu": "192", "memory": "2Ti"}
        mine = {"pool": "h100"}
        self.nodes = _Copy(
            [
                {
                    "metadata": {
                        "name": f"node-{n}",
                        "uid": f"n{n}",
                        "resourceVersion": "1",
                        "labels": mine,
                    },
                    "spec": {},
                    "status": {
                        "capacity": gpus,
                        "allocatable": gpus,
                        "conditions": [{"type": "Ready", "status": "True"}],
                    },
                }
                for n in range(groups)
            ]
        )
        health = [{"resourceID": f"GPU-{n}", "health": "Healthy"} for n in range(8)]
        container = {"name": "triton", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
        self.pods = _Copy(
            [
                {
                    "metadata": {
                        "name": f"pod-{n}",
                        "namespace": "default",
                        "uid": f"uid-{n}",
                        "resourceVersion": "1",
                        "labels": {labels.POOL: "h100"},
                    },
                    "spec": {"nodeName": f"node-{n}", "containers": [container]},
                    "status": {
                        "phase": "Running",
                        "containerStatuses": [
                            {"allocatedResourcesStatus": [{"name": "nvidia.com/gpu", "resources": health}]}
                        ],
                    },
                }
                for n in range(groups)
            ]
        )
        self.groups = _Copy([])
        spec = {"gpu": "H100-SXM-80", "nodeSelector": {"pool": "h100"}, "resourceName": "nvidia.com/gpu"}
        pool = {"apiVersion": labels.API_VERSION, "kind": "GPUPool", "metadata": {"name": "h100", "uid": "p"}}
        self.pools = _Copy([{**pool, "spec": {**spec, "gpusPerNode": 8}}])


async def looks(groups: int, rounds: int = 20) -> tuple[float, float]:
    """Seconds of CPU: (one look without Leases, one list of Leases parsed and compared)."""
    world: Any = _World(groups)
    client: Any = _Client(groups)
    now = [0.0]
    rules = FaultRules.parse(DEFAULT_CONDITIONS, DEFAULT_TAINTS)
    limits = Limits(12, 20, 3, 300)
    watch = NodeWatch(client, world, dict, lambda _key: None, lambda: now[0], time.time, rules, limits)
    plain, leases = [], []
    for number in range(rounds):
        now[0] += 1.0
        start = time.process_time()
        await watch.look()
        spent = time.process_time() - start
        if number % 2:
            plain.append(spent)
        else:
            leases.append(client.parsing)
    return sum(plain[1:]) / len(plain[1:]), sum(leases) / len(leases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--interval", type=float, default=5.0)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    ours.recv()
    try:
        each, rate = asyncio.run(pages(arguments.groups, arguments.seconds, arguments.interval))
    finally:
        server.kill()
    look, leases = asyncio.run(looks(arguments.groups))
    due = arguments.groups / arguments.interval
    cores = each * due
    total = cores + look + leases / 2
    print(f"{arguments.groups} groups, each leader's page every {arguments.interval:g} s, on {os.cpu_count()} cores")
    print(f"  pages              {cores:.3f} cores ({due:.0f}/s due x {1000 * each:.2f} ms; {rate:.0f}/s were read)")
    print(f"  one look a second  {look:.3f} cores")
    print(f"  Leases             {leases / 2:.3f} cores (a list every other second)")
    print(f"  together           {total:.3f} cores, goal {GOAL:g}")
    print(json.dumps({"groups": arguments.groups, "pages": cores, "look": look, "leases": leases / 2, "total": total}))
    if total > GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
