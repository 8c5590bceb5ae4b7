"""Everything needed to render the groups of one allocation, resolved once from spec, pool and image.

Invariant: what can be refused is refused here; the render functions cannot fail on a template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from berth.api.common import Backend, Toleration
from berth.api.gpupool import GPUPool
from berth.api.llmdeployment import LLMDeployment, MultiNode, Spread
from berth.api.model import Variant
from berth.api.placement import Allocation
from berth.api.pod import Pod
from berth.core import nodes
from berth.core.capacity import Demand
from berth.core.quantities import ceil_units, millicores
from berth.core.render import repository
from berth.core.render.names import DeploymentRef, config_map_name
from berth.core.render.resources import container_resources
from berth.core.render.revision import template_hash
from berth.core.render.timing import drain_seconds
from berth.core.render.tolerations import tolerations
from berth.errors import InvalidSpec


@dataclass(frozen=True)
class GroupTemplate:
    """What all groups of one allocation have in common."""

    reference: DeploymentRef
    template_hash: str
    """Changes exactly when running pods have to be replaced: see `berth.core.render.revision`."""
    allocation: Allocation
    variant: Variant
    backend: Backend
    pool: GPUPool
    image: str
    members: int
    """Pods of a group: 1, or one per node."""
    multi_node: MultiNode
    pod: Pod
    spread: Spread
    drain_seconds: int
    resources: Mapping[str, Mapping[str, str]]
    """Of each pod's container: requests and limits, GPUs included."""
    config_map_name: str
    files: Mapping[str, str]
    """Content of the ConfigMap by path in the container."""

    @property
    def gpus_per_member(self) -> int:
        return self.allocation.gpus // self.members

    @property
    def tolerations(self) -> tuple[Toleration, ...]:
        """What the pods tolerate: ours, the pool's, the user's."""
        return tolerations(self.pool.spec.tolerations, self.pod.tolerations)


def group_template(
    deployment: LLMDeployment, allocation: Allocation, pool: GPUPool, image: str, engine_files: Mapping[str, str]
) -> GroupTemplate:
    """The template of the groups of `allocation` on `pool`.

    `image` is the resolved engine image, `engine_files` the engine library and model repository: text by absolute path
    in the container. Raises InvalidSpec where no pods could be made of it.
    """
    spec = deployment.spec
    variant = spec.model.variant(allocation.variant)
    if variant is None:
        raise InvalidSpec("VariantMismatch", f"variant {allocation.variant} is not among spec.model.variants: add it")
    backend: Backend = variant.backend or spec.engine.backend
    members = group_members(allocation, pool)
    if backend == "tensorrt":
        _check_built(variant, members, spec.engine.multi_node)
    gpus = allocation.gpus // members
    reference = DeploymentRef.of(deployment)
    configuration = repository.model_configuration(deployment, variant, allocation, pool.spec.gpu, members)
    files = repository.files(engine_files, configuration)
    return GroupTemplate(
        reference=reference,
        template_hash=template_hash(spec, variant, allocation, members),
        allocation=allocation,
        variant=variant,
        backend=backend,
        pool=pool,
        image=image,
        members=members,
        multi_node=spec.engine.multi_node,
        pod=spec.pod,
        spread=spec.replica_groups.spread,
        drain_seconds=drain_seconds(spec),
        resources=container_resources(backend, gpus, pool.spec.resource_name, spec.pod.resources),
        config_map_name=config_map_name(reference, files),
        files=files,
    )


def group_members(allocation: Allocation, pool: GPUPool) -> int:
    """Pods of one model copy: one if it fits a node, else one per node with as many whole pipeline stages as fit.

    Tensor parallelism never leaves a node; all pods hold equally many GPUs.
    """
    per_node = pool.spec.gpus_per_node
    if allocation.gpus <= per_node:
        return 1
    tensor, pipeline = allocation.tensor_parallel, allocation.pipeline_parallel
    if tensor > per_node:
        raise InvalidSpec(
            "InvalidParallelism",
            f"tensorParallel {tensor} does not fit a node of pool {pool.metadata.name} ({per_node} GPUs): "
            f"use at most {per_node}, and pipelineParallel across nodes",
        )
    stages = next(stages for stages in range(per_node // tensor, 0, -1) if pipeline % stages == 0)
    return pipeline // stages


def demand(template: GroupTemplate) -> Demand:
    """What one group asks of its pool; volumes are added by whoever has seen them."""
    return _demand(template.resources, template.members, template.gpus_per_member, template.pool, template.tolerations)


def group_demand(deployment: LLMDeployment, allocation: Allocation, pool: GPUPool) -> Demand:
    """The same for a placement that is only thought of. Raises InvalidSpec."""
    spec = deployment.spec
    variant = spec.model.variant(allocation.variant)
    backend: Backend = (variant.backend if variant else None) or spec.engine.backend
    members = group_members(allocation, pool)
    gpus = allocation.gpus // members
    resources = container_resources(backend, gpus, pool.spec.resource_name, spec.pod.resources)
    return _demand(resources, members, gpus, pool, tolerations(pool.spec.tolerations, spec.pod.tolerations))


def _demand(
    resources: Mapping[str, Mapping[str, str]],
    members: int,
    gpus_per_member: int,
    pool: GPUPool,
    tolerated: Sequence[Toleration],
) -> Demand:
    requests = resources["requests"]
    return Demand(
        members=members,
        gpus_per_member=gpus_per_member,
        resource_name=pool.spec.resource_name,
        cpu_millicores=millicores(requests["cpu"]),
        memory_bytes=ceil_units(requests["memory"]),
        node_selector=pool.spec.node_selector,
        tolerations=tuple(nodes.Toleration.from_manifest(entry.to_dict()) for entry in tolerated),
    )


def _check_built(variant: Variant, members: int, multi_node: MultiNode) -> None:
    if not (variant.gpus and variant.tensor_parallel):
        raise InvalidSpec(
            "VariantMismatch",
            f"spec.model.variants: backend tensorrt serves engines built for one GPU type and layout, variant "
            f"{variant.name} names none: give gpus and tensorParallel, or use engine.backend pytorch",
        )
    if members > 1 and multi_node.launcher != "SSH":
        raise InvalidSpec(
            "InvalidSpec",
            f"spec.engine.multiNode.launcher: {multi_node.launcher} cannot run built engines over {members} nodes: "
            "use SSH with sshSecretName, or engine.backend pytorch",
        )
