"""The ConfigMap object around the files of `berth.core.render.repository`."""

from __future__ import annotations

from typing import Any

from berth.core.render import repository
from berth.core.render.metadata import deployment_labels, owned_by_deployment
from berth.core.render.template import GroupTemplate


def render_config_map(template: GroupTemplate) -> dict[str, Any]:
    """Immutable, owned by the deployment, with every file the pods mount."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": template.config_map_name,
            "namespace": template.reference.namespace,
            "labels": deployment_labels(template.reference),
            "ownerReferences": owned_by_deployment(template.reference),
        },
        "data": {repository.key(path): text for path, text in template.files.items()},
        "immutable": True,
    }
