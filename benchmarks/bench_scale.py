"""Many deployments on a real control plane with simulated nodes: time, memory, requests, a quarter of the nodes lost.

    python -m benchmarks.bench_scale [--sizes 100,1000] [--record] [--beside]

Run from the repository root. Each LLMDeployment has one group of one GPU; nodes have 8 GPUs, a quarter of them spare.
Leaders' answers are scripted (simulated nodes have no containers), and the engine's metrics with them; everything else
is real: API server, etcd, scheduler, garbage collector, and Berth in a process of its own.

Times depend on the machine and are only told. Counts do not: `data/scale.json` keeps requests, writes and passes per
deployment, and memory; one that is more than 20 % above what was recorded, or that grows faster than the number of
deployments, fails the run. --record writes the file anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import scale_peer
from benchmarks.scale_cluster import OPERATOR_NAMESPACE, cpu_seconds, each, memory_mib, namespace_of, prepare, until
from berth.local.controlplane import ControlPlane
from berth.local.kwok import Kwok
from berth.local.processes import ChildProcess
from tests.support.berth import free_port
from tests.support.cluster import Cluster, eventually

RANGES = Path(__file__).parent / "data" / "scale.json"
TOLERANCE = 1.2
IDLE_SECONDS = 60
MINUTES = 4
"""After the last became Ready, within which there must be an idle one."""
READS = ("get", "list", "watch")


@dataclass(frozen=True)
class Figures:
    """Of one size. Only those in JUDGED are compared with what was recorded."""

    deployments: int
    nodes: int
    created_seconds: float
    ready_seconds: float
    """From the first create to the last Ready."""
    cpu_seconds: float
    memory_mib: float
    """When idle."""
    memory_peak_mib: float
    """To the end, the lost nodes included."""
    calls: dict[str, int]
    calls_per_deployment: float
    writes_per_deployment: float
    passes_per_deployment: float
    reconcile_p95_seconds: float
    idle_writes_per_minute: float
    idle_writes: dict[str, int]
    """By verb and kind."""
    lost_nodes: int
    lost_groups: int
    recovered_seconds: float
    writes_per_lost_group: float


JUDGED = (
    "calls_per_deployment",
    "writes_per_deployment",
    "passes_per_deployment",
    "memory_mib",
    "writes_per_lost_group",
)
GROWING = JUDGED[:3]
"""Must not grow with the number of deployments."""


class Page:
    """What the operator says about itself."""

    def __init__(self, text: str) -> None:
        self.calls_by_kind: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[str] = Counter()
        self.writes_by_kind: Counter[str] = Counter()
        self.passes = 0
        self._buckets: Counter[float] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "berth_api_requests_total":
                    verb, kind = sample.labels["verb"], sample.labels["kind"]
                    self.calls_by_kind[verb, kind] += int(sample.value)
                    self.calls[verb] += int(sample.value)
                    if verb not in READS and kind not in ("Lease", "Event"):
                        self.writes_by_kind[f"{verb} {kind}"] += int(sample.value)
                elif sample.name == "berth_reconcile_seconds_count":
                    self.passes += int(sample.value)
                elif sample.name == "berth_reconcile_seconds_bucket":
                    self._buckets[float(sample.labels["le"])] += int(sample.value)

    @property
    def writes(self) -> int:
        """Leases and Events left out."""
        return self.writes_by_kind.total()

    def reconcile_p95(self) -> float:
        """Upper edge of the bucket that holds it."""
        return next((edge for edge in sorted(self._buckets) if self._buckets[edge] >= 0.95 * self.passes), 0.0)


class Operator:
    """The process, and its page."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.silent = folder / "silent"
        self.silent.write_text("")
        self._address = f"127.0.0.1:{free_port()}"
        settings = {
            "BERTH_KUBECONFIG": str(kubeconfig),
            "BERTH_LEASE_NAMESPACE": OPERATOR_NAMESPACE,
            "BERTH_LISTEN": self._address,
        }
        command = [sys.executable, "-m", "benchmarks.stubbed_operator", str(self.silent)]
        self.process = ChildProcess(
            "berth",
            command,
            directory=Path.cwd(),
            log=folder / "operator.log",
            environment={**os.environ, **settings},
        )
        self.process.start()

    async def page(self, path: str = "/metrics") -> str:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self._address}{path}") as answer:
            assert answer.status == 200, path
            return await answer.text()

    async def ready(self) -> bool:
        try:
            return "berth_leader 1.0" in await self.page()
        except aiohttp.ClientError:
            return False


async def measure(deployments: int) -> Figures:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        async with ControlPlane(folder / "cluster", node_monitor_period=2, node_monitor_grace_period=40) as plane:
            kwok = Kwok(plane.kubeconfig, folder / "kwok")
            kwok.start()
            operator: Operator | None = None
            try:
                async with Cluster(plane.kubeconfig) as cluster:
                    nodes = await prepare(cluster, deployments)
                    operator = Operator(plane.kubeconfig, folder)
                    await eventually(operator.ready, timeout=60)
                    return await _run(cluster, operator, deployments, nodes)
            finally:
                if operator:
                    await operator.process.stop()
                await kwok.stop()


async def _run(cluster: Cluster, operator: Operator, deployments: int, nodes: Sequence[str]) -> Figures:
    before, cpu = Page(await operator.page()), cpu_seconds(operator.process.pid)
    began = time.monotonic()
    await each([_deployment(number) for number in range(deployments)], cluster.create)
    created = time.monotonic() - began
    await _all_ready(cluster, deployments)
    ready = time.monotonic() - began
    after = Page(await operator.page())
    cpu = cpu_seconds(operator.process.pid) - cpu
    print(f"{deployments} Ready after {ready:.0f} s, {cpu:.0f} s of CPU", file=sys.stderr, flush=True)

    quiet, idle = after, after
    for _ in range(MINUTES):  # the first metrics of each leader are still to be read, and told
        quiet = idle
        await asyncio.sleep(IDLE_SECONDS)
        idle = Page(await operator.page())
        if idle.writes == quiet.writes:
            break

    lost, memory = list(nodes[3::4]), memory_mib(operator.process.pid)
    hit = await _lose(cluster, operator, lost)
    fault = time.monotonic()
    await _all_elsewhere(cluster, deployments, set(lost))
    recovered = time.monotonic() - fault
    healed = Page(await operator.page())
    return Figures(
        deployments=deployments,
        nodes=len(nodes),
        created_seconds=round(created, 1),
        ready_seconds=round(ready, 1),
        cpu_seconds=round(cpu, 1),
        memory_mib=round(memory, 1),
        memory_peak_mib=round(memory_mib(operator.process.pid, "VmHWM"), 1),
        calls={verb: count - before.calls[verb] for verb, count in sorted(after.calls.items())},
        calls_per_deployment=round((after.calls.total() - before.calls.total()) / deployments, 2),
        writes_per_deployment=round((after.writes - before.writes) / deployments, 2),
        passes_per_deployment=round((after.passes - before.passes) / deployments, 2),
        reconcile_p95_seconds=after.reconcile_p95(),
        idle_writes_per_minute=round((idle.writes - quiet.writes) * 60 / IDLE_SECONDS, 2),
        idle_writes=dict(idle.writes_by_kind - quiet.writes_by_kind),
        lost_nodes=len(lost),
        lost_groups=hit,
        recovered_seconds=round(recovered, 1),
        writes_per_lost_group=round((healed.writes - idle.writes) / max(1, hit), 2),
    )


async def _lose(cluster: Cluster, operator: Operator, names: Sequence[str]) -> int:
    """Nodes fall silent, and so do the leaders on them; how many groups that are."""
    pods = [pod for pod in await cluster.list("pods") if pod["spec"].get("nodeName") in set(names)]
    partial = operator.silent.with_suffix(".new")
    partial.write_text("\n".join(pod["status"]["podIP"] for pod in pods))
    partial.replace(operator.silent)
    await each(names, cluster.kill_node)
    return len(pods)


async def _all_ready(cluster: Cluster, deployments: int) -> None:
    async def ready() -> bool:
        return sum(map(_is_ready, await cluster.list("llmdeployments"))) == deployments

    await until(deployments, ready)


async def _all_elsewhere(cluster: Cluster, deployments: int, lost: set[str]) -> None:
    async def elsewhere() -> bool:
        pods = await cluster.list("pods", labels="berth.dev/serving=true")
        return len([pod for pod in pods if pod["spec"]["nodeName"] not in lost]) == deployments

    await until(deployments, elsewhere)


def _is_ready(manifest: dict[str, Any]) -> bool:
    conditions = manifest.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _deployment(number: int) -> dict[str, Any]:
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "llama-3.1-8b"}}
    allocation = {"pool": "h100", "variant": "bf16", "tensorParallel": 1, "groups": 1}
    return {
        "apiVersion": "berth.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": f"d{number}", "namespace": namespace_of(number)},
        "spec": {
            "model": {
                "name": "llama-3.1-8b-instruct",
                "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
            },
            "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
            "engine": {"backend": "simulated"},
        },
    }


def complaints(measured: Sequence[Figures], recorded: dict[str, dict[str, float]]) -> list[str]:
    """What became worse than recorded, or grows with the number of deployments."""
    found = []
    for figures in measured:
        values = asdict(figures)
        for name, limit in recorded.get(str(figures.deployments), {}).items():
            if values[name] > TOLERANCE * limit:
                found.append(f"{figures.deployments} deployments: {name} is {values[name]}, recorded {limit}")
        if figures.idle_writes_per_minute:
            found.append(f"{figures.deployments} deployments: writes although nothing happens: {figures.idle_writes}")
    first, last = asdict(measured[0]), asdict(measured[-1])
    grown = [name for name in GROWING if last[name] > TOLERANCE * first[name]]
    return found + [f"{name} grows with the number of deployments: {first[name]}, {last[name]}" for name in grown]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100", help="numbers of deployments, separated by commas")
    parser.add_argument("--record", action="store_true", help="write what was measured as the new limits")
    parser.add_argument("--beside", action="store_true", help="as many LeaderWorkerSets, too")
    given = parser.parse_args(arguments)
    measured = []
    for size in map(int, given.sizes.split(",")):
        if given.beside:
            print(json.dumps(asdict(asyncio.run(scale_peer.measure(size))), indent=1), flush=True)
        measured.append(asyncio.run(measure(size)))
        print(json.dumps(asdict(measured[-1]), indent=1), flush=True)
    recorded = json.loads(RANGES.read_text()) if RANGES.is_file() else {}
    if given.record:
        recorded |= {str(one.deployments): {name: asdict(one)[name] for name in JUDGED} for one in measured}
        RANGES.write_text(json.dumps(recorded, indent=1) + "\n")
    found = complaints(measured, recorded)
    print("\n".join(["worse than it should be:", *found] if found else ["within the recorded limits"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
