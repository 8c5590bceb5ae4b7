"""Services: one address for clients, one for clients that balance themselves, one per group of several pods.

Invariant: clients only ever reach leaders that Berth has seen produce a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berth import labels
from berth.core.render.metadata import deployment_labels, deployment_selector, owned_by_deployment, owned_by_group
from berth.core.render.names import DeploymentRef, headless_service_name, service_name
from berth.engine import contract


def render_services(reference: DeploymentRef) -> list[dict[str, Any]]:
    """The deployment's Service and its headless twin: leaders that serve, HTTP and gRPC."""
    return [
        _serving(reference, service_name(reference), {}),
        _serving(reference, headless_service_name(reference), {"clusterIP": "None"}),
    ]


def _serving(reference: DeploymentRef, name: str, address: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": reference.namespace,
            "labels": deployment_labels(reference),
            "ownerReferences": owned_by_deployment(reference),
        },
        "spec": {
            "type": "ClusterIP",
            **address,
            "selector": {**deployment_selector(reference), labels.MEMBER: labels.LEADER, labels.SERVING: "true"},
            "ports": [_port("http", contract.PORT_HTTP), _port("grpc", contract.PORT_GRPC)],
        },
    }


def render_group_service(replica_group: Mapping[str, Any]) -> dict[str, Any]:
    """The headless Service that gives the members of a stored ReplicaGroup their names, before they are ready."""
    metadata = replica_group["metadata"]
    inherited = (labels.MANAGED_BY, labels.DEPLOYMENT, labels.DEPLOYMENT_UID, labels.GROUP_LABEL, labels.INCARNATION)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": {key: metadata["labels"][key] for key in inherited},
            "ownerReferences": owned_by_group(replica_group),
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {
                labels.DEPLOYMENT_UID: metadata["labels"][labels.DEPLOYMENT_UID],
                labels.REPLICA_GROUP: metadata["name"],
            },
            "ports": [_port("join", contract.PORT_JOIN)],
        },
    }


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
