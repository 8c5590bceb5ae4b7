"""The arbiter alone: CPU time per claim while a fleet grows from nothing, each group with its pod.

    python -m benchmarks.bench_arbiter [--groups 1000,5000]

Run from the repository root. The arbiter is the real one, the cluster is three stores: no requests, no passes. One
group of one GPU per deployment, nodes of 8 GPUs, a quarter of them spare.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from berth import labels
from berth.controller.arbiter import Claim
from berth.controller.world import deployment_key
from berth.core.capacity import Demand
from berth.core.render.names import pod_name
from berth.core.spread import SpreadGoal
from tests.unit.controller.test_arbiter import GPUS, POOL, Room, replica_group


async def grow(groups: int) -> float:
    """CPU seconds for so many claims."""
    room = Room(nodes=-(-groups * 4 // 3 // GPUS))
    spent = 0.0
    for number in range(groups):
        name = f"d{number}"
        claim = Claim(
            key=deployment_key("ns", name),
            owner_uid=name,
            group=0,
            pool=POOL,
            demand=Demand(1, 1),
            spread=SpreadGoal("topology.kubernetes.io/zone", 1, 0),
            inherits_from=frozenset(),
            own_check=True,
            why_not=None,
            make=lambda nodes, name=name: replica_group(name, nodes, 1, 1),
        )
        began = time.process_time()
        refused = await room.arbiter.reserve(claim)
        spent += time.process_time() - began
        assert refused is None, refused
        room.pods.put(("ns", pod_name(name, 0)), _pod(room.groups.get("ns", name)))
    return spent


def _pod(group: Any) -> dict[str, Any]:
    """The group's pod, bound to its planned node."""
    metadata = group["metadata"]
    return {
        "metadata": {
            "namespace": "ns",
            "name": pod_name(metadata["name"], 0),
            "uid": f"pod-{metadata['uid']}",
            "resourceVersion": "1",
            "labels": {labels.MEMBER_INDEX: "0"},
            "ownerReferences": [{"uid": metadata["uid"], "controller": True}],
        },
        "spec": {
            "nodeName": group["spec"]["plannedNodes"][0],
            "containers": [{"resources": {"limits": {POOL.spec.resource_name: "1"}}}],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default="100,1000", help="sizes of the fleet, separated by commas")
    for groups in map(int, parser.parse_args().groups.split(",")):
        spent = asyncio.run(grow(groups))
        print(f"{groups} groups: {spent:.2f} s of CPU, {spent / groups * 1000:.2f} ms per claim", flush=True)


if __name__ == "__main__":
    main()
