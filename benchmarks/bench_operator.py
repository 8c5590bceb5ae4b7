"""The operator process: import time, memory with no and with many deployments, how long a takeover takes.

    python -m benchmarks.bench_operator [--deployments N] [--takeovers N]

Run from the repository root. A real control plane, simulated nodes; the operator is the whole program in a process of
its own, with default settings, but that leaders answer a stub (simulated nodes run no Triton). Memory is the resident
set as the kernel counts it. A takeover is the time from the signal to the first write of the other process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from berth.local import binaries
from berth.local.controlplane import PROGRAMS, ControlPlane
from berth.local.kwok import Kwok, gpu_node
from tests.support.berth import free_port
from tests.support.cluster import Cluster, eventually
from tests.support.manifests import fixed_deployment

NAMESPACE = "bench"
GPUS = 8
POOL = "h100"
IMPORT = "import time; t = time.perf_counter(); import berth.app; print(time.perf_counter() - t)"


def import_seconds() -> float:
    """Of everything the operator needs, in a fresh interpreter with compiled files."""
    return min(float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(5))


def resident_mib(process: int) -> float:
    """Resident set of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {process} is gone")


class Bench:
    """One control plane; operators come and go."""

    def __init__(self, plane: ControlPlane, cluster: Cluster, folder: Path) -> None:
        self.plane, self.cluster, self.folder = plane, cluster, folder
        self.running: list[asyncio.subprocess.Process] = []

    async def operator(self, name: str) -> asyncio.subprocess.Process:
        environment = {
            "BERTH_KUBECONFIG": str(self.plane.kubeconfig),
            "BERTH_NAMESPACE": NAMESPACE,
            "BERTH_LEASE_NAMESPACE": NAMESPACE,
            "BERTH_LISTEN": f"127.0.0.1:{free_port()}",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.stubbed_operator"),
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    async def holder(self) -> str:
        found = await self.cluster.find("leases", "berth-operator", NAMESPACE)
        return str((found or {}).get("spec", {}).get("holderIdentity") or "")

    async def judged(self, name: str) -> bool:
        return bool((await self.cluster.get("llmdeployments", name, NAMESPACE)).get("status"))

    async def pool(self, nodes: int) -> None:
        for index in range(nodes):
            labels = {"pool": POOL}
            await self.cluster.create(gpu_node(f"n-{index}", product="NVIDIA-H100-80GB-HBM3", gpus=GPUS, labels=labels))
        spec = {
            "gpu": "H100-SXM-80",
            "nodeSelector": {"pool": POOL},
            "resourceName": "nvidia.com/gpu",
            "gpusPerNode": 8,
        }
        await self.cluster.create(
            {"apiVersion": "berth.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": POOL}, "spec": spec}
        )

    async def deployment(self, name: str, pool: str = POOL) -> None:
        await self.cluster.create(fixed_deployment(name, NAMESPACE, pool, tp=1, groups=1))

    async def ready(self, count: int) -> bool:
        found = await self.cluster.list("llmdeployments", NAMESPACE)
        return sum(1 for each in found if (each.get("status") or {}).get("readyReplicas") == 1) >= count


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    binaries.provide([*PROGRAMS, "kwok"])
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as name:
        folder = Path(name)
        plane = ControlPlane(folder / "cluster")
        await plane.start()
        kwok = Kwok(plane.kubeconfig, plane.directory, lease_duration=40)
        kwok.start()
        try:
            async with Cluster(plane.kubeconfig) as cluster:
                await cluster.install_crds()
                await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
                made = Bench(plane, cluster, folder)
                try:
                    yield made
                finally:
                    for process in made.running:
                        if process.returncode is None:
                            process.kill()
                            await process.wait()
        finally:
            kwok.kill()
            await plane.stop()


async def memory(made: Bench, deployments: int) -> None:
    process = await made.operator("memory")
    await eventually(made.holder, timeout=60)
    await asyncio.sleep(5)
    print(f"resident memory, no deployment: {resident_mib(process.pid):.0f} MiB", flush=True)
    await made.pool(-(-deployments // GPUS))
    await asyncio.sleep(5)
    began = time.monotonic()
    for first in range(0, deployments, 50):
        names = range(first, min(first + 50, deployments))
        await asyncio.gather(*(made.deployment(f"d-{index}") for index in names))
    most = 0.0
    while not await made.ready(deployments):
        most = max(most, resident_mib(process.pid))
        if time.monotonic() - began > 1200:
            raise SystemExit("not ready after 20 minutes")
        await asyncio.sleep(2)
    took = time.monotonic() - began
    await asyncio.sleep(30)
    settled = resident_mib(process.pid)
    print(f"{deployments} deployments of one group, created and all ready (stub canary): {took:.0f} s", flush=True)
    print(f"resident memory with them: {settled:.0f} MiB, at most {max(most, settled):.0f} MiB on the way", flush=True)
    process.send_signal(signal.SIGTERM)
    await process.wait()


async def takeovers(made: Bench, count: int) -> None:
    for number, word in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "told to stop")):
        times = []
        leader = await made.operator("first")
        await eventually(made.holder, timeout=60)
        for index in range(count):
            await made.operator("next")
            await asyncio.sleep(12)
            name = f"{word.split()[0]}-{index}"
            leader.send_signal(number)
            began = time.monotonic()
            await made.deployment(name, pool="nowhere")
            await eventually(lambda name=name: made.judged(name), timeout=60)
            times.append(time.monotonic() - began)
            await leader.wait()
            leader = made.running[-1]
        leader.kill()
        await leader.wait()
        await made.cluster.delete("leases", "berth-operator", NAMESPACE)
        shown = ", ".join(f"{each:.1f}" for each in times)
        print(f"leader {word} -> the other writes: median {statistics.median(times):.1f} s ({shown})", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--takeovers", type=int, default=1)
    options = parser.parse_args()
    print(f"import of everything: {import_seconds():.2f} s (best of 5)", flush=True)
    async with bench() as made:
        await takeovers(made, options.takeovers)
        await memory(made, options.deployments)


if __name__ == "__main__":
    asyncio.run(main())
