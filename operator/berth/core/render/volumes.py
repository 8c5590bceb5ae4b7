"""Volumes of a pod and where they are mounted.

Everything that is written goes to memory or to the pod's own scratch space; weights on a claim are read-only.
"""

from __future__ import annotations

from typing import Any, Final

from berth.core.render import command
from berth.core.render.repository import LIBRARY, REPOSITORY, WEIGHTS, items
from berth.core.render.resources import shared_memory
from berth.core.render.template import GroupTemplate

LIBRARY_VOLUME: Final = "library"


def volumes(template: GroupTemplate, config_map: str) -> list[dict[str, Any]]:
    """`volumes` of a pod whose incarnation runs the ConfigMap `config_map`."""
    size = shared_memory(template.backend, template.gpus_per_member, template.members)
    found: list[dict[str, Any]] = [
        {"name": LIBRARY_VOLUME, "configMap": {"name": config_map, "items": items(template.files, LIBRARY)}},
        # At the model's folder, not at the root: Triton would take the volume's hidden folders for models there.
        {"name": "repository", "configMap": {"name": config_map, "items": items(template.files, REPOSITORY)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if template.backend != "simulated":
        found.append({"name": "weights", **_weights(template)})
    if _ssh(template):
        # Readable through fsGroup: ssh refuses keys that others may read only if it owns them.
        secret = {"secretName": template.multi_node.ssh_secret_name, "defaultMode": 0o440}
        found.append({"name": "ssh", "secret": secret})
    return found


def mounts(template: GroupTemplate) -> list[dict[str, Any]]:
    """`volumeMounts` of the serving container."""
    found: list[dict[str, Any]] = [
        {"name": LIBRARY_VOLUME, "mountPath": LIBRARY, "readOnly": True},
        {"name": "repository", "mountPath": REPOSITORY, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - memory of the pod's own
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
    ]
    if template.backend != "simulated":
        claim = template.variant.source.persistent_volume_claim
        found.append({"name": "weights", "mountPath": WEIGHTS, **({"readOnly": True} if claim else {})})
    if _ssh(template):
        found.append({"name": "ssh", "mountPath": command.SSH, "readOnly": True})
    return found


def _weights(template: GroupTemplate) -> dict[str, Any]:
    claim = template.variant.source.persistent_volume_claim
    if claim is None:
        return {"emptyDir": {}}
    return {"persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}


def _ssh(template: GroupTemplate) -> bool:
    return command.over_ssh(template)
