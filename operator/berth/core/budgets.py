"""Bounds that people set: GPUs of a pool, groups and GPUs of a namespace, GPUs and price of a deployment.

Every function answers None when the wish is within bounds and else the reason, with the field, the bound and the
remedy. They bound what is held at every moment, surge and draining groups included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from berth.api.common import number
from berth.api.gpupool import GPUPool
from berth.api.llmdeployment import Limits


def why_over_gpu_budget(pool: GPUPool, held: int, wanted: int) -> str | None:
    """`held`: GPUs that Berth uses or has reserved in the pool, for whomever; `wanted`: more of them."""
    budget = pool.spec.gpu_budget
    if budget is None or held + wanted <= budget:
        return None
    return (
        f"pool {pool.metadata.name}: {held} of gpuBudget {budget} are in use, {wanted} more are wanted: "
        "raise gpuBudget or use another pool"
    )


@dataclass(frozen=True)
class NamespaceCaps:
    """What all deployments of any one namespace may hold together; 0 = no bound."""

    groups: int = 0
    gpus: int = 0

    @property
    def any(self) -> bool:
        return bool(self.groups or self.gpus)

    def left(self, namespace: str, held_groups: int, held_gpus: int) -> Allowance:
        """For a deployment, where the others of its namespace hold so much."""
        groups = max(0, self.groups - held_groups) if self.groups else None
        gpus = max(0, self.gpus - held_gpus) if self.gpus else None
        return Allowance(groups, gpus, namespace)

    def why_over(self, namespace: str, held_groups: int, held_gpus: int, wanted_gpus: int) -> str | None:
        """`wanted_gpus`: those of one more group."""
        if self.groups and held_groups + 1 > self.groups:
            held = f"{held_groups} of {self.groups} groups"
        elif self.gpus and held_gpus + wanted_gpus > self.gpus:
            held = f"{held_gpus} of {self.gpus} GPUs"
        else:
            return None
        setting = "namespaceGroups" if "groups" in held else "namespaceGpus"
        return (
            f"namespace {namespace} holds {held} that each namespace may have, another {wanted_gpus} GPUs are wanted: "
            f"use fewer, or ask whoever runs Berth to raise its setting {setting}"
        )


@dataclass(frozen=True)
class Allowance:
    """What a namespace may still hold beside what its other deployments do; None = no bound."""

    groups: int | None = None
    gpus: int | None = None
    namespace: str = ""

    def bounds(self, gpus_per_group: int) -> Iterator[tuple[int, str, str]]:
        """Each bound: groups of this size that it leaves, in what words, and what would allow more."""
        cure = "ask whoever runs Berth to raise its setting"
        where = f"namespace {self.namespace} may hold"
        if self.groups is not None:
            yield self.groups, f"{where} {_more(self.groups, 'group')}", f"{cure} namespaceGroups"
        if self.gpus is not None:
            yield self.gpus // gpus_per_group, f"{where} {_more(self.gpus, 'GPU')}", f"{cure} namespaceGpus"


def _more(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'} beside its other deployments"


def why_over_gpu_limit(limits: Limits, held: int, wanted: int) -> str | None:
    """`held`: GPUs of all groups of the deployment that still have any; `wanted`: more of them."""
    if limits.gpus is None or held + wanted <= limits.gpus:
        return None
    return (
        f"{held} of objectives.limits.gpus {limits.gpus} are in use, {wanted} more are wanted: "
        "raise the limit or plan for less"
    )


def why_over_cost_limit(limits: Limits, cost_per_hour: float) -> str | None:
    """`cost_per_hour` of the whole placement, surge included, in the pools' currency."""
    if limits.cost_per_hour is None:
        return None
    bound = number(limits.cost_per_hour)
    if cost_per_hour <= bound:
        return None
    return (
        f"{cost_per_hour:.2f} per hour is above objectives.limits.costPerHour {limits.cost_per_hour}: "
        "raise the limit or plan for less"
    )
