"""Berth of the tests works with the rights that the installation grants, so that each test proves that they suffice.

What is refused is noted where it is answered: Berth lives with refusals, and few tests would see one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from berth.kube.errors import Forbidden
from tests.support.cluster import Cluster, eventually

INSTALL = Path(__file__).parents[2] / "manifests" / "install.yaml"
RBAC = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
HOME, ACCOUNT = "berth-system", "berth"
TOKEN_SECONDS = 86_400
LEASES: dict[str, Any] = {
    "apiGroups": ["coordination.k8s.io"],
    "resources": ["leases"],
    "verbs": ["create", "get", "patch"],
}
"""In an installation of one name in one namespace; each operator of the tests has a Lease of its own."""


async def operator_token(cluster: Cluster) -> str:
    """A token of the service account of `manifests/install.yaml`, with its roles and Leases of all namespaces."""
    for each in yaml.safe_load_all(INSTALL.read_text()):
        if each and each["kind"] in ("Namespace", "ServiceAccount", *RBAC):
            await cluster.apply(each)
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "leases-of-tests"}}
    await cluster.apply({**about, "kind": "ClusterRole", "rules": [LEASES]})
    await cluster.apply(
        {
            **about,
            "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "leases-of-tests"},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": HOME}],
        }
    )
    for group, resource, namespace in (("", "pods", "default"), ("coordination.k8s.io", "leases", "kube-node-lease")):
        await eventually(partial(_may_list, cluster, group, resource, namespace))
    return await cluster.service_account_token(ACCOUNT, HOME, seconds=TOKEN_SECONDS)


async def _may_list(cluster: Cluster, group: str, resource: str, namespace: str) -> bool:
    """The authorizer has heard of the roles."""
    attributes = {"verb": "list", "group": group, "resource": resource, "namespace": namespace}
    spec = {"user": f"system:serviceaccount:{HOME}:{ACCOUNT}", "resourceAttributes": attributes}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": spec}
    return bool((await cluster.create(review))["status"]["allowed"])


@contextmanager
def nothing_is_refused() -> Iterator[None]:
    """The block fails if a right was missing to any of Berth's clients meanwhile."""
    missing: list[str] = []
    told = Forbidden.__init__

    def noted(self: Forbidden, message: str, *, verb: str, resource: str) -> None:
        missing.append(message)
        told(self, message, verb=verb, resource=resource)

    Forbidden.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Forbidden.__init__ = told  # type: ignore[method-assign]
    assert not missing, missing
