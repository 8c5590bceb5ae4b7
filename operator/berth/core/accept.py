"""What one object cannot show: whether a spec can be carried out on the pools and with the model it names.

Every refusal is an `InvalidSpec` whose message names the field, the bound and the remedy, in the words the CRD's own
messages use; it ends in the condition Accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from berth.api.common import Backend
from berth.api.gpupool import GPUPool
from berth.api.llmdeployment import LLMDeployment, Variant
from berth.api.placement import Allocation
from berth.core.pools import why_namespace_not_allowed
from berth.errors import InvalidSpec
from berth.estimator import hardware, models
from berth.estimator.models import ModelSpec


def resolve_model(deployment: LLMDeployment) -> ModelSpec:
    """The model's geometry, from spec.model.architecture or the catalogue. Raises InvalidSpec."""
    model = deployment.spec.model
    if model.architecture is not None:
        try:
            return models.from_config(model.architecture.model_dump(exclude_none=True), model.name)
        except ValueError as error:
            raise InvalidSpec("InvalidSpec", f"spec.model.architecture.{error}") from None
    try:
        return models.model(model.name)
    except ValueError as error:
        raise InvalidSpec("UnknownModel", f"spec.model: {error}") from None


def accept(
    deployment: LLMDeployment,
    pools: Mapping[str, GPUPool],
    missing_claims: frozenset[str],
    unreadable_pools: Collection[str] = (),
) -> None:
    """Raise InvalidSpec if `deployment` cannot be carried out whatever capacity there is."""
    model = resolve_model(deployment)
    named = {*deployment.spec.placement.pools, *(each.pool for each in deployment.spec.fixed_allocations)}
    for name in sorted(named.intersection(unreadable_pools)):
        raise InvalidSpec(
            "UnreadablePool",
            f"spec.placement: this release cannot read GPUPool {name}: its condition Accepted says what to correct",
        )
    for name in deployment.spec.placement.pools:
        usable_pool(name, pools, deployment.metadata.namespace, "spec.placement.pools")
    claims = {
        variant.source.persistent_volume_claim.claim_name
        for variant in deployment.spec.model.variants
        if variant.source.persistent_volume_claim is not None and backend_of(deployment, variant) != "simulated"
    }
    for claim in sorted(claims & missing_claims):
        raise InvalidSpec(
            "ClaimNotFound",
            f"spec.model.variants: PersistentVolumeClaim {claim} does not exist in namespace "
            f"{deployment.metadata.namespace}: create it or correct claimName",
        )
    fixed = deployment.spec.placement.fixed
    for index, allocation in enumerate(fixed.allocations if fixed else ()):
        field = f"spec.placement.fixed.allocations[{index}]"
        pool = usable_pool(allocation.pool, pools, deployment.metadata.namespace, f"{field}.pool")
        check_allocation(deployment, allocation, pool, model, field)


def usable_pool(name: str, pools: Mapping[str, GPUPool], namespace: str, field: str) -> GPUPool:
    """The pool of that name if this namespace may use it. Raises InvalidSpec."""
    pool = pools.get(name)
    if pool is None:
        open_to_it = (each for each, pool in pools.items() if why_namespace_not_allowed(pool, namespace) is None)
        known = ", ".join(sorted(open_to_it)) or "none"
        raise InvalidSpec(
            "UnknownPool", f"{field}: pool {name} does not exist: create the GPUPool or use one of: {known}"
        )
    refusal = why_namespace_not_allowed(pool, namespace)
    if refusal:
        raise InvalidSpec("PoolNotAllowed", f"{field}: {refusal}")
    return pool


def check_allocation(
    deployment: LLMDeployment, allocation: Allocation, pool: GPUPool, model: ModelSpec, field: str
) -> None:
    """Raise InvalidSpec if no copy of the model can run as `allocation` says."""
    variant = deployment.spec.model.variant(allocation.variant)
    if variant is None:
        known = ", ".join(variant.name for variant in deployment.spec.model.variants)
        raise InvalidSpec(
            "InvalidSpec", f"{field}.variant: {allocation.variant} is not among spec.model.variants: {known}"
        )
    try:
        gpu = hardware.gpu(pool.spec.gpu)
    except ValueError as error:
        raise InvalidSpec("UnknownGPU", f"GPUPool {allocation.pool} spec.gpu: {error}") from None
    backend = backend_of(deployment, variant)
    refusal = gpu.why_not(variant.precision, backend, variant.effective_kv_precision)
    if refusal:
        raise InvalidSpec(
            "UnsupportedPrecision",
            f"{variant.precision} cannot run on pool {allocation.pool} ({pool.spec.gpu}): {refusal}",
        )
    _check_parallelism(allocation, pool, model, field)
    _check_built_for(variant, allocation, pool, field)
    _check_limits(deployment, allocation, pool, field)


def _check_parallelism(allocation: Allocation, pool: GPUPool, model: ModelSpec, field: str) -> None:
    tensor, pipeline, per_node = allocation.tensor_parallel, allocation.pipeline_parallel, pool.spec.gpus_per_node
    if model.heads % tensor:
        raise InvalidSpec(
            "InvalidParallelism",
            f"{field}.tensorParallel: {tensor} does not divide the {model.heads} attention heads of {model.name}: "
            f"use one of {_divisors(model.heads, per_node)}",
        )
    if max(tensor, model.kv_heads) % min(tensor, model.kv_heads):
        raise InvalidSpec(
            "InvalidParallelism",
            f"{field}.tensorParallel: {tensor} neither divides nor is a multiple of the {model.kv_heads} KV heads of "
            f"{model.name}: use one of {_divisors(model.kv_heads, per_node)}",
        )
    if tensor > per_node:
        raise InvalidSpec(
            "InvalidParallelism",
            f"{field}.tensorParallel: {tensor} GPUs do not fit a node of pool {allocation.pool} ({per_node} GPUs): "
            f"use at most {per_node}, and pipelineParallel across nodes",
        )
    if pipeline > model.layers:
        raise InvalidSpec(
            "InvalidParallelism",
            f"{field}.pipelineParallel: {pipeline} stages for {model.layers} layers of {model.name}: "
            f"use at most {model.layers}",
        )


def _check_built_for(variant: Variant, allocation: Allocation, pool: GPUPool, field: str) -> None:
    if variant.gpus and pool.spec.gpu not in variant.gpus:
        raise InvalidSpec(
            "VariantMismatch",
            f"{field}.variant: {variant.name} is for {', '.join(variant.gpus)}, pool {allocation.pool} has "
            f"{pool.spec.gpu}: use another pool or variant",
        )
    for name, built, asked in (
        ("tensorParallel", variant.tensor_parallel, allocation.tensor_parallel),
        ("pipelineParallel", variant.pipeline_parallel, allocation.pipeline_parallel),
    ):
        if built is not None and built != asked:
            raise InvalidSpec(
                "VariantMismatch",
                f"{field}.{name}: variant {variant.name} was built for {built}, not {asked}: use {built}",
            )


def _check_limits(deployment: LLMDeployment, allocation: Allocation, pool: GPUPool, field: str) -> None:
    wanted = wanted_groups(deployment, allocation)
    gpus = wanted * allocation.gpus
    limit = deployment.spec.objectives.limits.gpus
    if limit is not None and gpus > limit:
        raise InvalidSpec(
            "LimitExceeded",
            f"{field}: {wanted} groups x {allocation.gpus} GPUs are above spec.objectives.limits.gpus {limit}: "
            "raise the limit or use fewer groups",
        )
    if pool.spec.gpu_budget is not None and gpus > pool.spec.gpu_budget:
        raise InvalidSpec(
            "LimitExceeded",
            f"{field}: {wanted} groups x {allocation.gpus} GPUs are above the gpuBudget {pool.spec.gpu_budget} of pool "
            f"{allocation.pool}: raise the budget or use fewer groups",
        )


def backend_of(deployment: LLMDeployment, variant: Variant) -> Backend:
    """What reads the variant: its own backend, else the deployment's."""
    return variant.backend or deployment.spec.engine.backend


def wanted_groups(deployment: LLMDeployment, allocation: Allocation) -> int:
    """How many groups there should be: spec.replicas in Manual scaling, else the placement's number."""
    if deployment.spec.scaling.mode == "Manual":
        return deployment.spec.replicas
    return allocation.groups


def _divisors(number: int, most: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, min(number, most) + 1) if number % divisor == 0)
