"""Names of everything Berth creates for one LLMDeployment.

Invariants: every name is a DNS label of at most 63 characters, given a deployment name of at most 40; the UID's hash in
the names of groups keeps a deployment that was deleted and made again apart from what is left of the first; a
ConfigMap's name follows from its content, so one name never stands for two contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from berth.api.llmdeployment import LLMDeployment
from berth.api.placement import CopyShape


@dataclass(frozen=True)
class DeploymentRef:
    """Which LLMDeployment an object belongs to."""

    name: str
    namespace: str
    uid: str

    @classmethod
    def of(cls, deployment: LLMDeployment) -> Self:
        """The reference to an object that the API server has stored, so that it has a UID."""
        metadata = deployment.metadata
        return cls(metadata.name, metadata.namespace, metadata.uid)


def service_name(reference: DeploymentRef) -> str:
    """The Service that clients use."""
    return reference.name


def headless_service_name(reference: DeploymentRef) -> str:
    """The Service of clients that balance over the leaders themselves."""
    return f"{reference.name}-headless"


def disruption_budget_name(reference: DeploymentRef) -> str:
    """The PodDisruptionBudget over all pods of the deployment."""
    return reference.name


def config_map_name(reference: DeploymentRef, data: Mapping[str, str]) -> str:
    """`llama-70b-0123456789`: the ConfigMap that holds exactly `data`."""
    return f"{reference.name}-{digest({name: _text_digest(text) for name, text in data.items()}, 10)}"


def replica_group_name(reference: DeploymentRef, group: int, incarnation: int) -> str:
    """`llama-70b-1a2b3-g0-7`: one incarnation of a group; also its headless Service, if it has several pods."""
    return f"{reference.name}-{hashlib.sha256(reference.uid.encode()).hexdigest()[:5]}-g{group}-{incarnation}"


def pod_name(replica_group: str, member: int) -> str:
    """`llama-70b-1a2b3-g0-7-0`: a pod; also its host name, if the group has several."""
    return f"{replica_group}-{member}"


def member_host(replica_group: str, member: int) -> str:
    """The DNS name by which the members of one group find each other, within their namespace."""
    return f"{pod_name(replica_group, member)}.{replica_group}"


def placement_hash(shape: CopyShape) -> str:
    """The same for all groups of one placement, whatever their number: 10 hexadecimal digits."""
    return digest(shape.model_dump(include=set(CopyShape.model_fields), exclude_none=True), 10)


def digest(content: Any, length: int) -> str:
    """The first hexadecimal digits of SHA-256 over `content` as JSON; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@lru_cache(maxsize=256)
def _text_digest(text: str) -> str:
    """Remembered, because every pass over every deployment names the same 200 kB of engine library."""
    return hashlib.sha256(text.encode()).hexdigest()
