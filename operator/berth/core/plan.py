"""One pass, decided: from everything observed to everything to be done. Pure.

The whole wanted state is compared with the whole observed state at every pass; what happened before matters only
through what can be observed. Order of the orders: traffic off first, then what every deployment needs (Services,
disruption budget, configuration), then groups, then what is left over.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeGuard

from berth import labels
from berth.api.common import seconds
from berth.api.llmdeployment import LLMDeployment
from berth.api.replicagroup import MAX_INCARNATION
from berth.core import groups as group_life
from berth.core.actions import Action, DeleteConfigMap, Ensure, Mark, Record, Reserve, Restore, SetServing
from berth.core.disruption import Notices, displaced
from berth.core.drift import mend
from berth.core.failover import failover_of
from berth.core.failures import (
    UNREACHABLE,
    Failure,
    GroupPolicy,
    Surroundings,
    suspicion,
    vouched_for,
)
from berth.core.groups import Judgement
from berth.core.moves.course import without_strays
from berth.core.moves.machine import DRAINING, Step
from berth.core.moves.memory import remember as remember_moves
from berth.core.moves.underway import Underway, look, underway
from berth.core.moves.underway import orders as move_orders
from berth.core.observed import Answer, Ask, Group, Member, Snapshot
from berth.core.placement.decide import Decision
from berth.core.recovery import RecoveryPolicy
from berth.core.render import (
    DeploymentRef,
    GroupTemplate,
    drain_seconds,
    render_config_map,
    render_disruption_budget,
    render_group_service,
    render_pods,
    render_services,
)
from berth.core.requests import NOTHING, Reply, Request, Wish, answered_at
from berth.core.requests import remember as remember_answer
from berth.core.rollout import Rollout, RolloutPolicy, by_slot, plan_rollout
from berth.core.wanted import Defaults, Wanted, resolve
from berth.errors import InvalidSpec

_SLOT: Final = re.compile("g(0|[1-9][0-9]{0,3})")
LOOK_SECONDS: Final = 15.0
"""How often the verdict on a move is looked for."""


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
    move: Underway | None = None
    """The move under way, or the one that begins now."""
    move_step: Step | None = None
    """Where it stands."""
    reply: Reply | None = None
    """To what a person asks for; None where nobody does."""
    failovers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """How the failover of each group goes, by name of the ReplicaGroup; only those that had one."""
    displaced: Mapping[str, str] = field(default_factory=dict)
    """By name of the ReplicaGroup: why it cannot stay where it is."""


def make_plan(
    snapshot: Snapshot,
    defaults: Defaults,
    needed: Callable[[LLMDeployment, Wanted], int],
    decision: Decision | None = None,
    wish: Wish = NOTHING,
) -> Plan:
    """The plan of one pass.

    `needed` says how many groups must serve, `decision` is the planner's, in mode Auto; `wish` is what is asked for.
    """
    snapshot = replace(snapshot, groups=without_strays(snapshot.groups))
    plan = _plan(snapshot, defaults, needed, decision, wish)
    alive = [group for group in snapshot.groups if group.alive]
    return replace(plan, decision=decision, displaced=displaced(alive, snapshot.nodes, defaults.notices))


def _plan(
    snapshot: Snapshot,
    defaults: Defaults,
    needed: Callable[[LLMDeployment, Wanted], int],
    decision: Decision | None,
    wish: Wish,
) -> Plan:
    deployment = snapshot.deployment
    move = underway(snapshot, defaults, wish.move)
    aside = move.aside(snapshot.groups) if move else frozenset()
    try:
        wanted: Wanted | None = resolve(snapshot, defaults, decision, aside)
        refusal = None
    except InvalidSpec as error:
        wanted, refusal = None, error
    templates = [each.template for each in (wanted, move.incoming if move else None) if each is not None]
    judgements, reply = _judgements(snapshot, templates, wish)
    must_serve = needed(deployment, wanted) if wanted else deployment.spec.replica_groups.min_available
    if move is not None and wanted is not None and move.exchanging(snapshot.groups):
        wanted = replace(wanted, count=max(wanted.count, move.course.start.groups))
        must_serve = max(must_serve, move.course.leaves)
    if deployment.metadata.deletion_timestamp:
        return Plan(judgements=judgements, wanted=wanted, needed=must_serve, refusal=refusal)
    unplaced = Rollout(blocked=decision.shortage if decision else None)
    rollout = _rollout(snapshot, wanted, judgements, must_serve, defaults.notices, aside) if wanted else unplaced
    take_back = wish.request is not None and wish.request.verb == "rollback"
    step = None
    if move is not None and wanted is not None:
        step = look(move, snapshot, judgements, wanted.template.template_hash, must_serve, take_back)
    if take_back:
        reply = _reply_to_rollback(move, step)
    promised = frozenset(new.group for new in rollout.create)
    gpus = len(promised) * wanted.allocation.gpus if wanted else 0
    newcomers = _newcomers(snapshot, move, judgements, defaults.notices, promised, gpus)
    seen = {group.name: group for group in snapshot.groups}
    for group in [seen[each.name] for each in rollout.expired]:
        message = f"did not serve within update.deadline {deployment.spec.update.deadline}"
        failure = Failure("DeadlineExceeded", message)
        judgements[group.name] = group_life.fail(group, failure, _answer(group, snapshot), snapshot.now)
    questions = _questions(snapshot.groups, judgements)
    requeue = _soonest([*(j.requeue_after for j in judgements.values()), rollout.retry_after, _due(step, snapshot.now)])
    if deployment.spec.pause == "All":
        return Plan((), judgements, wanted, must_serve, rollout, refusal, (), requeue)
    failovers = _failovers(snapshot, judgements)
    orders = [
        order
        for group in snapshot.groups
        for order in _group_orders(group, judgements[group.name], snapshot, failovers.get(group.name))
    ]
    actions: list[Action] = [order for order in orders if _is_cut(order)]
    if wanted is not None:
        actions += _children(snapshot, templates)
    actions += [order for order in orders if not _is_cut(order)]
    if wanted is not None:
        for group in rollout.retire:
            actions += group_life.retire(group, snapshot.now)
        actions += [Reserve(new.group, new.incarnation, new.reason) for new in rollout.create]
        if move is not None:
            actions += move_orders(move, step, newcomers, snapshot.now)
        actions += remember_moves(snapshot)
        actions += remember_answer(snapshot)
        actions += _left_over(snapshot, templates)
    return Plan(
        actions=tuple(actions),
        judgements=judgements,
        wanted=wanted,
        needed=must_serve,
        rollout=rollout,
        refusal=refusal,
        questions=questions,
        requeue_after=requeue,
        move=move,
        move_step=step,
        reply=reply,
        failovers=failovers,
    )


def _fail_over(request: Request | None, snapshot: Snapshot, judgements: dict[str, Judgement]) -> Reply | None:
    """Gives up the group that a person names, as if it had failed: once, also if the answer was lost in a crash."""
    if request is None or request.verb != "failover":
        return None
    failure = Failure("Requested", f"asked for: {request.text}")
    for each in snapshot.groups:
        mine = (each.group, each.failure_reason, each.failure_message) == (
            request.group,
            failure.reason,
            failure.message,
        )
        if mine and (each.failed_at or 0.0) >= answered_at(snapshot):
            return Reply("Done", f"{each.name} is given up and replaced")
    group = next((each for each in snapshot.groups if each.group == request.group and each.alive), None)
    if group is None or snapshot.deployment.spec.pause == "All":
        why = "changes are paused" if group is not None else f"there is no group g{request.group}"
        return Reply("Refused", why)
    judgements[group.name] = group_life.fail(group, failure, _answer(group, snapshot), snapshot.now)
    return Reply("Done", f"{group.name} is given up and replaced")


def _reply_to_rollback(move: Underway | None, step: Step | None) -> Reply:
    """Done only once the marks say so: a step that has something else to do first leaves it to a later one."""
    if move is None:
        return Reply("Refused", "no move is under way")
    if step is None:
        return Reply("Waiting", "the spec is not accepted: see condition Accepted")
    if step.phase == DRAINING:
        return Reply("Refused", "the move is over: its old groups are on their way out")
    if step.phase == "Reverting":
        return Reply("Done", "the move is taken back")
    return Reply("Waiting", step.message or "the new groups are just getting their requests")


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


def _judgements(
    snapshot: Snapshot, templates: Sequence[GroupTemplate], wish: Wish
) -> tuple[dict[str, Judgement], Reply | None]:
    """What becomes of each group, and the reply to who asks for a failover.

    First as if none could stand in for another: one that is doubted is cut off or given up, and one that may be
    draining waits to be heard, only where another still gets requests after this pass and nothing speaks against it.
    """
    policy = _group_policy(snapshot)
    around = Surroundings(snapshot.nodes, snapshot.facts)
    judged = {group.name: _judge(group, snapshot, templates, policy, around) for group in snapshot.groups}
    reply = _fail_over(wish.request, snapshot, judged) or wish.reply
    answers = {group.name: _answer(group, snapshot) for group in snapshot.groups}
    doubted = [
        group
        for group in snapshot.groups
        if suspicion(group, answers[group.name], around) or group_life.unheard(group, answers[group.name])
    ]
    if doubted and any(
        judged[group.name].serving and vouched_for(group, answers[group.name]) for group in snapshot.groups
    ):
        around = replace(around, others_serve=True)
        standing = [group for group in doubted if judged[group.name].state is not group_life.State.FAILED]
        judged |= {group.name: _judge(group, snapshot, templates, policy, around) for group in standing}
    return judged, reply


def _judge(
    group: Group, snapshot: Snapshot, templates: Sequence[GroupTemplate], policy: GroupPolicy, around: Surroundings
) -> Judgement:
    manifests = None
    template = next((each for each in templates if _completable(group, each)), None)
    if group.lifecycle == labels.RESERVED and template is not None and group.role != labels.RETURNING:
        manifests = render_pods(template, group.manifest)
    return group_life.judge(group, _answer(group, snapshot), policy, snapshot.now, manifests, around)


def _answer(group: Group, snapshot: Snapshot) -> Answer | None:
    return snapshot.answers.get(group.leader.uid) if group.leader else None


def _completable(group: Group, template: GroupTemplate) -> bool:
    """Whether the pods that are still missing can be made as the others were: same intent, same files."""
    return (group.template_hash, group.config_map) == (template.template_hash, template.config_map_name)


def _rollout(
    snapshot: Snapshot,
    wanted: Wanted,
    judgements: Mapping[str, Judgement],
    needed: int,
    notices: Notices,
    aside: frozenset[str],
    promised: frozenset[int] = frozenset(),
    promised_gpus: int = 0,
) -> Rollout:
    spec = snapshot.deployment.spec
    recovery = spec.replica_groups.recovery
    policy = RolloutPolicy(
        wanted=wanted.count,
        needed=needed,
        template_hash=wanted.template.template_hash,
        gpus_per_group=wanted.allocation.gpus,
        gpu_limit=None if spec.objectives.limits.gpus is None else spec.objectives.limits.gpus - promised_gpus,
        surge=spec.update.surge == "WhenCapacity",
        max_unavailable=spec.update.max_unavailable,
        recovery=RecoveryPolicy(
            recovery.max_failures,
            seconds(recovery.window),
            seconds(recovery.initial_backoff),
            seconds(recovery.max_backoff),
        ),
        deadline=seconds(spec.update.deadline),
        down_to_needed=spec.disruption.when_no_capacity == "DownToNeeded",
        changes_allowed=spec.pause == "None",
    )
    # One that is only suspected stands: it is neither replaced nor taken for idle, whatever an update wants.
    standing = (UNREACHABLE, "Serving")
    serving = frozenset(name for name, judgement in judgements.items() if judgement.reason in standing)
    marked = [_as_marked(group, judgements[group.name], snapshot.now) for group in snapshot.groups]
    restless = displaced(marked, snapshot.nodes, notices) if spec.disruption.on_cordon == "Migrate" else {}
    return plan_rollout(
        marked,
        serving,
        _former_incarnations(snapshot),
        snapshot.shortages,
        policy,
        snapshot.now,
        _jitter(snapshot),
        displaced=restless,
        aside=aside,
        promised=promised,
    )


def _former_incarnations(snapshot: Snapshot) -> dict[int, int]:
    """By slot, the highest incarnation of which pods are left without a ReplicaGroup, or which status tells of.

    A group that somebody deleted may be gone with all its pods before a pass looks: its name is not used again.
    """
    former = dict(snapshot.stray_incarnations)
    for told in (snapshot.raw.get("status") or {}).get("groups") or ():
        if named := _SLOT.fullmatch(str(told.get("name"))):
            slot, incarnation = int(named[1]), told.get("incarnation") or 0
            if incarnation < MAX_INCARNATION:  # or somebody else wrote it, and no name could follow
                former[slot] = max(former.get(slot, 0), incarnation)
    return former


def _jitter(snapshot: Snapshot) -> float:
    """In [0, 1), always the same for one deployment, other for others."""
    return zlib.crc32(snapshot.deployment.metadata.uid.encode()) / 2**32


def _newcomers(
    snapshot: Snapshot,
    move: Underway | None,
    judgements: Mapping[str, Judgement],
    notices: Notices,
    promised: frozenset[int],
    promised_gpus: int,
) -> Rollout:
    """Groups that a move still has to bring in, lost ones again; in no slot, and on no GPU, that the placement in force
    gets in this very pass."""
    if move is None or move.incoming is None:
        return Rollout()
    coming = move.newcomers(snapshot.groups)
    others = frozenset(group.name for group in snapshot.groups if group.alive and group.name not in coming)
    wanted = replace(move.incoming, count=move.course.to.groups)
    return _rollout(snapshot, wanted, judgements, 0, notices, others, promised, promised_gpus)


def _due(step: Step | None, now: float) -> float | None:
    """When the phase of a move is given up, or its verdict looked for again."""
    if step is None:
        return None
    left = step.deadline - now if step.deadline is not None else LOOK_SECONDS
    return max(1.0, min(left, LOOK_SECONDS)) if step.phase == "Judging" else max(1.0, left)


def _is_cut(order: Action) -> TypeGuard[SetServing]:
    return isinstance(order, SetServing) and not order.serving


def _as_marked(group: Group, judgement: Judgement, now: float) -> Group:
    """The group as it will be once this pass's orders for it are carried out.

    So a lost one is replaced in the same pass, and nobody leaves in favour of one that is being cut off.
    """
    cut = {order.member.uid for order in judgement.actions if _is_cut(order)}
    group = replace(
        group, members=tuple(replace(each, serving=False) if each.uid in cut else each for each in group.members)
    )
    for action in judgement.actions:
        if isinstance(action, Mark) and labels.LIFECYCLE in action.labels:
            lifecycle = action.labels[labels.LIFECYCLE] or group.lifecycle
            return replace(group, lifecycle=lifecycle, failed_at=now if lifecycle == labels.FAILED else group.failed_at)
    return group


def _failovers(snapshot: Snapshot, judgements: Mapping[str, Judgement]) -> dict[str, dict[str, str]]:
    found = {}
    lives = by_slot(snapshot.groups)
    for group in snapshot.groups:
        successors = [
            (other, judgements[other.name]) for other in lives[group.group] if other.incarnation > group.incarnation
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


def _children(snapshot: Snapshot, templates: Sequence[GroupTemplate]) -> list[Action]:
    """Objects every deployment needs, where they are missing or say something else."""
    reference = DeploymentRef.of(snapshot.deployment)
    manifests: list[Mapping[str, Any]] = [*render_services(reference), render_disruption_budget(reference)]
    mounted = {group.config_map for group in snapshot.groups if group.alive}
    named = {template.config_map_name: template for template in templates}
    manifests += [render_config_map(template) for name, template in named.items() if name in mounted]
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


def _left_over(snapshot: Snapshot, templates: Sequence[GroupTemplate]) -> list[Action]:
    """ConfigMaps that no incarnation refers to any more; while one does not say what it runs, none."""
    if not all(group.config_map for group in snapshot.groups):
        return []
    used = {group.config_map for group in snapshot.groups} | {template.config_map_name for template in templates}
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
        return Ask.DRAINED if group.lifecycle in (labels.RETIRING, labels.FAILED) else Ask.FIRST
    if group.lifecycle != labels.COMMITTED or judgement.state is group_life.State.FAILED:
        return None
    # Whether one that was told to take requests again does so is heard from its page, proven or not.
    proven = leader is not None and leader.token_restarts == leader.restarts
    return Ask.PROGRESS if proven or judgement.reason == group_life.RESUMING else None


def _soonest(delays: list[float | None]) -> float | None:
    known = [delay for delay in delays if delay is not None]
    return max(0.0, min(known)) if known else None
