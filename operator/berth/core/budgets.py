"""Bounds that people set: GPUs of a pool, GPUs and price of a deployment.

Every function answers None when the wish is within bounds and else the reason, with the field, the bound and the
remedy. They bound what is held at every moment, surge and draining groups included.
"""

from __future__ import annotations

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
