"""The serving container: environment, probes, life cycle, mounts, security.

Invariants: of the user's environment nothing can replace what Berth sets; the container passes the Pod Security
Standard `restricted`, and its root file system is read-only.
"""

from __future__ import annotations

from typing import Any, Final

from berth.core.render import command, volumes
from berth.core.render.repository import LIBRARY, WEIGHTS
from berth.core.render.template import GroupTemplate
from berth.engine import contract

NAME: Final = "triton"
USER_ID: Final = 10001
"""Above every system range; images need no entry for it but for launcher SSH."""

LOADING: Final = 3600
"""Seconds from the container's start to its first token: reading weights from a volume, graph capture."""
DOWNLOADING: Final = 4 * 3600
"""The same where the pod downloads the weights first."""


def serving_container(template: GroupTemplate, replica_group: str, group: str, incarnation: int, member: int) -> Any:
    """Container of one member, as JSON. Its image is the incarnation's."""
    environment = _environment(template, group, incarnation)
    of_all_ranks = [variable["name"] for variable in environment if variable["name"] != contract.POD_IP]
    return {
        "name": NAME,
        "image": template.image,
        "command": list(command.LAUNCHER),
        "args": command.arguments(template, replica_group, member, of_all_ranks),
        "env": environment,
        "ports": _ports(template, leader=member == 0),
        "startupProbe": _probe("/startupz", period=1, timeout=2, failures=_start_limit(template)),
        # Out of the Service within seconds of a hang; one slow answer on a busy node is not one.
        "readinessProbe": _probe("/readyz", period=2, timeout=2, failures=2),
        "livenessProbe": _probe("/livez", period=10, timeout=5, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": command.drain(template, member)}}},
        "resources": {kind: dict(amounts) for kind, amounts in template.resources.items()},
        "volumeMounts": volumes.mounts(template),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _environment(template: GroupTemplate, group: str, incarnation: int) -> list[dict[str, Any]]:
    """Later ones win: habits of the image's software, what the user gave, what Berth relies on."""
    plain = {
        # Python looks the user up by number where USER is missing, and fails where the image has no such user.
        "HOME": "/tmp",  # noqa: S108 - a volume of the pod's own
        "USER": "berth",
        **{variable.name: variable.value for variable in template.pod.env},
        "PYTHONPATH": LIBRARY,
        contract.GROUP: group,
        contract.INCARNATION: str(incarnation),
        contract.POOL: template.pool.metadata.name,
        **_hub(template),
        **_ray(template),
    }
    variables: dict[str, dict[str, Any]] = {name: {"value": value} for name, value in plain.items()}
    variables[contract.POD_IP] = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    token = _token(template)
    if token is not None:
        variables["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": {"name": token, "key": "token"}}}
    return [{"name": name, **source} for name, source in variables.items()]


def _hub(template: GroupTemplate) -> dict[str, str]:
    """The Hugging Face hub is contacted only for a source that lives there, and never told about usage."""
    if template.backend == "simulated":
        return {}
    if template.variant.source.hugging_face is None:
        return {"HF_HUB_OFFLINE": "1"}
    return {"HF_HOME": WEIGHTS, "HF_HUB_DISABLE_TELEMETRY": "1"}


def _token(template: GroupTemplate) -> str | None:
    hub = template.variant.source.hugging_face
    return hub.token_secret_name if hub and template.backend != "simulated" else None


def _ray(template: GroupTemplate) -> dict[str, str]:
    """As TensorRT-LLM's multi-node example sets it; workers wait for the leader to head the cluster."""
    if template.members == 1 or template.backend != "pytorch" or template.multi_node.launcher != "Ray":
        return {}
    return {
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        "RAY_NUM_REDIS_GET_RETRIES": "600",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _ports(template: GroupTemplate, leader: bool) -> list[dict[str, Any]]:
    ports = {"launcher": contract.PORT_PAGE}
    if leader:
        ports = {
            "http": contract.PORT_HTTP,
            "grpc": contract.PORT_GRPC,
            "metrics": contract.PORT_METRICS,
            **ports,
            **({"join": contract.PORT_JOIN} if template.members > 1 else {}),
        }
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]


def _probe(path: str, *, period: int, timeout: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "launcher"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _start_limit(template: GroupTemplate) -> int:
    """Start-up probes, one a second, that may fail before the kubelet gives up."""
    downloads = template.variant.source.hugging_face is not None and template.backend != "simulated"
    return DOWNLOADING if downloads else LOADING
