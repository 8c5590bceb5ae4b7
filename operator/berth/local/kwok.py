"""Nodes in any number without machines: kwok plays the kubelet for nodes that carry a label.

Scheduling, binding, Leases and pod status are real objects on a real API server; only the containers are not there.
A node whose label is not "running" is dead as a node without power is: its Lease is not renewed, its pods' status
does not change, deleted pods stay `Terminating`. (kwok's selection by annotation cannot do this: it filters events in
the client and never notices that a node stopped matching.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from berth.labels import SIMULATED_KUBELET
from berth.local import binaries, nodes
from berth.local.processes import ChildProcess

RUNNING: Final = "running"
DEAD: Final = "dead"

POD_ADDRESSES: Final = "198.19.0.0/16"
"""Addresses in pod status; like `controlplane.SERVICE_ADDRESSES` from the range of RFC 2544, and nobody answers."""
NODE_ADDRESS: Final = "198.19.255.254"


class Kwok(ChildProcess):
    """One kwok for all simulated nodes of the cluster behind `kubeconfig`; files and log go to `directory`.

    `lease_duration` (seconds) is what kubelets call nodeLeaseDurationSeconds, by default 40; renewed four times in it.
    """

    def __init__(
        self, kubeconfig: Path, directory: Path, program: Path | None = None, *, lease_duration: int = 40
    ) -> None:
        super().__init__(
            "kwok",
            [
                program or binaries.provide(["kwok"])["kwok"],
                f"--kubeconfig={kubeconfig}",
                f"--config={Path(__file__).with_name('kwok.yaml')}",
                f"--manage-nodes-with-label-selector={SIMULATED_KUBELET}={RUNNING}",
                f"--node-lease-duration-seconds={lease_duration}",
                f"--cidr={POD_ADDRESSES}",
                f"--node-ip={NODE_ADDRESS}",
            ],
            directory=directory,
            log=directory / "logs" / "kwok.log",
        )


def gpu_node(
    name: str, *, product: str, gpus: int = 8, zone: str = "a", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Manifest of a node that kwok plays; see `nodes.gpu_node`."""
    labels = {SIMULATED_KUBELET: RUNNING, **(labels or {})}
    return nodes.gpu_node(name, product=product, address=NODE_ADDRESS, gpus=gpus, zone=zone, labels=labels)
