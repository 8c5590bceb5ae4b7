"""The life of one replica group as a pure function: what is seen of it in, its state and the next orders out.

    Reserved -> Starting -> Warming -> Serving -> Draining -> gone;  any failure -> Failed

Invariants:
- A group is Serving only after its leader produced a token in this container life; that fact lives on the leader pod
  itself, so it survives a restart of the operator and a wiped status.
- The part of the state that decides (reserved, committed, retiring, failed) lives in a label of the ReplicaGroup.
- Before the commit a missing member is still to be created; after it a missing member is a failure.
- A failed group loses its traffic first; its members are deleted only when evidence that names them was read back, and
  a leader that can still answer has drained, or had its time to.
- Every call may be the last before a crash: the orders of one call are safe to carry out in part, and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from berth import labels
from berth.api.replicagroup import MAX_MEMBERS
from berth.core.actions import (
    Action,
    Create,
    DeleteGroup,
    DeleteMember,
    Drain,
    Mark,
    Resume,
    SetServing,
    Ungate,
)
from berth.core.conditions import READY, Condition, merge
from berth.core.failures import (
    ALONE,
    IN_PLACE,
    MAX_EVIDENCE_TEXT,
    UNREACHABLE,
    Failure,
    GroupPolicy,
    Surroundings,
    describe,
    evidence,
    find_failure,
    first_to_fail,
    lost_from_sight,
    newly_restarted,
    suspicion,
)
from berth.core.observed import Answer, Contact, Group, Member
from berth.core.timestamps import timestamp

FAILED_MEMBER_GRACE_SECONDS = 5
"""Long enough for a clean exit, short enough that the replacement can inherit the GPUs."""
ROUTING_SETTLE_SECONDS = 2.0
"""A leader without requests has drained only once Services stopped routing to it: kube-proxy syncs every second."""
HEARD_WITHIN_SECONDS = 15.0
"""What a leader said of its requests counts for so long: a few looks of the monitor."""
ANSWERS_STILL = frozenset({"GPUUnhealthy", "NodeDeleted", "Requested"})
"""Reasons to give up a group whose leader may well answer until it is deleted: a machine often outlives its Node."""
LONGEST_FAREWELL_SECONDS = 30.0
"""So long at most such a leader finishes what it has."""
FORCE_AFTER_SECONDS = 30.0
"""How long after its time a pod on a silent node is given before it is removed by force, where the user allows that."""
AWAITING_FLIP = "AwaitingFlip"
"""Proven, and without requests until its whole move is."""
RESUMING = "Resuming"
LOOK_AGAIN_SECONDS = 1.0
"""How soon a group is looked at again that waits for its leader's first word."""
BIND_TIMEOUT_SECONDS = 60.0
"""A member pinned to a planned node that is still unbound after this lost a race: everything is released."""


class State(StrEnum):
    """`status.state` of a ReplicaGroup."""

    RESERVED = "Reserved"
    STARTING = "Starting"
    WARMING = "Warming"
    SERVING = "Serving"
    DRAINING = "Draining"
    FAILED = "Failed"


@dataclass(frozen=True)
class Judgement:
    """What one look at a group says."""

    state: State
    reason: str
    """CamelCase, stable."""
    message: str
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    needs_answer: bool = False
    """The leader is worth asking: for a first token, or whether it has drained."""
    evidence: Mapping[str, Any] | None = None
    """What was just seen of a failure; None keeps what is recorded."""

    @property
    def serving(self) -> bool:
        return self.state is State.SERVING


def judge(
    group: Group,
    answer: Answer | None,
    policy: GroupPolicy,
    now: float,
    manifests: Sequence[Mapping[str, Any]] | None,
    around: Surroundings = ALONE,
) -> Judgement:
    """State of `group` and the next orders for it.

    `manifests` are its pods as they are to be created, or None when its template is no longer wanted, so that a group
    whose pods were never completed is released instead.
    """
    if group.lifecycle == labels.FAILED:
        return _failed(group, answer, policy, now, around)
    if group.lifecycle == labels.RETIRING:
        return _draining(group, answer, policy, now)
    if group.lifecycle == labels.RESERVED:
        judgement = _reserved(group, now, manifests)
    else:
        judgement = _committed(group, answer, policy, now, around)
    unearned = [order for order in _unearned(group) if order not in judgement.actions]
    return replace(judgement, actions=(*unearned, *judgement.actions)) if unearned else judgement


def retire(group: Group, now: float) -> tuple[Action, ...]:
    """Orders that put a group on its way out: no new requests, then the mark that starts the drain."""
    return (*_cut(group), Mark(group, {labels.LIFECYCLE: labels.RETIRING}, {labels.RETIRED_AT: timestamp(now)}))


def _cut(group: Group) -> tuple[Action, ...]:
    return tuple(SetServing(member, False) for member in group.members if member.serving)


def _unearned(group: Group) -> tuple[Action, ...]:
    """Cuts where the serving label stands without a token: a container that restarted, or somebody else's hand."""
    return tuple(
        SetServing(member, False)
        for member in group.members
        if member.serving and not (member.leader and member.token_restarts == member.restarts)
    )


def _reserved(group: Group, now: float, manifests: Sequence[Mapping[str, Any]] | None) -> Judgement:
    if manifests is None or any(member.deleting for member in group.members):
        return Judgement(State.RESERVED, "Released", "no longer wanted", retire(group, now))
    present = {member.name for member in group.members}
    missing = [manifest for manifest in manifests if manifest["metadata"]["name"] not in present]
    if missing:
        message = f"creating {len(missing)} of {group.wanted_members} pods"
        return Judgement(
            State.RESERVED, "CreatingMembers", message, tuple(Create(group, manifest) for manifest in missing)
        )
    return Judgement(
        State.RESERVED, "MembersCreated", "all pods exist", (Mark(group, {labels.LIFECYCLE: labels.COMMITTED}, {}),)
    )


def _committed(group: Group, answer: Answer | None, policy: GroupPolicy, now: float, around: Surroundings) -> Judgement:
    failure = find_failure(group, policy, now, around) or lost_from_sight(group, answer, now, around)
    if failure is not None:
        return fail(group, failure, answer, now)
    forgiven = newly_restarted(group)
    kept = group.role == labels.OUTGOING
    judgement = _kept(group, answer) if kept else _progress(group, answer, policy, now, around)
    if forgiven is None:
        return judgement
    mark = Mark(group, {}, {labels.ACCEPTED_RESTART: f"{forgiven.ends}@{timestamp(now)}"})
    restart = Failure(IN_PLACE, f"container of {forgiven.name} restarted: {describe(forgiven)}", forgiven)
    seen = evidence(restart, answer, now)
    return Judgement(State.WARMING, IN_PLACE, restart.message, (*_cut(group), mark), needs_answer=True, evidence=seen)


def _progress(group: Group, answer: Answer | None, policy: GroupPolicy, now: float, around: Surroundings) -> Judgement:
    """State of a committed group that nothing is wrong with."""
    gated = [member for member in group.members if member.gated]
    if gated:
        actions = tuple(Ungate(member) for member in gated)
        return Judgement(State.STARTING, "Ungating", f"{len(gated)} pods wait for their group", actions)
    unbound = [member for member in group.members if member.node is None]
    if unbound:
        return _unbound(group, unbound, policy, now)
    stopped = [member for member in group.members if member.phase != "Running" or member.down]
    leader = group.leader
    if leader is not None and _drains(leader, answer):
        message = f"{leader.name} is told to take requests again"
        return Judgement(State.WARMING, RESUMING, message, (Resume(leader),))
    if stopped or leader is None or not leader.ready:
        return _not_ready(stopped[0] if stopped else leader)
    proven = leader.token_restarts == leader.restarts
    if not proven and not _answered(leader, answer):
        message = answer.message if answer and answer.message else f"waiting for a token from {leader.name}"
        return Judgement(State.WARMING, "NoTokenYet", message, needs_answer=True)
    if group.role in (labels.INCOMING, labels.RETURNING) and not leader.serving:
        return Judgement(State.WARMING, AWAITING_FLIP, "answers with tokens; gets requests with the others of its move")
    doubt = suspicion(group, answer, around)
    if doubt and around.others_serve:
        return Judgement(State.WARMING, UNREACHABLE, doubt, _cut(group))
    if around.others_serve and unheard(group, answer):
        message = f"waiting to hear whether {leader.name} takes requests"
        return Judgement(State.WARMING, RESUMING, message, requeue_after=LOOK_AGAIN_SECONDS)
    flip = () if leader.serving and proven else (SetServing(leader, True),)
    return Judgement(State.SERVING, "Serving", "answers with tokens", flip)


def _kept(group: Group, answer: Answer | None) -> Judgement:
    """An old group that a move has left, whole and without requests: until the verdict it can have them back."""
    leader = group.leader
    # One that restarted has no requests to give up, and must not be found draining when it is asked for a token again.
    proven = leader is not None and leader.token_restarts == leader.restarts
    told = (Drain(leader),) if leader is not None and proven and not _drains(leader, answer) else ()
    message = "gets no requests; kept until its move is judged"
    return Judgement(State.DRAINING, "AwaitingVerdict", message, (*_cut(group), *told))


def unheard(group: Group, answer: Answer | None) -> bool:
    """Whether it served, has no requests, and nothing is known of this life: it may have been told to drain before a
    restart of Berth. While another one serves it waits to be asked."""
    leader = group.leader
    if leader is None or leader.serving or leader.token_restarts != leader.restarts:
        return False
    if answer is None or (answer.uid, answer.restarts) != (leader.uid, leader.restarts):
        return True
    return not (answer.reached or answer.unreachable)


def _drains(leader: Member, answer: Answer | None) -> bool:
    return answer is not None and (answer.uid, answer.restarts) == (leader.uid, leader.restarts) and answer.draining


def _unbound(group: Group, unbound: Sequence[Member], policy: GroupPolicy, now: float) -> Judgement:
    """Time alone proves nothing: only a pod that the scheduler refused has lost its node to somebody.

    Where Berth plans no nodes a pool may be growing, and the group waits; but one that stands in part for too long
    gives everything back, since two such groups could wait for each other.
    """
    since = group.waiting_since if group.waiting_since is not None else now
    left = since + (BIND_TIMEOUT_SECONDS if group.planned_nodes else policy.growth_timeout) - now
    refused = next((member for member in unbound if member.unschedulable), None)
    bounded = bool(group.planned_nodes) or len(unbound) < group.wanted_members
    if bounded and refused is not None and left <= 0:
        where = "its planned node" if group.planned_nodes else "a node"
        message = f"{refused.name} was not bound to {where}: {refused.unschedulable}"
        return Judgement(State.STARTING, "BindTimeout", message, retire(group, now))
    message = refused.unschedulable if refused else f"waiting for the scheduler to bind {unbound[0].name}"
    requeue_after = left if bounded and left > 0 else None
    return Judgement(State.STARTING, "Unscheduled", message, requeue_after=requeue_after)


def _not_ready(member: Member | None) -> Judgement:
    served_before = member is not None and member.leader and member.token_restarts == member.restarts
    if member is None:
        return Judgement(State.STARTING, "Starting", "waiting for the leader")
    if member.waiting_reason and member.waiting_reason != "ContainerCreating":
        detail = f"{member.name}: {member.waiting_reason}: {member.waiting_message}".rstrip(": ")
        return Judgement(State.STARTING, member.waiting_reason, detail)
    if served_before:
        return Judgement(State.WARMING, "LeaderNotReady", f"{member.name} stopped being ready")
    return Judgement(State.STARTING, "Loading", f"waiting for {member.name} to start and load the model")


def _answered(leader: Member, answer: Answer | None) -> bool:
    return (
        answer is not None
        and (answer.uid, answer.restarts) == (leader.uid, leader.restarts)
        and answer.token_at is not None
    )


def fail(group: Group, failure: Failure, answer: Answer | None, now: float) -> Judgement:
    """Declare a group lost: traffic off, then the mark, then the evidence; deletion waits until it was read back."""
    mark = Mark(
        group,
        {labels.LIFECYCLE: labels.FAILED},
        {
            labels.FAILED_AT: timestamp(now),
            labels.FAILURE_REASON: failure.reason,
            labels.FAILURE_MESSAGE: failure.message[:MAX_EVIDENCE_TEXT],
        },
    )
    seen = evidence(failure, answer, now)
    return Judgement(State.FAILED, failure.reason, failure.message, (*_cut(group), mark), evidence=seen)


def _failed(group: Group, answer: Answer | None, policy: GroupPolicy, now: float, around: Surroundings) -> Judgement:
    failed_at = group.failed_at if group.failed_at is not None else now
    reason = group.failure_reason or "Failed"
    message = str(group.recorded_evidence.get("message") or group.failure_message or reason)
    recorded = bool(group.recorded_evidence) and all(member.uid in group.recorded_uids for member in group.members)
    seen = None
    if not group.recorded_evidence:
        seen = evidence(Failure(reason, message, first_to_fail(group)), None, failed_at)
    actions: list[Action] = list(_cut(group))
    if group.failed_at is None:
        actions.append(Mark(group, {}, {labels.FAILED_AT: timestamp(now)}))
    leader, farewell = group.leader, _farewell(group, answer, policy, now, around) if recorded else 0.0
    if leader is not None and farewell > 0:
        actions.append(Drain(leader))
    elif recorded:
        actions += [
            DeleteMember(member, FAILED_MEMBER_GRACE_SECONDS) for member in group.members if not member.deleting
        ]
        if policy.force_delete:
            actions += [DeleteMember(member, 0) for member in group.members if _stuck(member, around, now)]
    expires_in = failed_at + policy.recovery_window - now
    if expires_in <= 0 and not group.members:
        actions.append(DeleteGroup(group))
    return Judgement(
        State.FAILED,
        reason,
        message,
        tuple(actions),
        requeue_after=max(min(expires_in, farewell) if farewell > 0 else expires_in, 1.0),
        needs_answer=farewell > 0,
        evidence=seen,
    )


def _farewell(group: Group, answer: Answer | None, policy: GroupPolicy, now: float, around: Surroundings) -> float:
    """Seconds that the leader of a lost group may still take to finish its requests; 0 where it cannot, or has."""
    leader = group.leader
    if group.failure_reason not in ANSWERS_STILL or group.failed_at is None or leader is None:
        return 0.0
    whole = len(group.members) == group.wanted_members and not any(
        member.deleting or member.ended or member.down for member in group.members
    )
    node = around.of(leader)
    lost = node.contact is Contact.SILENT or (answer is not None and answer.unreachable)
    if not whole or lost or leader.token_restarts != leader.restarts or _finished(leader, answer, group.failed_at):
        return 0.0
    return max(0.0, group.failed_at + min(policy.drain_timeout, LONGEST_FAREWELL_SECONDS) - now)


def _finished(leader: Member, answer: Answer | None, since: float) -> bool:
    """It was told at `since` to take no more requests, has none, and routing has had time to forget it."""
    if answer is None or answer.uid != leader.uid:
        return False
    return answer.in_flight == 0 and answer.at >= since + ROUTING_SETTLE_SECONDS


def _has_requests(leader: Member, answer: Answer | None, now: float) -> bool:
    """As it said itself, just now."""
    if answer is None or (answer.uid, answer.restarts) != (leader.uid, leader.restarts):
        return False
    return bool(answer.in_flight) and now - answer.at < HEARD_WITHIN_SECONDS


def _stuck(member: Member, around: Surroundings, now: float) -> bool:
    """Nobody on its node will ever confirm its end."""
    node = around.of(member)
    overdue = member.deleted_at is not None and now >= member.deleted_at + FORCE_AFTER_SECONDS
    return overdue and node.contact is Contact.SILENT and around.given_up(member) and not node.frozen


def _draining(group: Group, answer: Answer | None, policy: GroupPolicy, now: float) -> Judgement:
    if not group.members:
        return Judgement(State.DRAINING, "Drained", "no pods left", (DeleteGroup(group),))
    if group.retired_at is None:
        return Judgement(State.DRAINING, "Draining", "no new requests from now on", retire(group, now))
    retired_at = group.retired_at
    left = retired_at + policy.drain_timeout - now
    leader = group.leader
    idle = leader is None or leader.token_restarts is None or _finished(leader, answer, retired_at)
    # Not to be ready is part of draining; where nothing is heard from it any more it is the end of it.
    idle = idle or not (leader is None or leader.ready or _has_requests(leader, answer, now))
    remaining = [member for member in group.members if not member.deleting]
    if idle or left <= 0:
        deletes = tuple(DeleteMember(member, None) for member in remaining)
        return Judgement(State.DRAINING, "Stopping", "drained" if idle else "drainTimeout", (*_cut(group), *deletes))
    orders = (*_cut(group), Drain(leader)) if leader is not None and remaining else _cut(group)
    return Judgement(
        State.DRAINING, "Draining", "finishing its requests", orders, requeue_after=left, needs_answer=True
    )


def group_status(
    group: Group, judgement: Judgement, now: float, failover: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The whole status of a ReplicaGroup after this look; members seen once stay recorded."""
    uids = [member.uid for member in group.members]
    earlier = [uid for uid in group.recorded.get("memberUIDs") or () if uid not in uids]
    ready = [Condition(READY, judgement.serving, judgement.reason, judgement.message)]
    status: dict[str, Any] = {
        "state": judgement.state.value,
        "conditions": merge(ready, group.recorded.get("conditions") or (), 1, now),
    }
    if earlier or uids:
        status["memberUIDs"] = (uids + earlier)[:MAX_MEMBERS]
    seen = judgement.evidence or group.recorded_evidence
    if seen:
        status["evidence"] = dict(seen)
    if failover:
        status["failover"] = dict(failover)
    return status
