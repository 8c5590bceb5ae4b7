"""What benchmarks of many deployments stand on: simulated nodes with GPUs in one pool, and what a process costs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from berth.local.kwok import gpu_node
from tests.support.cluster import Cluster, eventually

OPERATOR_NAMESPACE = "scale"
PER_NAMESPACE = 100
"""The controller manager looks at every Service and budget of a pod's namespace whenever a pod changes."""
GPUS = 8
SPARE = 4 / 3
PARALLEL = 32
LIMIT = 1800.0
POOL_LABEL = "benchmarks.berth.dev/pool"


async def prepare(cluster: Cluster, deployments: int) -> list[str]:
    await cluster.install_crds()
    namespaces = [OPERATOR_NAMESPACE, *dict.fromkeys(map(namespace_of, range(deployments)))]
    for name in namespaces:
        await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    names = [f"n{number}" for number in range(-int(-deployments * SPARE // GPUS))]
    manifests = [
        gpu_node(name, product="NVIDIA-H100-80GB-HBM3", gpus=GPUS, zone="ab"[number % 2], labels={POOL_LABEL: "h100"})
        for number, name in enumerate(names)
    ]
    await each(manifests, cluster.create)

    async def ready() -> bool:
        found = await cluster.list("nodes")
        return len(found) == len(names) and not any(node["spec"].get("taints") for node in found)

    await eventually(ready, timeout=LIMIT)
    await cluster.create(
        {
            "apiVersion": "berth.dev/v1alpha1",
            "kind": "GPUPool",
            "metadata": {"name": "h100"},
            "spec": {
                "gpu": "H100-SXM-80",
                "nodeSelector": {POOL_LABEL: "h100"},
                "resourceName": "nvidia.com/gpu",
                "gpusPerNode": GPUS,
                "pricePerGPUHour": "2.99",
            },
        }
    )
    return names


def namespace_of(number: int) -> str:
    return f"scale-{number // PER_NAMESPACE}"


async def until(items: int, done: Callable[[], Awaitable[bool]]) -> None:
    """Asks seldom where there are many: whoever lists thousands twice a second measures itself."""

    async def asked() -> bool:
        await asyncio.sleep(max(0.5, items / 200))
        with suppress(TimeoutError):
            return await done()
        return False

    await eventually(asked, timeout=LIMIT)


async def each(items: Sequence[Any], do: Any) -> None:
    """A few at a time."""
    slots = asyncio.Semaphore(PARALLEL)

    async def one(item: Any) -> None:
        async with slots:
            await do(item)

    await asyncio.gather(*(one(item) for item in items))


def memory_mib(pid: int | None, what: str = "VmRSS") -> float:
    """Resident set as the kernel counts it; `VmHWM` is the most it ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
