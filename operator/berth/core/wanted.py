"""What is to run, resolved: an allocation becomes its pool, its image and the template of its groups. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from berth.api.gpupool import GPUPool, parse_gpupool
from berth.api.placement import Allocation
from berth.core.accept import accept, backend_of, check_allocation, resolve_model, usable_pool, wanted_groups
from berth.core.disruption import NOTICES, Notices
from berth.core.observed import Group, Snapshot
from berth.core.placement.decide import Decision
from berth.core.render import GroupTemplate, group_template
from berth.errors import InvalidSpec


@dataclass(frozen=True)
class Defaults:
    """What the operator brings to every plan: its engine library and the images it was released with."""

    engine_files: Mapping[str, str]
    images: Mapping[str, str]
    """Image by backend, for deployments that name none."""
    notices: Notices = NOTICES
    """What announces the end of a node."""


@dataclass(frozen=True)
class Wanted:
    """What the spec asks for, resolved: the allocation, its pool, and the template of each group."""

    allocation: Allocation
    pool: GPUPool
    template: GroupTemplate
    count: int
    groups_for_traffic: int = 0
    """Groups that carry the traffic at the objectives; 0 where nobody asked."""


def resolve(
    snapshot: Snapshot, defaults: Defaults, decision: Decision | None = None, aside: frozenset[str] = frozenset()
) -> Wanted | None:
    """The allocation in force and the template of its groups; None while nothing can be placed. Raises InvalidSpec.

    `aside` names the groups of another placement, while a move is under way.
    """
    deployment = snapshot.deployment
    pools = readable_pools(snapshot.pools)
    accept(deployment, pools, snapshot.missing_claims, snapshot.pools.keys() - pools.keys())
    if deployment.spec.fixed_allocations:
        allocation, groups_for_traffic = deployment.spec.fixed_allocations[0], 0
        return _wanted(snapshot, defaults, allocation, pools, groups_for_traffic)
    if decision is None or decision.allocation is None:
        if decision is not None and decision.refusal is not None:
            raise decision.refusal
        return None
    wanted = resolve_allocation(snapshot, defaults, decision.allocation, decision.groups_for_traffic)
    mine = [group for group in snapshot.groups if group.alive and group.name not in aside]
    if _proven(mine, wanted.template) < min(wanted.groups_for_traffic, wanted.count):
        # Groups of another layout carry another share each: none of them leaves for the sake of the number alone.
        return replace(wanted, count=max(wanted.count, _outdated_slots(mine, wanted.template)))
    return wanted


def resolve_allocation(
    snapshot: Snapshot, defaults: Defaults, allocation: Allocation, groups_for_traffic: int
) -> Wanted:
    """An allocation that Berth decided on; raises InvalidSpec where pools or model no longer allow it."""
    deployment, field = snapshot.deployment, "status.placement.allocations[0]"
    pools = readable_pools(snapshot.pools)
    pool = usable_pool(allocation.pool, pools, deployment.metadata.namespace, f"{field}.pool")
    check_allocation(deployment, allocation, pool, resolve_model(deployment), field)
    return _wanted(snapshot, defaults, allocation, pools, groups_for_traffic)


def _wanted(
    snapshot: Snapshot,
    defaults: Defaults,
    allocation: Allocation,
    pools: Mapping[str, GPUPool],
    groups_for_traffic: int,
) -> Wanted:
    deployment, pool = snapshot.deployment, pools[allocation.pool]
    image = _image(snapshot, defaults, allocation, pool)
    template = group_template(deployment, allocation, pool, image, defaults.engine_files)
    return Wanted(allocation, pool, template, wanted_groups(deployment, allocation), groups_for_traffic)


def _proven(groups: Sequence[Group], template: GroupTemplate) -> int:
    """Groups of the template that get requests."""
    mine = (group for group in groups if group.template_hash == template.template_hash)
    return sum(group.leader is not None and group.leader.serving for group in mine)


def _outdated_slots(groups: Sequence[Group], template: GroupTemplate) -> int:
    """Slots that are taken while groups of another template live; 0 if none does."""
    outdated = any(group.template_hash != template.template_hash for group in groups)
    return len({group.group for group in groups}) if outdated else 0


def readable_pools(raw: Mapping[str, Mapping[str, Any]]) -> dict[str, GPUPool]:
    """The pools this release can read; one that it cannot says so itself and is no deployment's fault."""
    pools = {}
    for name, manifest in raw.items():
        with suppress(InvalidSpec):
            pools[name] = parse_gpupool(manifest)
    return pools


def _image(snapshot: Snapshot, defaults: Defaults, allocation: Allocation, pool: GPUPool) -> str:
    """The engine image of this revision: the user's, else the one its groups already run, else this release's.

    Taking it from the groups keeps a deployment on its image when the operator is upgraded or status is wiped.
    """
    deployment = snapshot.deployment
    if deployment.spec.engine.image:
        return deployment.spec.engine.image
    variant = deployment.spec.model.variant(allocation.variant)
    default = defaults.images[backend_of(deployment, variant) if variant else deployment.spec.engine.backend]
    template_hash = group_template(deployment, allocation, pool, default, defaults.engine_files).template_hash
    same = [group for group in snapshot.groups if group.template_hash == template_hash and group.image]
    return max(same, key=lambda group: (group.created_at, group.name)).image if same else default
