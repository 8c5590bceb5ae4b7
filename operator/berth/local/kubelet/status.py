"""The status of a pod from the states of its containers. Pure; times are RFC 3339 strings that are handed in.

What kubelets write: phase, conditions with the time of their last change, `containerStatuses`. Conditions that others
own stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

State = dict[str, Any]
"""One of {"waiting": ...}, {"running": ...}, {"terminated": ...}."""

_OURS: Final = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")


@dataclass
class ContainerStatus:
    """What is known of one container; changed by its worker."""

    name: str
    image: str
    state: State = field(default_factory=lambda: waiting("ContainerCreating"))
    last: State = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    ready: bool = False
    container_id: str = ""
    devices: Sequence[Mapping[str, str]] = ()

    def manifest(self) -> dict[str, Any]:
        """One entry of `containerStatuses`."""
        resources = [{"name": "nvidia.com/gpu", "resources": list(self.devices)}] if self.devices else []
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "state": self.state,
            "lastState": self.last,
            "restartCount": self.restarts,
            "started": self.started,
            "ready": self.ready,
            **({"containerID": self.container_id} if self.container_id else {}),
            **({"allocatedResourcesStatus": resources} if resources else {}),
        }


def waiting(reason: str, message: str = "") -> State:
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(since: str) -> State:
    return {"running": {"startedAt": since}}


def terminated(code: int, *, message: str, started: str, finished: str, container_id: str) -> State:
    """`code` as subprocess gives it: negative for a signal, which Kubernetes shows as 128 + signal."""
    return {
        "terminated": {
            "exitCode": code if code >= 0 else 128 - code,
            **({"signal": -code} if code < 0 else {}),
            "reason": "Completed" if code == 0 else "Error",
            **({"message": message} if message else {}),
            "startedAt": started,
            "finishedAt": finished,
            "containerID": container_id,
        }
    }


def exit_code(state: State) -> int | None:
    """None for a container that has not ended."""
    return state["terminated"]["exitCode"] if "terminated" in state else None


def phase(states: Sequence[State], lasts: Sequence[State], policy: str, *, stopping: bool) -> str:
    """Pending, Running, Succeeded or Failed, for a pod with restart policy `policy`.

    A container that has ended and is started again counts as running, unless the pod is being stopped.
    """
    codes = [exit_code(state) for state in states]
    if all(code is not None for code in codes):
        failed = any(code != 0 for code in codes)
        if stopping or policy == "Never" or (policy == "OnFailure" and not failed):
            return "Failed" if failed else "Succeeded"
        return "Running"
    if any("waiting" in state and not last for state, last in zip(states, lasts, strict=True)):
        return "Pending"
    return "Running"


def pod_status(
    pod: Mapping[str, Any],
    containers: Sequence[ContainerStatus],
    *,
    addresses: Mapping[str, str],
    since: str,
    now: str,
    stopping: bool,
    volumes_ready: bool,
) -> dict[str, Any]:
    """`status` of a pod that this node runs since `since`, on top of what the API server has in `pod`."""
    found = phase(
        [each.state for each in containers],
        [each.last for each in containers],
        pod["spec"]["restartPolicy"],
        stopping=stopping,
    )
    unready = [each.name for each in containers if not each.ready]
    done = found in ("Succeeded", "Failed")
    reason = {"reason": "PodCompleted" if done else "ContainersNotReady"}
    why = {**reason, "message": f"containers with unready status: [{' '.join(unready)}]"}
    ready = {"status": "True"} if not unready and not done else {"status": "False", **why}
    wanted = {
        "PodReadyToStartContainers": {"status": "True" if volumes_ready and not done else "False"},
        "Initialized": {"status": "True"},
        "ContainersReady": ready,
        "Ready": ready,
    }
    present = {each["type"]: each for each in pod.get("status", {}).get("conditions") or ()}
    return {
        "phase": found,
        "hostIP": addresses["hostIP"],
        "hostIPs": [{"ip": addresses["hostIP"]}],
        "podIP": addresses["podIP"],
        "podIPs": [{"ip": addresses["podIP"]}],
        "startTime": since,
        "observedGeneration": pod["metadata"].get("generation", 0),
        "conditions": [
            *(each for kind, each in present.items() if kind not in _OURS),
            *(_condition(kind, wanted[kind], present.get(kind), now) for kind in _OURS),
        ],
        "containerStatuses": [each.manifest() for each in containers],
    }


def rejected(reason: str, message: str, now: str) -> dict[str, Any]:
    """`status` of a pod that the node does not take, or not any longer."""
    return {"phase": "Failed", "reason": reason, "message": message, "startTime": now}


def _condition(kind: str, wanted: Mapping[str, str], present: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
    """`lastProbeTime` is always null, and said because the API server says it."""
    same = present is not None and present["status"] == wanted["status"]
    since = present["lastTransitionTime"] if present is not None and same else now
    return {"type": kind, **wanted, "lastProbeTime": None, "lastTransitionTime": since}
