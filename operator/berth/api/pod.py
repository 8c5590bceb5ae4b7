"""`spec.pod`: what a user may add to the pods. An allow-list, never a raw pod template.

Everything that could take over what Berth sets (its labels, its environment, GPUs) is refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import Field

from berth import labels
from berth.api.common import Toleration
from berth.api.schema import (
    QUALIFIED_KEYS,
    Constraint,
    DnsName,
    LabelValue,
    ListMap,
    Matches,
    Model,
    Rule,
    Satisfies,
    refuse,
)
from berth.engine import contract

RESERVED_ENV: Final = (
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "LLM_CONFIG_PATH",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RAY_ADDRESS",
)
"""Variables that Berth sets or that would change what it starts."""
OPEN_ENV: Final = (contract.SIMULATED,)
"""Excepted from the prefixes: the user's way to set the simulated engine."""
RESERVED_ENV_PREFIXES: Final = ("BERTH_", "KUBERNETES_", "LD_", "NVIDIA_", "OMPI_", "PMIX_", "PMI_", "PRTE_", "PRRTE_")

RESERVED_LABELS: Final = (
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
)
RESERVED_LABEL_DOMAINS: Final = (labels.GROUP, "kubernetes.io", "k8s.io")
"""Keys under these domains and their subdomains belong to Berth or Kubernetes; `app.kubernetes.io` is free but for
RESERVED_LABELS."""


def reserved_env(name: str) -> bool:
    """Whether Berth keeps this environment variable for itself."""
    return name in RESERVED_ENV or (name not in OPEN_ENV and name.startswith(RESERVED_ENV_PREFIXES))


def reserved_label(key: str) -> bool:
    """Whether Berth or Kubernetes keeps this label or annotation key for itself."""
    if key in RESERVED_LABELS:
        return True
    domain = key.partition("/")[0] if "/" in key else ""
    if domain == "app.kubernetes.io":
        return False
    return any(domain == reserved or domain.endswith(f".{reserved}") for reserved in RESERVED_LABEL_DOMAINS)


def gpu_resource(name: str) -> bool:
    """Whether an extended resource stands for GPUs, which the placement alone decides."""
    return name.startswith(("nvidia.com/", "amd.com/", "gpu.intel.com/")) or name.endswith(("/gpu", ".gpu"))


def _quoted(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{word}'" for word in words) + "]"


_RESERVED_KEYS_CEL: Final = (
    f"!self.exists(key, key in {_quoted(RESERVED_LABELS)} || "
    "(!key.startsWith('app.kubernetes.io/') && "
    f"{_quoted(RESERVED_LABEL_DOMAINS)}.exists(domain, "
    "key.startsWith(domain + '/') || key.contains('.' + domain + '/'))))"
)


def _reserved_keys(what: str) -> Rule:
    return Rule(
        _RESERVED_KEYS_CEL,
        f"{what} of {labels.GROUP}, kubernetes.io and k8s.io, and {labels.MANAGED_BY}, name, instance and component of "
        "app.kubernetes.io are reserved: remove them or use a domain of your own",
        lambda mapping: not any(reserved_label(key) for key in mapping),
    )


_QUANTITY: Final = "([1-9][0-9]{0,14}([.][0-9]{1,9})?|0[.][0-9]{0,8}[1-9])(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?"


class ResourceQuantities(Constraint):
    """A map of resource names to Kubernetes quantities more than 0.

    Checked by `pattern`, not CEL: a rule per value of an int-or-string map exceeds the API server's cost budget.
    """

    def keywords(self) -> dict[str, Any]:
        value = {
            "description": 'A Kubernetes quantity more than 0, such as 12, "500m" or "64Gi".',
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": 10**15,
            "pattern": f"^{_QUANTITY}$",
        }
        return {"additionalProperties": value}

    def check(self, value: dict[str, int | str]) -> dict[str, int | str]:
        for name, quantity in value.items():
            if re.fullmatch(_QUANTITY, str(quantity), re.ASCII) is None:
                raise refuse(
                    f'{name} must be a Kubernetes quantity more than 0, such as 12, "500m" or "64Gi": correct it'
                )
        return value


Resources = Annotated[
    dict[str, int | str],
    Field(max_length=16),
    ResourceQuantities(),
    Satisfies(
        (
            QUALIFIED_KEYS,
            Rule(
                "!self.exists(name, name.startsWith('nvidia.com/') || name.startsWith('amd.com/') || "
                "name.startsWith('gpu.intel.com/') || name.endsWith('/gpu') || name.endsWith('.gpu'))",
                "GPU resources come from the placement: remove them, tensorParallel and pipelineParallel decide",
                lambda mapping: not any(gpu_resource(name) for name in mapping),
            ),
        )
    ),
]


class ResourceRequirements(Model):
    """Resources of the serving container besides GPUs. Absent ones are computed from the model and the placement."""

    requests: Resources = Field(default_factory=dict)
    """Requests by resource name, such as cpu, memory or rdma/hca."""
    limits: Resources = Field(default_factory=dict)
    """Limits by resource name."""


class EnvVar(Model):
    """One environment variable with a plain value. Secrets are never passed this way."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=128),
        Matches("[A-Za-z_][A-Za-z0-9_]*", "must be an environment variable name: letters, digits and '_': rename it"),
        Satisfies(
            (
                Rule(
                    f"!(self in {_quoted(RESERVED_ENV)}) && (self in {_quoted(OPEN_ENV)} || "
                    f"!{_quoted(RESERVED_ENV_PREFIXES)}.exists(prefix, self.startsWith(prefix)))",
                    f"is reserved ({', '.join(RESERVED_ENV)} and {', '.join(f'{p}*' for p in RESERVED_ENV_PREFIXES)}): "
                    "remove it",
                    lambda name: not reserved_env(name),
                ),
            )
        ),
    ]
    """Name; those that Berth, CUDA, MPI or the dynamic linker read are reserved."""
    value: Annotated[
        str,
        Field(max_length=4096),
        Satisfies(
            (Rule("!self.contains('\\u0000')", "must not contain NUL: remove it", lambda value: "\0" not in value),)
        ),
    ] = ""
    """Plain value."""


class LocalObjectReference(Model):
    """An object of the same namespace."""

    name: DnsName
    """Its name."""


class Pod(Model):
    """Additions to every pod of the deployment."""

    labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=32),
        Satisfies((QUALIFIED_KEYS, _reserved_keys("labels"))),
    ] = Field(default_factory=dict)
    """Labels to add."""
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        Satisfies((QUALIFIED_KEYS, _reserved_keys("annotations"))),
    ] = Field(default_factory=dict)
    """Annotations to add."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64), ListMap("name")] = ()
    """Environment variables of the serving container."""
    resources: ResourceRequirements = ResourceRequirements()
    """CPU, memory and other resources, but never GPUs."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Tolerations to add to those of the pool."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods; absent: the cluster's default."""
    scheduler_name: DnsName | None = None
    """Scheduler of the pods; absent: default-scheduler. Another gets no scheduling gates and no own capacity check."""
    image_pull_secrets: Annotated[tuple[LocalObjectReference, ...], Field(max_length=8), ListMap("name")] = ()
    """Secrets for pulling the image. Berth never reads them."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the pods, such as nvidia; absent: the node's default."""
