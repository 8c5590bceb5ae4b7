"""From API objects (dicts) to what the core observes. Tolerant: an absent or odd field becomes its neutral value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from berth import labels
from berth.api.replicagroup import GroupAllocation
from berth.core.observed import AcceptedRestart, Group, Member, Termination
from berth.core.timestamps import unix_seconds

Manifest = Mapping[str, Any]


def member(pod: Manifest, expected_labels: Mapping[str, str]) -> Member:
    """A pod as the core sees it; `expected_labels` are those of ours it was made with."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    found = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    container: Manifest = next(iter(status.get("containerStatuses") or ()), {})
    waiting = (container.get("state") or {}).get("waiting") or _init_waiting(status)
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else ""
    return Member(
        name=metadata["name"],
        uid=metadata["uid"],
        index=_integer(found.get(labels.MEMBER_INDEX, metadata["name"].rpartition("-")[2])) or 0,
        created_at=unix_seconds(metadata.get("creationTimestamp")) or 0.0,
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        ip=status.get("podIP"),
        gated=bool(spec.get("schedulingGates")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        restarts=int(container.get("restartCount", 0)),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=unschedulable,
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        last_termination=_termination(container),
        serving=found.get(labels.SERVING) == "true",
        token_restarts=_integer(annotations.get(labels.TOKEN_RESTARTS)),
        labels_intact=all(found.get(key) == value for key, value in expected_labels.items()),
    )


def group(replica_group: Manifest, pods: Iterable[Manifest]) -> Group:
    """A ReplicaGroup and the pods it controls as the core sees them."""
    metadata, spec, status = replica_group["metadata"], replica_group["spec"], replica_group.get("status") or {}
    found, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    allocation = GroupAllocation.model_validate(spec["allocation"])
    expected = {labels.REPLICA_GROUP: metadata["name"], labels.DEPLOYMENT_UID: found.get(labels.DEPLOYMENT_UID, "")}
    members = sorted((member(pod, expected) for pod in pods), key=lambda member: member.index)
    return Group(
        name=metadata["name"],
        uid=metadata["uid"],
        group=_integer(str(spec["group"]).lstrip("g")) or 0,
        incarnation=int(spec["incarnation"]),
        lifecycle=found.get(labels.LIFECYCLE, labels.RESERVED),
        allocation=allocation,
        template_hash=spec["templateHash"],
        wanted_members=int(spec["members"]),
        created_at=unix_seconds(metadata.get("creationTimestamp")) or 0.0,
        planned_nodes=tuple(spec.get("plannedNodes") or ()),
        pool=allocation.pool,
        config_map=annotations.get(labels.CONFIG_MAP, ""),
        image=annotations.get(labels.IMAGE, ""),
        deleting="deletionTimestamp" in metadata,
        failed_at=unix_seconds(annotations.get(labels.FAILED_AT)),
        failure_reason=annotations.get(labels.FAILURE_REASON, ""),
        retired_at=unix_seconds(annotations.get(labels.RETIRED_AT)),
        accepted_restart=_accepted_restart(annotations.get(labels.ACCEPTED_RESTART)),
        recorded=status,
        members=tuple(members),
        manifest=replica_group,
    )


def _init_waiting(status: Manifest) -> Manifest:
    for container in status.get("initContainerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting")
        if waiting:
            return dict(waiting)
    return {}


def _termination(container: Manifest) -> Termination | None:
    """The current end of the container, else its last one."""
    ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
    if not ended:
        return None
    return Termination(
        exit_code=ended.get("exitCode"),
        signal=ended.get("signal"),
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        finished_at=unix_seconds(ended.get("finishedAt")),
    )


def _accepted_restart(text: str | None) -> AcceptedRestart | None:
    count, _, at = (text or "").partition("@")
    restarts, seconds = _integer(count), unix_seconds(at)
    return AcceptedRestart(restarts, seconds) if restarts is not None and seconds is not None else None


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
