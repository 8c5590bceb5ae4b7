"""From API objects (dicts) to what the core observes. Tolerant: an absent or odd field becomes its neutral value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from berth import labels
from berth.api.common import readable
from berth.api.replicagroup import GroupAllocation, ReplicaGroupStatus
from berth.core.observed import AcceptedRestart, Group, Member, Termination
from berth.core.render import DeploymentRef, member_labels, replica_group_labels
from berth.core.render.container import NAME as SERVING_CONTAINER
from berth.core.render.volumes import LIBRARY_VOLUME
from berth.core.timestamps import unix_seconds

_POD_NAME: Final = re.compile("-g([0-9]{1,9})-([0-9]{1,9})-[0-9]+$")
"""Slot and incarnation in the name of a pod of ours."""

Manifest = Mapping[str, Any]


def member(pod: Manifest, replica_group: Manifest) -> Member:
    """A pod of `replica_group` (whose own labels are complete) as the core sees it."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    found = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    index = _integer(metadata["name"].rpartition("-")[2]) or 0
    containers = status.get("containerStatuses") or ()
    container: Manifest = next((each for each in containers if each.get("name") == SERVING_CONTAINER), {})
    waiting = (container.get("state") or {}).get("waiting") or _init_waiting(status)
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else ""
    deleted_at = unix_seconds(metadata.get("deletionTimestamp"))
    return Member(
        name=metadata["name"],
        uid=metadata["uid"],
        index=index,
        created_at=unix_seconds(metadata.get("creationTimestamp")) or 0.0,
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        ip=status.get("podIP"),
        gated=bool(spec.get("schedulingGates")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        restarts=int(container.get("restartCount", 0)),
        down="terminated" in (container.get("state") or {}) or waiting.get("reason") == "CrashLoopBackOff",
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=unschedulable,
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        last_termination=_termination(container),
        serving=found.get(labels.SERVING) == "true",
        token_restarts=_integer(annotations.get(labels.TOKEN_RESTARTS)),
        lost_labels=_lost(member_labels(replica_group, index), found),
        deleted_at=deleted_at,
        deletion_asked_at=None if deleted_at is None else deleted_at - _grace(metadata),
    )


def group(replica_group: Manifest, owner: Manifest, pods: Sequence[Manifest]) -> Group:
    """A ReplicaGroup, the LLMDeployment that owns it (its owner reference), and the pods it controls.

    What follows from the rest is put back where somebody took it away: nobody downstream meets a group without labels.
    """
    metadata, spec, status = replica_group["metadata"], replica_group["spec"], group_status(replica_group)
    found, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    number, incarnation = _integer(str(spec["group"]).lstrip("g")) or 0, int(spec["incarnation"])
    allocation = _allocation(spec["allocation"])
    reference = DeploymentRef(owner["name"], metadata["namespace"], owner["uid"])
    due_labels = replica_group_labels(reference, number, incarnation, allocation, spec["templateHash"])
    due_labels[labels.LIFECYCLE] = lifecycle(replica_group)
    due_annotations = _due_annotations(annotations, pods)
    complete = {
        **replica_group,
        "metadata": {**metadata, "labels": {**found, **due_labels}, "annotations": due_annotations},
    }
    failed_at = annotations.get(labels.FAILED_AT) or (status.get("evidence") or {}).get("observedAt")
    return Group(
        name=metadata["name"],
        uid=metadata["uid"],
        group=number,
        incarnation=incarnation,
        lifecycle=due_labels[labels.LIFECYCLE],
        allocation=allocation,
        template_hash=spec["templateHash"],
        wanted_members=int(spec["members"]),
        created_at=unix_seconds(metadata.get("creationTimestamp")) or 0.0,
        planned_nodes=tuple(spec.get("plannedNodes") or ()),
        pool=allocation.pool,
        config_map=due_annotations.get(labels.CONFIG_MAP, ""),
        image=due_annotations.get(labels.IMAGE, ""),
        deleting="deletionTimestamp" in metadata,
        failed_at=unix_seconds(failed_at) if due_labels[labels.LIFECYCLE] == labels.FAILED else None,
        failure_reason=annotations.get(labels.FAILURE_REASON, ""),
        failure_message=annotations.get(labels.FAILURE_MESSAGE, ""),
        retired_at=unix_seconds(annotations.get(labels.RETIRED_AT)),
        accepted_restart=_accepted_restart(annotations.get(labels.ACCEPTED_RESTART)),
        move_id=found.get(labels.MOVE_ID, ""),
        role=found.get(labels.ROLE, ""),
        move_record=annotations.get(labels.MOVE, ""),
        flipped_at=unix_seconds(annotations.get(labels.FLIPPED_AT)),
        move_result=annotations.get(labels.MOVE_RESULT, ""),
        answered=annotations.get(labels.ANSWERED, ""),
        ended_moves=annotations.get(labels.ENDED_MOVES, ""),
        recorded=status,
        members=tuple(sorted((member(pod, complete) for pod in pods), key=lambda member: member.index)),
        manifest=complete,
        lost_labels=_lost(due_labels, found),
        lost_annotations=_lost(due_annotations, annotations),
    )


def group_status(replica_group: Manifest) -> Manifest:
    """What a ReplicaGroup says of itself, as far as this release can read it."""
    return readable(ReplicaGroupStatus, replica_group.get("status"))


def lifecycle(replica_group: Manifest) -> str:
    """The label, or where it is lost what else tells the same: the times of failure and retirement, the status."""
    metadata = replica_group["metadata"]
    annotations = metadata.get("annotations") or {}
    said = (metadata.get("labels") or {}).get(labels.LIFECYCLE, "")
    if said in labels.LIFECYCLES:
        return str(said)
    status = group_status(replica_group)
    if labels.FAILED_AT in annotations or status.get("state") == "Failed":
        return labels.FAILED
    if labels.RETIRED_AT in annotations or status.get("state") == "Draining":
        return labels.RETIRING
    complete = len(status.get("memberUIDs") or ()) >= int(replica_group["spec"]["members"])
    return labels.COMMITTED if complete else labels.RESERVED


def incarnation(pod: Manifest) -> tuple[int, int]:
    """(slot, incarnation) of a pod of ours, by its name: that is what is in the way, and nobody can take it away."""
    found = _POD_NAME.search(pod["metadata"]["name"])
    return (int(found[1]), int(found[2])) if found else (0, 0)


def owner_of(obj: Manifest, kind: str) -> Manifest | None:
    """The owner reference to the controller of `obj`, if that is of this kind of ours."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and (owner.get("apiVersion"), owner.get("kind")) == (labels.API_VERSION, kind):
            return dict(owner)
    return None


def _lost(due: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in due.items() if found.get(key) != value}


def _allocation(raw: Manifest) -> GroupAllocation:
    """The layout as stored, without what only a newer release understands."""
    try:
        return GroupAllocation.model_validate(raw)
    except ValidationError as error:
        unreadable = {entry["loc"][0] for entry in error.errors() if entry["loc"]}
        if not unreadable & set(raw):
            raise
        return _allocation({key: value for key, value in raw.items() if key not in unreadable})


def _due_annotations(found: Mapping[str, str], pods: Sequence[Manifest]) -> dict[str, str]:
    """Pods tell what is lost. Their ConfigMap also what is wrong; their image may be a name that a mirror gave it."""
    by_pods = _annotations_by_pods(pods)
    mounted = {key: value for key, value in by_pods.items() if key == labels.CONFIG_MAP}
    return {**by_pods, **found, **mounted}


def _annotations_by_pods(pods: Sequence[Manifest]) -> dict[str, str]:
    """What the pods of a group run, in the words of its annotations."""
    known = {}
    for pod in pods:
        for container in pod["spec"].get("containers") or ():
            if container.get("name") == SERVING_CONTAINER and container.get("image"):
                known[labels.IMAGE] = str(container["image"])
        for volume in pod["spec"].get("volumes") or ():
            if volume.get("name") == LIBRARY_VOLUME and "configMap" in volume:
                known[labels.CONFIG_MAP] = str(volume["configMap"]["name"])
    return known


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


def _grace(metadata: Manifest) -> float:
    seconds = metadata.get("deletionGracePeriodSeconds")
    return float(seconds) if isinstance(seconds, int) else 0.0


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
