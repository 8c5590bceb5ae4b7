"""What is taken on each node: bound pods of anybody, until their objects are gone, and reservations of ReplicaGroups.

A pod that is being deleted still holds its GPUs: on a dead node it may go on running for ever. Only a pod that has
ended (Succeeded, Failed) holds nothing. A reservation holds the planned node of each member that is not bound yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from berth import labels
from berth.core import quantities

_ENDED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Usage:
    """Amounts taken on one node, or asked for by one pod."""

    gpus: int = 0
    cpu_millicores: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.gpus + other.gpus,
            self.cpu_millicores + other.cpu_millicores,
            self.memory_bytes + other.memory_bytes,
        )

    def __sub__(self, other: Usage) -> Usage:
        """Never below zero: giving back what was not taken frees nothing."""
        return Usage(
            max(0, self.gpus - other.gpus),
            max(0, self.cpu_millicores - other.cpu_millicores),
            max(0, self.memory_bytes - other.memory_bytes),
        )


@dataclass(frozen=True)
class PodUsage:
    """What one bound pod takes, and whose it is."""

    uid: str
    node: str
    amount: Usage
    owner_uid: str = ""
    """UID of the controlling owner: the ReplicaGroup for our members."""
    member_index: int | None = None
    terminating: bool = False


@dataclass(frozen=True)
class Reservation:
    """What a ReplicaGroup holds before its pods are bound. `nodes[i]` is the planned node of member i.

    Only groups whose members are still wanted reserve: not failed, not retiring.
    """

    owner_uid: str
    nodes: tuple[str, ...]
    member: Usage


def pod_usage(pod: Mapping[str, Any], resource_name: str) -> PodUsage | None:
    """What a raw Kubernetes Pod takes on its node; None when it is not bound or has ended."""
    spec = pod.get("spec") or {}
    node = spec.get("nodeName")
    if not node or (pod.get("status") or {}).get("phase") in _ENDED:
        return None
    metadata = pod.get("metadata") or {}
    index = str((metadata.get("labels") or {}).get(labels.MEMBER_INDEX, ""))
    return PodUsage(
        uid=str(metadata.get("uid") or ""),
        node=str(node),
        amount=pod_request(spec, resource_name),
        owner_uid=next((str(o["uid"]) for o in metadata.get("ownerReferences") or () if o.get("controller")), ""),
        member_index=int(index) if index.isdecimal() else None,
        terminating=bool(metadata.get("deletionTimestamp")),
    )


def pod_request(spec: Mapping[str, Any], resource_name: str) -> Usage:
    """The effective request of a pod spec, by the scheduler's rule.

    Per resource: the larger of all containers together and of each init container while it runs; init containers that
    restart (sidecars) run along with everything after them; a request at pod level replaces the sum; overhead on top.
    """
    pod_level = (spec.get("resources") or {}).get("requests") or {}
    overhead = spec.get("overhead") or {}

    def total(resource: str, unit: Fraction) -> int:
        if resource in pod_level:
            aggregate = quantities.ceil_units(pod_level[resource], unit)
        else:
            sidecars = peak = 0
            for container in spec.get("initContainers") or ():
                request = _request(container, resource, unit)
                if container.get("restartPolicy") == "Always":
                    sidecars += request
                    peak = max(peak, sidecars)
                else:
                    peak = max(peak, sidecars + request)
            running = sum(_request(container, resource, unit) for container in spec.get("containers") or ())
            aggregate = max(peak, sidecars + running)
        return aggregate + quantities.ceil_units(overhead.get(resource, 0), unit)

    return Usage(
        gpus=total(resource_name, Fraction(1)),
        cpu_millicores=total("cpu", Fraction(1, 1000)),
        memory_bytes=total("memory", Fraction(1)),
    )


def _request(container: Mapping[str, Any], resource: str, unit: Fraction) -> int:
    """A container's request; a limit alone is its request, as the API server would fill in."""
    resources = container.get("resources") or {}
    limit = (resources.get("limits") or {}).get(resource, 0)
    return quantities.ceil_units((resources.get("requests") or {}).get(resource, limit), unit)


def bound_pods(pods: Iterable[Mapping[str, Any]], resource_name: str) -> list[PodUsage]:
    """The pods that take something, from raw Kubernetes Pods; each UID once."""
    found = (pod_usage(pod, resource_name) for pod in pods)
    return list({usage.uid or id(usage): usage for usage in found if usage is not None}.values())


def usage_by_node(pods: Iterable[PodUsage], reservations: Iterable[Reservation] = ()) -> dict[str, Usage]:
    """What is taken on each node by bound pods and by reserved members that are not bound yet."""
    used: dict[str, Usage] = {}

    def take(node: str, amount: Usage) -> None:
        used[node] = used.get(node, Usage()) + amount

    bound: set[tuple[str, int]] = set()
    for pod in pods:
        take(pod.node, pod.amount)
        if pod.member_index is not None:
            bound.add((pod.owner_uid, pod.member_index))
    for reservation in reservations:
        for index, node in enumerate(reservation.nodes):
            if (reservation.owner_uid, index) not in bound:
                take(node, reservation.member)
    return used


def held_by(owner_uids: Iterable[str], pods: Iterable[PodUsage]) -> dict[str, Usage]:
    """What the pods of these ReplicaGroups take on each node: a successor may inherit what dying members hold."""
    owners = frozenset(owner_uids)
    return usage_by_node(pod for pod in pods if pod.owner_uid in owners)
