"""Labels, annotations and owners of everything Berth creates.

Invariants: what a user adds lies below what Berth sets, so ours wins; selectors hold the deployment's UID, which no
other object can claim by choosing a label; `labels.SERVING` is never set here, it has a writer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berth import labels
from berth.core.render.names import DeploymentRef


def deployment_labels(reference: DeploymentRef) -> dict[str, str]:
    """Labels of every object of a deployment."""
    return {
        labels.MANAGED_BY: labels.MANAGED_BY_VALUE,
        labels.DEPLOYMENT: reference.name,
        labels.DEPLOYMENT_UID: reference.uid,
    }


def deployment_selector(reference: DeploymentRef) -> dict[str, str]:
    """Selects what belongs to the deployment."""
    return {labels.DEPLOYMENT_UID: reference.uid}


def owned_by_deployment(reference: DeploymentRef) -> list[dict[str, Any]]:
    """ownerReferences to the LLMDeployment: what is deleted with it."""
    return _owner("LLMDeployment", reference.name, reference.uid)


def owned_by_group(replica_group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """ownerReferences to a stored ReplicaGroup."""
    metadata = replica_group["metadata"]
    return _owner("ReplicaGroup", metadata["name"], metadata["uid"])


def _owner(kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": labels.API_VERSION,
            "kind": kind,
            "name": name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
