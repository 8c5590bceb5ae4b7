"""The pods of one incarnation of a group.

Invariants: pods depend on the template and the stored ReplicaGroup alone, so that a set that was begun is completed
with the same pods; what the ReplicaGroup names (ConfigMap, image, nodes) wins over the template, so that an operator
upgrade in between changes nothing; nothing refers to an object of another namespace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from berth import labels
from berth.core.render import timing
from berth.core.render.command import over_ssh
from berth.core.render.container import USER_ID, serving_container
from berth.core.render.metadata import deployment_selector, owned_by_group
from berth.core.render.names import pod_name
from berth.core.render.template import GroupTemplate
from berth.core.render.volumes import volumes

_INHERITED = (
    labels.MANAGED_BY,
    labels.DEPLOYMENT,
    labels.DEPLOYMENT_UID,
    labels.GROUP_LABEL,
    labels.INCARNATION,
    labels.POOL,
    labels.PLACEMENT_HASH,
    labels.PRECISION,
    labels.TENSOR_PARALLEL,
    labels.PIPELINE_PARALLEL,
    labels.TEMPLATE_HASH,
)
"""Labels of the ReplicaGroup that its pods carry too: what must survive if only pods are left to read."""


def render_pods(template: GroupTemplate, replica_group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All pods of the stored ReplicaGroup, in order of their index; the first is the leader."""
    image = replica_group["metadata"].get("annotations", {}).get(labels.IMAGE, template.image)
    template = dataclasses.replace(template, image=image)
    return [_pod(template, replica_group, member) for member in range(template.members)]


def _pod(template: GroupTemplate, replica_group: Mapping[str, Any], member: int) -> dict[str, Any]:
    name = replica_group["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(name, member),
            "namespace": replica_group["metadata"]["namespace"],
            "labels": _labels(template, replica_group, member),
            **({"annotations": dict(template.pod.annotations)} if template.pod.annotations else {}),
            "ownerReferences": owned_by_group(replica_group),
        },
        "spec": _spec(template, replica_group, member),
    }


def _labels(template: GroupTemplate, replica_group: Mapping[str, Any], member: int) -> dict[str, str]:
    return {
        **{key: value for key, value in template.pod.labels.items() if key != labels.SERVING},
        **member_labels(replica_group, member),
    }


def member_labels(replica_group: Mapping[str, Any], member: int) -> dict[str, str]:
    """Labels of ours on a member of a stored ReplicaGroup, so that lost ones can be put back."""
    metadata = replica_group["metadata"]
    return {
        **{key: metadata["labels"][key] for key in _INHERITED if key in metadata["labels"]},
        labels.REPLICA_GROUP: metadata["name"],
        labels.MEMBER: labels.LEADER if member == 0 else labels.WORKER,
        labels.MEMBER_INDEX: str(member),
    }


def _spec(template: GroupTemplate, replica_group: Mapping[str, Any], member: int) -> dict[str, Any]:
    name, content = replica_group["metadata"]["name"], replica_group["spec"]
    config_map = replica_group["metadata"]["annotations"][labels.CONFIG_MAP]
    several = template.members > 1
    container = serving_container(template, name, content["group"], content["incarnation"], member)
    return {
        **({"hostname": pod_name(name, member), "subdomain": name} if several else {}),
        # A group of several pods lives and dies as one; alone, a restart keeps GPUs and page cache.
        "restartPolicy": "Never" if several else "Always",
        "terminationGracePeriodSeconds": timing.termination_grace(template.drain_seconds),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_scheduling(template, content, member),
        "tolerations": [toleration.to_dict() for toleration in template.tolerations],
        "securityContext": _security(template),
        "containers": [container],
        "volumes": volumes(template, config_map),
        **_references(template),
    }


def _scheduling(template: GroupTemplate, content: Mapping[str, Any], member: int) -> dict[str, Any]:
    """Pinned to the planned node, and held back until the whole group exists; else left to the scheduler."""
    scheduling: dict[str, Any] = {"nodeSelector": dict(sorted(template.pool.spec.node_selector.items()))}
    nodes = content.get("plannedNodes")
    if nodes:
        here = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [nodes[member]]}]}
        required = {"nodeSelectorTerms": [here]}
        scheduling["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
        if template.members > 1:
            scheduling["schedulingGates"] = [{"name": labels.SCHEDULING_GATE}]
    elif member == 0:
        scheduling["topologySpreadConstraints"] = [_spread(template)]
    return scheduling


def _spread(template: GroupTemplate) -> dict[str, Any]:
    """Leaders stand for their groups; where Berth plans the nodes, it spreads them itself."""
    selector = {**deployment_selector(template.reference), labels.MEMBER: labels.LEADER}
    required = template.spread.when_unsatisfiable == "Require"
    return {
        "maxSkew": 1,
        "topologyKey": template.spread.topology_key,
        "whenUnsatisfiable": "DoNotSchedule" if required else "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }


def _security(template: GroupTemplate) -> dict[str, Any]:
    context: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if over_ssh(template):
        # Only then: with a group of its own a volume's files may be re-labelled one by one, weights included.
        context |= {"fsGroup": USER_ID, "fsGroupChangePolicy": "OnRootMismatch"}
    return context


def _references(template: GroupTemplate) -> dict[str, Any]:
    """Objects the user names; absent ones are left out, so that the API server's defaults hold."""
    pod = template.pod
    references = {
        "imagePullSecrets": [secret.to_dict() for secret in pod.image_pull_secrets] or None,
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "schedulerName": pod.scheduler_name,
    }
    return {field: value for field, value in references.items() if value is not None}
