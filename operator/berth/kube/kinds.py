"""The kinds of objects that Berth reads or writes, and where the API server keeps them.

A `Kind` is all the client needs to build a path. Objects themselves stay plain dictionaries, as the server sends them:
parsing into typed values happens where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from berth import labels

Object = dict[str, Any]
"""One Kubernetes object (or a part of one for patches), as JSON."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API: `group` is empty for the core group, `name` is the CamelCase kind."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As RBAC and kubectl name it: `pods`, `replicagroups.berth.dev`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of a collection (no name), an object or its subresource; every part is quoted.

        Raises ValueError for a cluster-scoped kind with a namespace, or a namespaced object without one.
        """
        if namespace and not self.namespaced:
            raise ValueError(f"{self.name} is cluster-scoped, namespace {namespace!r} given")
        if name is not None and self.namespaced and not namespace:
            raise ValueError(f"{self.name} {name!r} needs a namespace")
        if name == "":
            raise ValueError(f"{self.name} needs a name")
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)


POD: Final = Kind("", "v1", "Pod", "pods")
NODE: Final = Kind("", "v1", "Node", "nodes", namespaced=False)
SERVICE: Final = Kind("", "v1", "Service", "services")
CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps")
PERSISTENT_VOLUME_CLAIM: Final = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
PERSISTENT_VOLUME: Final = Kind("", "v1", "PersistentVolume", "persistentvolumes", namespaced=False)
POD_DISRUPTION_BUDGET: Final = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")
EVENT: Final = Kind("events.k8s.io", "v1", "Event", "events")
CUSTOM_RESOURCE_DEFINITION: Final = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
LLM_DEPLOYMENT: Final = Kind(labels.GROUP, labels.VERSION, "LLMDeployment", "llmdeployments")
REPLICA_GROUP: Final = Kind(labels.GROUP, labels.VERSION, "ReplicaGroup", "replicagroups")
GPU_POOL: Final = Kind(labels.GROUP, labels.VERSION, "GPUPool", "gpupools", namespaced=False)

_BY_NAME: Final = {
    (kind.api_version, kind.name): kind
    for kind in (
        POD,
        NODE,
        SERVICE,
        CONFIG_MAP,
        PERSISTENT_VOLUME_CLAIM,
        PERSISTENT_VOLUME,
        POD_DISRUPTION_BUDGET,
        LEASE,
        EVENT,
        CUSTOM_RESOURCE_DEFINITION,
        LLM_DEPLOYMENT,
        REPLICA_GROUP,
        GPU_POOL,
    )
}


def kind_of(obj: Object) -> Kind:
    """The kind an object says it is; ValueError when Berth has no business with it."""
    key = (obj.get("apiVersion", ""), obj.get("kind", ""))
    try:
        return _BY_NAME[key]
    except KeyError:
        raise ValueError(f"unknown kind {key[1]!r} in apiVersion {key[0]!r}") from None
