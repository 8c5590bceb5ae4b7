"""What the cluster reports about GPUs, mapped to the pods that use them. Pure.

Three reporters, from the most to the least exact: the kubelet's `allocatedResourcesStatus` of a pod, node conditions
and taints of a configurable list, and fewer allocatable GPUs than pods hold. A health of Unknown, and a node that
offers no GPU at all, say that the device plugin is away (restarting, being upgraded), not that a GPU is broken: neither
is a fault (https://kep.k8s.io/4680).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from berth.core.nodes import NodeView

DEFAULT_CONDITIONS: Final = (
    # AKS node problem detector: https://learn.microsoft.com/azure/aks/gpu-health-monitoring
    "GPUMissing=True,NVLinkStatusInactive=True,"
    # EKS node monitoring agent; DCGMError only says that the monitoring itself is down:
    # https://docs.aws.amazon.com/eks/latest/userguide/node-health-nma.html
    "AcceleratedHardwareReady=False/!DCGMError,"
    # NVSentinel: https://docs.nvidia.com/nvsentinel/getting-started/integrations
    "GpuMemWatch=True,GpuPcieWatch=True,GpuNvlinkWatch=True,SysLogsGPUFallenOff=True"
)
"""XID conditions without a number are left out: most XIDs are an application's own."""
DEFAULT_TAINTS: Final = "nvidia.com/gpu-xid-error,nvidia.com/gpu-nvlink-error,gpu.health/unhealthy,amd-gpu-unhealthy"
"""Keys, whatever the effect."""


@dataclass(frozen=True)
class FaultCondition:
    """A node condition of this type and status is a GPU fault, unless its reason is `unless`."""

    type: str
    status: str
    unless: str = ""


@dataclass(frozen=True)
class FaultRules:
    """Which node conditions and taints mean that GPUs are broken."""

    conditions: tuple[FaultCondition, ...] = ()
    taints: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, conditions: str, taints: str) -> Self:
        """From `Type=Status` or `Type=Status/!Reason`, and from taint keys; both separated by commas.

        Raises ValueError naming the entry that cannot be read.
        """
        found = []
        for entry in filter(None, (part.strip() for part in conditions.split(","))):
            kind, equals, rest = entry.partition("=")
            status, slash, reason = rest.partition("/")
            if not (kind and equals and status in ("True", "False", "Unknown")):
                raise ValueError(f"{entry!r}: must be Type=True, Type=False or Type=Unknown")
            if slash and not (reason.startswith("!") and len(reason) > 1):
                raise ValueError(f"{entry!r}: after the / stands !Reason, the reason that is no fault")
            found.append(FaultCondition(kind, status, reason.removeprefix("!")))
        return cls(tuple(found), frozenset(filter(None, (part.strip() for part in taints.split(",")))))

    def fault_of(self, node: NodeView) -> str:
        """The fault that conditions or taints of the node report, in words; empty if none does."""
        for rule in self.conditions:
            reason = node.condition_reasons.get(rule.type, "")
            if node.conditions.get(rule.type) == rule.status and not (rule.unless and reason == rule.unless):
                return f"condition {rule.type} is {rule.status}" + (f" ({reason})" if reason else "")
        taint = next((each for each in node.taints if each.key in self.taints), None)
        return f"taint {taint}" if taint else ""


@dataclass(frozen=True)
class DeviceUse:
    """The GPUs of one pod of ours on a node."""

    uid: str
    gpus: int
    reported: bool
    """The kubelet tells the health of this pod's GPUs."""
    unhealthy: tuple[str, ...] = ()
    """Those it calls Unhealthy."""


def device_use(pod: Mapping[str, Any], gpus: int) -> DeviceUse:
    """From a raw pod that asks for so many GPUs; tolerant of anything odd."""
    entries = [
        resource
        for container in _mappings((pod.get("status") or {}).get("containerStatuses"))
        for status in _mappings(container.get("allocatedResourcesStatus"))
        for resource in _mappings(status.get("resources"))
    ]
    unhealthy = tuple(str(each.get("resourceID")) for each in entries if each.get("health") == "Unhealthy")
    return DeviceUse(str(pod["metadata"].get("uid", "")), gpus, bool(entries), unhealthy)


def sick_pods(node: NodeView, pods: Sequence[DeviceUse], rules: FaultRules) -> dict[str, str]:
    """By UID: what is wrong with the GPUs of these pods, all of them on `node`.

    Where nobody says which GPU it is, every pod that may hold it counts.
    """
    fault = rules.fault_of(node)
    if fault:
        return {pod.uid: f"node {node.name}: {fault}" for pod in pods}
    sick = {
        pod.uid: f"GPU {', '.join(pod.unhealthy)} of node {node.name} is unhealthy" for pod in pods if pod.unhealthy
    }
    silent = [pod for pod in pods if not pod.reported]
    held = sum(pod.gpus for pod in pods)
    if silent and 0 < node.gpu_allocatable < min(held, node.gpu_capacity):
        words = f"node {node.name} offers {node.gpu_allocatable} of {node.gpu_capacity} GPUs, {held} are in use"
        sick |= {pod.uid: words for pod in silent}
    return sick


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
