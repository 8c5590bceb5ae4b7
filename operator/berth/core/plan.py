"""One pass, decided: from everything observed to everything to be done. Pure.

The whole wanted state is compared with the whole observed state at every pass; what happened before matters only
through what can be observed. Order of the orders: traffic off first, then what every deployment needs (Services,
disruption budget, configuration), then groups, then what is left over.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from berth import labels
from berth.api.common import seconds
from berth.api.gpupool import GPUPool, parse_gpupool
from berth.api.llmdeployment import LLMDeployment
from berth.api.placement import Allocation
from berth.core import groups as group_life
from berth.core.accept import accept, backend_of, check_allocation, resolve_model, usable_pool, wanted_groups
from berth.core.actions import Action, DeleteConfigMap, Ensure, Mark, Record, Reserve, Restore, SetServing
from berth.core.disruption import NOTICES, Notices, displaced
from berth.core.drift import mend
from berth.core.failover import failover_of
from berth.core.failures import Failure, GroupPolicy, Surroundings, find_failure, suspicion
from berth.core.groups import Judgement
from berth.core.observed import Answer, Ask, Group, Member, Snapshot
from berth.core.placement.decide import Decision
from berth.core.render import (
    DeploymentRef,
    GroupTemplate,
    drain_seconds,
    group_template,
    render_config_map,
    render_disruption_budget,
    render_group_service,
    render_pods,
    render_services,
)
from berth.core.rollout import Rollout, RolloutPolicy, plan_rollout
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


@dataclass(frozen=True)
class Plan:
    """What to do now and what it was decided from."""

    actions: tuple[Action, ...] = ()
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """By name of the ReplicaGroup."""
    wanted: Wanted | None = None
    needed: int = 0
    rollout: Rollout = field(default_factory=Rollout)
    refusal: InvalidSpec | None = None
    questions: tuple[tuple[Member, Ask], ...] = ()
    """Leaders to ask, and what."""
    requeue_after: float | None = None
    decision: Decision | None = None
    """Where it is to run, in placement.mode Auto."""
    failovers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """How the failover of each group goes, by name of the ReplicaGroup; only those that had one."""
    displaced: Mapping[str, str] = field(default_factory=dict)
    """By name of the ReplicaGroup: why it cannot stay where it is."""


def make_plan(
    snapshot: Snapshot,
    defaults: Defaults,
    needed: Callable[[LLMDeployment, Wanted], int],
    decision: Decision | None = None,
) -> Plan:
    """The plan of one pass. `needed` says how many groups must serve; `decision` is the planner's, in mode Auto."""
    plan = _plan(snapshot, defaults, needed, decision)
    alive = [group for group in snapshot.groups if group.alive]
    return replace(plan, decision=decision, displaced=displaced(alive, snapshot.nodes, defaults.notices))


def _plan(
    snapshot: Snapshot,
    defaults: Defaults,
    needed: Callable[[LLMDeployment, Wanted], int],
    decision: Decision | None,
) -> Plan:
    deployment = snapshot.deployment
    try:
        wanted: Wanted | None = resolve(snapshot, defaults, decision)
        refusal = None
    except InvalidSpec as error:
        wanted, refusal = None, error
    policy = _group_policy(snapshot)
    trusted = _trusted(snapshot, policy)
    judgements = {group.name: _judge(group, snapshot, wanted, policy, trusted) for group in snapshot.groups}
    must_serve = needed(deployment, wanted) if wanted else deployment.spec.replica_groups.min_available
    if deployment.metadata.deletion_timestamp:
        return Plan(judgements=judgements, wanted=wanted, needed=must_serve, refusal=refusal)
    unplaced = Rollout(blocked=decision.shortage if decision else None)
    rollout = _rollout(snapshot, wanted, judgements, must_serve, defaults.notices) if wanted else unplaced
    for group in rollout.expired:
        message = f"did not serve within update.deadline {deployment.spec.update.deadline}"
        failure = Failure("DeadlineExceeded", message)
        judgements[group.name] = group_life.fail(group, failure, _answer(group, snapshot), snapshot.now)
    questions = _questions(snapshot.groups, judgements)
    requeue = _soonest([*(j.requeue_after for j in judgements.values()), rollout.retry_after])
    if deployment.spec.pause == "All":
        return Plan((), judgements, wanted, must_serve, rollout, refusal, (), requeue)
    failovers = _failovers(snapshot, judgements)
    orders = [
        order
        for group in snapshot.groups
        for order in _group_orders(group, judgements[group.name], snapshot, failovers.get(group.name))
    ]
    cuts = [order for order in orders if isinstance(order, SetServing) and not order.serving]
    actions: list[Action] = [*cuts]
    if wanted is not None:
        actions += _children(snapshot, wanted)
    actions += [order for order in orders if order not in cuts]
    if wanted is not None:
        for group in rollout.retire:
            actions += group_life.retire(group, snapshot.now)
        actions += [Reserve(new.group, new.incarnation, new.reason) for new in rollout.create]
        actions += _left_over(snapshot, wanted)
    return Plan(
        tuple(actions), judgements, wanted, must_serve, rollout, refusal, questions, requeue, failovers=failovers
    )


def resolve(snapshot: Snapshot, defaults: Defaults, decision: Decision | None = None) -> Wanted | None:
    """The allocation in force and the template of its groups; None while nothing can be placed. Raises InvalidSpec."""
    deployment = snapshot.deployment
    pools = readable_pools(snapshot.pools)
    accept(deployment, pools, snapshot.missing_claims, snapshot.pools.keys() - pools.keys())
    if deployment.spec.fixed_allocations:
        allocation, groups_for_traffic = deployment.spec.fixed_allocations[0], 0
    elif decision is None or decision.allocation is None:
        if decision is not None and decision.refusal is not None:
            raise decision.refusal
        return None
    else:
        allocation, groups_for_traffic = decision.allocation, decision.groups_for_traffic
        field = "status.placement.allocations[0]"
        pool = usable_pool(allocation.pool, pools, deployment.metadata.namespace, f"{field}.pool")
        check_allocation(deployment, allocation, pool, resolve_model(deployment), field)
    pool = pools[allocation.pool]
    image = _image(snapshot, defaults, allocation, pool)
    template = group_template(deployment, allocation, pool, image, defaults.engine_files)
    count = wanted_groups(deployment, allocation)
    if decision is not None and _proven(snapshot, template) < min(groups_for_traffic, count):
        # Groups of another layout carry another share each: none of them leaves for the sake of the number alone.
        count = max(count, _outdated_slots(snapshot, template))
    return Wanted(allocation, pool, template, count, groups_for_traffic)


def _proven(snapshot: Snapshot, template: GroupTemplate) -> int:
    """Groups of the template that get requests."""
    mine = (group for group in snapshot.groups if group.alive and group.template_hash == template.template_hash)
    return sum(group.leader is not None and group.leader.serving for group in mine)


def _outdated_slots(snapshot: Snapshot, template: GroupTemplate) -> int:
    """Slots that are taken while groups of another template live; 0 if none does."""
    alive = [group for group in snapshot.groups if group.alive]
    outdated = any(group.template_hash != template.template_hash for group in alive)
    return len({group.group for group in alive}) if outdated else 0


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


def _group_policy(snapshot: Snapshot) -> GroupPolicy:
    spec = snapshot.deployment.spec
    recovery = spec.replica_groups.recovery
    return GroupPolicy(
        seconds(recovery.window),
        drain_seconds(spec),
        recovery.force_delete == "NodeUnreachable",
        # Not the same for all: two that hold half each must not let go, and take, at the same time.
        seconds(spec.update.deadline) * (1.0 + 0.5 * _jitter(snapshot)),
    )


def _judge(
    group: Group, snapshot: Snapshot, wanted: Wanted | None, policy: GroupPolicy, trusted: frozenset[str]
) -> Judgement:
    manifests = None
    if group.lifecycle == labels.RESERVED and wanted is not None and _completable(group, wanted):
        manifests = render_pods(wanted.template, group.manifest)
    around = Surroundings(snapshot.nodes, snapshot.facts, others_serve=bool(trusted - {group.name}))
    return group_life.judge(group, _answer(group, snapshot), policy, snapshot.now, manifests, around)


def _answer(group: Group, snapshot: Snapshot) -> Answer | None:
    return snapshot.answers.get(group.leader.uid) if group.leader else None


def _trusted(snapshot: Snapshot, policy: GroupPolicy) -> frozenset[str]:
    """Groups that get requests and against which nothing speaks: they carry on when a doubtful one is cut off."""
    around = Surroundings(snapshot.nodes, snapshot.facts)
    return frozenset(
        group.name
        for group in snapshot.groups
        if group.lifecycle == labels.COMMITTED
        and group.leader is not None
        and group.leader.serving
        and group.leader.ready
        and find_failure(group, policy, snapshot.now, around) is None
        and not suspicion(group, _answer(group, snapshot), around)
    )


def _completable(group: Group, wanted: Wanted) -> bool:
    """Whether the pods that are still missing can be made as the others were: same intent, same files."""
    template = wanted.template
    return (group.template_hash, group.config_map) == (template.template_hash, template.config_map_name)


def _rollout(
    snapshot: Snapshot, wanted: Wanted, judgements: Mapping[str, Judgement], needed: int, notices: Notices
) -> Rollout:
    spec = snapshot.deployment.spec
    recovery = spec.replica_groups.recovery
    policy = RolloutPolicy(
        wanted=wanted.count,
        needed=needed,
        template_hash=wanted.template.template_hash,
        gpus_per_group=wanted.allocation.gpus,
        gpu_limit=spec.objectives.limits.gpus,
        surge=spec.update.surge == "WhenCapacity",
        max_unavailable=spec.update.max_unavailable,
        max_failures=recovery.max_failures,
        failure_window=seconds(recovery.window),
        initial_backoff=seconds(recovery.initial_backoff),
        max_backoff=seconds(recovery.max_backoff),
        deadline=seconds(spec.update.deadline),
        down_to_needed=spec.disruption.when_no_capacity == "DownToNeeded",
        changes_allowed=spec.pause == "None",
    )
    # One that is only suspected stands: it is neither replaced nor taken for idle, whatever an update wants.
    standing = (group_life.UNREACHABLE, "Serving")
    serving = frozenset(name for name, judgement in judgements.items() if judgement.reason in standing)
    marked = [_as_marked(group, judgements[group.name], snapshot.now) for group in snapshot.groups]
    restless = displaced(marked, snapshot.nodes, notices) if spec.disruption.on_cordon == "Migrate" else {}
    return plan_rollout(
        marked,
        serving,
        snapshot.stray_incarnations,
        snapshot.shortages,
        policy,
        snapshot.now,
        _jitter(snapshot),
        restless,
    )


def _jitter(snapshot: Snapshot) -> float:
    """In [0, 1), always the same for one deployment, other for others."""
    return zlib.crc32(snapshot.deployment.metadata.uid.encode()) / 2**32


def _as_marked(group: Group, judgement: Judgement, now: float) -> Group:
    """The group as it will be once this pass's mark is written, so that a lost one is replaced in the same pass."""
    for action in judgement.actions:
        if isinstance(action, Mark) and labels.LIFECYCLE in action.labels:
            lifecycle = action.labels[labels.LIFECYCLE]
            return replace(group, lifecycle=lifecycle, failed_at=now if lifecycle == labels.FAILED else group.failed_at)
    return group


def _failovers(snapshot: Snapshot, judgements: Mapping[str, Judgement]) -> dict[str, dict[str, str]]:
    found = {}
    for group in snapshot.groups:
        successors = [
            (other, judgements[other.name])
            for other in snapshot.groups
            if other.group == group.group and other.incarnation > group.incarnation
        ]
        record = failover_of(group, judgements[group.name], successors, snapshot.facts, snapshot.now)
        if record:
            found[group.name] = record
    return found


def _group_orders(
    group: Group, judgement: Judgement, snapshot: Snapshot, failover: Mapping[str, str] | None
) -> list[Action]:
    """The record comes before the mark: a commit without the UIDs it is about would lose a member unseen."""
    orders: list[Action] = [Restore(member) for member in group.members if member.lost_labels]
    if group.lost_labels or group.lost_annotations:
        orders.append(Mark(group, group.lost_labels, group.lost_annotations))
    status = group_life.group_status(group, judgement, snapshot.now, failover)
    if status != group.recorded:
        orders.append(Record(group, status))
    orders += judgement.actions
    return orders


def _children(snapshot: Snapshot, wanted: Wanted) -> list[Action]:
    """Objects every deployment needs, where they are missing or say something else."""
    reference = DeploymentRef.of(snapshot.deployment)
    manifests: list[Mapping[str, Any]] = [*render_services(reference), render_disruption_budget(reference)]
    if any(group.alive and group.config_map == wanted.template.config_map_name for group in snapshot.groups):
        manifests.append(render_config_map(wanted.template))
    manifests += [
        render_group_service(group.manifest) for group in snapshot.groups if group.alive and group.wanted_members > 1
    ]
    found = snapshot.children
    orders: list[Action] = []
    for manifest in manifests:
        have = found.get((manifest["kind"], manifest["metadata"]["name"]))
        # An immutable object of a name that is made from its content has the content, or is not there.
        said = {"metadata": manifest["metadata"]} if manifest.get("immutable") else manifest
        if have is None or mend(said, have):
            orders.append(Ensure(manifest))
    return orders


def _left_over(snapshot: Snapshot, wanted: Wanted) -> list[Action]:
    """ConfigMaps that no incarnation refers to any more; while one does not say what it runs, none."""
    if not all(group.config_map for group in snapshot.groups):
        return []
    used = {group.config_map for group in snapshot.groups} | {wanted.template.config_map_name}
    return [
        DeleteConfigMap(name, str(manifest["metadata"]["uid"]))
        for (kind, name), manifest in snapshot.children.items()
        if kind == "ConfigMap" and name not in used and "deletionTimestamp" not in manifest["metadata"]
    ]


def _questions(groups: tuple[Group, ...], judgements: Mapping[str, Judgement]) -> tuple[tuple[Member, Ask], ...]:
    asked = ((group.leader, _question(group, judgements[group.name])) for group in groups)
    return tuple((leader, what) for leader, what in asked if leader is not None and what is not None)


def _question(group: Group, judgement: Judgement) -> Ask | None:
    leader = group.leader
    if judgement.needs_answer:
        return Ask.DRAINED if group.lifecycle == labels.RETIRING else Ask.FIRST
    proven = leader is not None and leader.token_restarts == leader.restarts
    watched = proven and group.lifecycle == labels.COMMITTED and judgement.state is not group_life.State.FAILED
    return Ask.PROGRESS if watched else None


def _soonest(delays: list[float | None]) -> float | None:
    known = [delay for delay in delays if delay is not None]
    return max(0.0, min(known)) if known else None
