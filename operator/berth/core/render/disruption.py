"""The PodDisruptionBudget: no voluntary eviction, ever; Berth itself makes way when it is safe.

A budget that counts ready pods would be wrong twice: a hung pod is ready, and a group is more than one pod.
"""

from __future__ import annotations

from typing import Any, Final

from berth.core.render.metadata import deployment_labels, deployment_selector, owned_by_deployment
from berth.core.render.names import DeploymentRef, disruption_budget_name

MORE_THAN_EXIST: Final = 2**31 - 1


def render_disruption_budget(reference: DeploymentRef) -> dict[str, Any]:
    """Denies eviction of every pod of the deployment that is healthy; unhealthy ones may always be evicted."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": disruption_budget_name(reference),
            "namespace": reference.namespace,
            "labels": deployment_labels(reference),
            "ownerReferences": owned_by_deployment(reference),
        },
        "spec": {
            "minAvailable": MORE_THAN_EXIST,
            "selector": {"matchLabels": deployment_selector(reference)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
