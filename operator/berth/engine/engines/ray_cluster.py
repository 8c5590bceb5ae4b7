"""Heads a Ray cluster for one model copy over several pods; workers join it with `ray start --address`.

TensorRT-LLM's Ray executor attaches to a cluster that runs on its node (ray.init(address="auto") in
tensorrt_llm/executor/ray_executor.py), so the cluster must be whole before the LLM is made.
"""

from __future__ import annotations

import os
import subprocess
import time
from typing import Final

from berth.engine import contract
from berth.engine.engines.base import LoadError

START_SECONDS: Final = 120
JOIN_SECONDS: Final = 600
POLL: Final = 1.0


def head(port: int, nodes: int, gpus_per_node: int) -> None:
    """Starts the head on this node and waits until `nodes` nodes are alive. Blocks; raises LoadError."""
    command = ["ray", "start", "--head", f"--port={port}", f"--num-gpus={gpus_per_node}"]
    command += ["--include-dashboard=false", "--disable-usage-stats"]
    if address := os.environ.get(contract.POD_IP):
        command.append(f"--node-ip-address={address}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise LoadError(f"Ray does not start: {error}; use an image that holds it") from error
    if done.returncode:
        raise LoadError(f"Ray does not start: {done.stderr.strip()[-500:]}")
    wait_for_nodes(nodes)


def wait_for_nodes(nodes: int) -> None:
    """Until the cluster has so many live nodes. Raises LoadError."""
    import ray

    ray.init(address="auto", namespace="trtllm", ignore_reinit_error=True)
    deadline = time.monotonic() + JOIN_SECONDS
    while (alive := sum(bool(node["Alive"]) for node in ray.nodes())) < nodes:
        if time.monotonic() > deadline:
            raise LoadError(f"{alive} of {nodes} Ray nodes joined in {JOIN_SECONDS}s")
        time.sleep(POLL)
