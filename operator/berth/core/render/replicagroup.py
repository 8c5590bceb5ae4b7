"""The ReplicaGroup object: one incarnation of a group, written before its pods.

Invariant: spec is the capacity reservation and never changes; labels and annotations alone are enough to carry on if
its status is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from berth import labels
from berth.api.placement import CopyShape
from berth.api.replicagroup import GroupAllocation
from berth.core.render.metadata import deployment_labels, owned_by_deployment
from berth.core.render.names import DeploymentRef, placement_hash, replica_group_name
from berth.core.render.template import GroupTemplate


def render_replica_group(
    template: GroupTemplate,
    reference: DeploymentRef,
    group: int,
    incarnation: int,
    planned_nodes: Sequence[str] = (),
    *,
    move: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Incarnation `incarnation` of group `g<group>`, in state reserved.

    `planned_nodes` has a node per member (the leader's first), or none where another scheduler decides; `move` is the
    identifier and the record of the move it is brought in by.
    """
    if len(planned_nodes) not in (0, template.members):
        raise ValueError(f"{len(planned_nodes)} planned nodes for {template.members} members")
    shape, variant = template.allocation, template.variant
    allocation = GroupAllocation(
        **shape.model_dump(include=set(CopyShape.model_fields), by_alias=False),
        precision=variant.precision,
        kv_precision=variant.effective_kv_precision,
    )
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "ReplicaGroup",
        "metadata": {
            "name": replica_group_name(reference, group, incarnation),
            "namespace": reference.namespace,
            "labels": {
                **replica_group_labels(reference, group, incarnation, allocation, template.template_hash),
                labels.LIFECYCLE: labels.RESERVED,
                **({labels.MOVE_ID: move[0], labels.ROLE: labels.INCOMING} if move else {}),
            },
            "annotations": {
                labels.CONFIG_MAP: template.config_map_name,
                labels.IMAGE: template.image,
                **({labels.MOVE: move[1]} if move else {}),
            },
            "ownerReferences": owned_by_deployment(reference),
        },
        "spec": {
            "group": f"g{group}",
            "incarnation": incarnation,
            "allocation": allocation.model_dump(exclude_none=True, mode="json"),
            "members": template.members,
            **({"plannedNodes": list(planned_nodes)} if planned_nodes else {}),
            "templateHash": template.template_hash,
        },
    }


def replica_group_labels(
    reference: DeploymentRef, group: int, incarnation: int, allocation: GroupAllocation, template_hash: str
) -> dict[str, str]:
    """Labels that follow from spec and owner and never change, so that lost ones can be put back."""
    return {
        **deployment_labels(reference),
        labels.GROUP_LABEL: f"g{group}",
        labels.INCARNATION: str(incarnation),
        labels.POOL: allocation.pool,
        labels.PLACEMENT_HASH: placement_hash(allocation),
        **({labels.PRECISION: allocation.precision} if allocation.precision else {}),
        labels.TENSOR_PARALLEL: str(allocation.tensor_parallel),
        labels.PIPELINE_PARALLEL: str(allocation.pipeline_parallel),
        labels.TEMPLATE_HASH: template_hash,
    }
