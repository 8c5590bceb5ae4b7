"""The GPUs of a node: who holds which, and which are sick.

Invariants: a GPU has one holder; sick GPUs are not given out, and stay with a holder that has them already, as the
device manager of a kubelet does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berth.local.nodes import GPU_RESOURCE


class Rejected(Exception):
    """The node cannot take the pod; the message is the one that kubelets give."""


class Devices:
    """`count` GPUs, named gpu-0, gpu-1 and so on; given out from the lowest."""

    def __init__(self, count: int) -> None:
        self._holders: dict[str, str | None] = {f"gpu-{index}": None for index in range(count)}
        self._sick: set[str] = set()

    @property
    def capacity(self) -> int:
        return len(self._holders)

    @property
    def allocatable(self) -> int:
        return len(self._holders) - len(self._sick)

    def set_sick(self, count: int) -> None:
        """The lowest `count` GPUs are sick from now on, all others well. Raises ValueError."""
        if not 0 <= count <= self.capacity:
            raise ValueError(f"{count} unhealthy GPUs: the node has {self.capacity}")
        self._sick = set(list(self._holders)[:count])

    def allocate(self, pod: Mapping[str, Any]) -> None:
        """Gives the pod what it asks for, or raises Rejected."""
        wanted = requested(pod)
        free = [name for name, holder in self._holders.items() if holder is None and name not in self._sick]
        if wanted > len(free):
            raise Rejected(
                "Pod was rejected: Allocate failed due to requested number of devices unavailable for "
                f"{GPU_RESOURCE}. Requested: {wanted}, Available: {len(free)}, which is unexpected"
            )
        for name in free[:wanted]:
            self._holders[name] = pod["metadata"]["uid"]

    def release(self, uid: str) -> None:
        for name, holder in self._holders.items():
            if holder == uid:
                self._holders[name] = None

    def health(self, uid: str) -> list[dict[str, str]]:
        """The GPUs of a pod for `allocatedResourcesStatus`."""
        return [
            {"resourceID": name, "health": "Unhealthy" if name in self._sick else "Healthy"}
            for name, holder in self._holders.items()
            if holder == uid
        ]


def requested(pod: Mapping[str, Any]) -> int:
    """GPUs that the pod asks for."""
    limits = [container.get("resources", {}).get("limits") or {} for container in pod["spec"]["containers"]]
    return sum(int(each.get(GPU_RESOURCE, 0)) for each in limits)
