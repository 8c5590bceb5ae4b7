"""What of all that is seen makes a replica group lost, and the evidence of it. Pure.

Facts are enough by themselves: a container that ended, a pod or node that is gone, a GPU that its own device plugin
calls broken. Everything else needs signs that agree, because each alone has an innocent cause. What the network shows
alone gives nothing up: a node counts as lost when its Lease is silent *and* its leader, which was reached before, no
longer answers; and the last group that serves only when the control plane has given its node up too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from berth.core.disruption import nodes_of
from berth.core.nodes import NodeView
from berth.core.observed import Answer, Contact, Group, Member, NodeFacts
from berth.core.timestamps import precise, timestamp
from berth.engine.contract import Exit

NODE_FAILURES: Final = frozenset({"GPUUnhealthy", "NodeSilent", "NodeDeleted"})
"""Reasons of a failure that lie with the node: others should not be placed there for a while."""
DRAINED: Final = "NodeDrained"
"""Thrown off a node that is being drained, as happens to pods that are not ready yet: no failing of the group."""
IN_PLACE: Final = "RestartedInPlace"
UNREACHABLE: Final = "Unreachable"
"""Cut off on suspicion; it gets requests again as soon as it answers."""
FROZEN_SECONDS: Final = 12.0
"""No progress for so long although work is outstanding, and no token for Berth either: more than twice what the
launcher itself waits, which ends a hung engine first and knows more."""
MAX_EVIDENCE_TEXT: Final = 2048
"""Characters kept of a container's last words, so that a ReplicaGroup stays small."""
MAX_WORDS: Final = 1024
LONGEST_SKEW: Final = 3600.0
"""A time that a node tells is believed at most so long before Berth noticed."""
_HUNG_FOR: Final = re.compile(r" for ([0-9]{1,4}\.[0-9])s")
_GONE: Final = re.compile(r"(?:member ([0-9]{1,4})|the leader) is gone")
_XID: Final = re.compile(r"xid\D{0,3}([0-9]{1,3})", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """Why a group is lost."""

    reason: str
    """CamelCase, stable."""
    message: str
    member: Member | None = None
    """The member that failed first, where one did."""
    at: float | None = None
    """When it happened (Unix seconds), where that is known."""
    node: str = ""
    """Where it happened, if no member is left to tell."""


@dataclass(frozen=True)
class GroupPolicy:
    """Limits of one group's life, in seconds."""

    recovery_window: float
    drain_timeout: float
    force_delete: bool = False
    """Pods on silent nodes may be removed by force (`recovery.forceDelete: NodeUnreachable`)."""
    growth_timeout: float = 1200.0
    """How long a group whose nodes others choose may stand there in part before it gives back what it has."""


@dataclass(frozen=True)
class Surroundings:
    """What else has a say in the fate of one group."""

    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    others_serve: bool = False
    """Another group of the deployment serves, after this pass as well, and nothing speaks against it."""

    def of(self, member: Member) -> NodeFacts:
        """What was found out about a member's node; neutral where nothing was."""
        return self.facts.get(member.node or "") or NodeFacts()

    def given_up(self, member: Member) -> bool:
        """The control plane itself calls the member's node not ready."""
        node = self.nodes.get(member.node or "")
        return node is not None and not node.ready

    def evicts(self, name: str | None) -> tuple[str, str]:
        """(reason, words) of why pods are thrown off a node: a taint, or that it is drained; empty if they are not."""
        node = self.nodes.get(name or "")
        if node is None:
            return "", ""
        taint = next((str(taint) for taint in node.taints if taint.effect == "NoExecute"), "")
        if taint:
            return "MemberEvicted", f"node {name} has taint {taint}"
        return (DRAINED, f"node {name} is cordoned") if node.unschedulable else ("", "")


ALONE: Final = Surroundings()


def find_failure(group: Group, policy: GroupPolicy, now: float, around: Surroundings = ALONE) -> Failure | None:
    """The fact by which a committed group is lost, or None. No time-outs, no network."""
    for member in group.members:
        if group.recorded_uids and member.uid not in group.recorded_uids:
            return Failure("MemberReplaced", f"pod {member.name} is not the one this group was made of")
        failure = _member_lost(group, member, around)
        if failure is not None:
            return failure
    if len(group.members) < group.wanted_members:
        missing = f"{group.wanted_members - len(group.members)} of {group.wanted_members} pods are gone"
        for node in nodes_of(group):
            reason, words = around.evicts(node)
            if reason:
                return Failure(reason, f"{missing}: {words}", first_to_fail(group), node=node)
        return Failure("MemberMissing", missing, first_to_fail(group))
    for member in group.members:
        if member.ends and group.wanted_members > 1:
            first = first_to_fail(group) or member
            told = first if first.ends else member
            return Failure("MemberRestarted", f"container of {told.name} ended: {describe(told)}", first)
        forgiven = group.accepted_restart
        if forgiven and member.ends > forgiven.restarts and now - forgiven.at < policy.recovery_window:
            return Failure("RestartedAgain", f"container of {member.name} ended again: {describe(member)}", member)
    return None


def _member_lost(group: Group, member: Member, around: Surroundings) -> Failure | None:
    node = around.of(member)
    if member.ended:
        first = first_to_fail(group) or member
        told = first if first.ended else member
        return Failure("MemberFailed", f"pod {told.name} ended: {describe(told)}", first)
    if node.gone:
        return Failure("NodeDeleted", f"node {member.node} of pod {member.name} does not exist any more", member)
    if member.deleting:
        return _deleted(member, *around.evicts(member.node))
    if member.uid in node.sick:
        return Failure("GPUUnhealthy", node.sick[member.uid].words, member, node.sick[member.uid].since)
    return None


def _deleted(member: Member, reason: str, why: str) -> Failure:
    if reason:
        return Failure(reason, f"pod {member.name} is being deleted: {why}", member, member.deletion_asked_at)
    return Failure("MemberDeleted", f"pod {member.name} is being deleted", member, member.deletion_asked_at)


def suspicion(group: Group, answer: Answer | None, around: Surroundings) -> str:
    """Why requests to the group may be lost although nothing is proven, in words; empty without any doubt."""
    leader = group.leader
    if leader is None:
        return ""
    node = around.of(leader)
    if node.frozen or node.contact is Contact.FRESH:
        return ""
    if _unreachable(leader, answer) and node.contact is not Contact.UNKNOWN:
        return f"node {leader.node} is {node.contact.value} and {leader.name} does not answer"
    if was_suspected(group) and not leader.serving and not _heard(leader, answer):
        return f"{leader.name} was cut off on suspicion, and neither it nor node {leader.node} was heard from since"
    return ""


def vouched_for(group: Group, answer: Answer | None) -> bool:
    """It gets requests, and its leader missed nothing of late: who is not heard from stands in for nobody.

    Not even where its node is: one that renews its Lease a little later than another would be the proof against it in a
    partition that cut both off.
    """
    leader = group.leader
    if leader is None or not (group.alive and leader.serving):
        return False
    if answer is None or (answer.uid, answer.restarts) != (leader.uid, leader.restarts):
        return True
    return not (answer.misses or answer.canary_missed)


def was_suspected(group: Group) -> bool:
    """It was cut off on suspicion when its state was recorded last, maybe by a process before this one."""
    return any(each.get("reason") == UNREACHABLE for each in group.recorded.get("conditions") or ())


def _heard(leader: Member, answer: Answer | None) -> bool:
    """It answers, in this container's life."""
    if answer is None or (answer.uid, answer.restarts) != (leader.uid, leader.restarts):
        return False
    return answer.reached and not answer.unreachable


def _unreachable(leader: Member, answer: Answer | None) -> bool:
    """It was reached before, in this container's life, and is not any more."""
    if answer is None or (answer.uid, answer.restarts) != (leader.uid, leader.restarts):
        return False
    return answer.unreachable and (answer.reached or leader.token_restarts == leader.restarts)


def lost_from_sight(group: Group, answer: Answer | None, now: float, around: Surroundings) -> Failure | None:
    """A group lost by several independent signs, none of which would do alone."""
    leader = group.leader
    if leader is None:
        return None
    if answer is not None and answer.uid == leader.uid and answer.canary_missed and answer.frozen_for >= FROZEN_SECONDS:
        words = f"no progress for {answer.frozen_for:.0f}s with work outstanding, and no token for Berth"
        return Failure("EngineFrozen", words, leader, now - answer.frozen_for)
    unreachable = _unreachable(leader, answer)
    for member in group.members:
        node = around.of(member)
        if node.contact is not Contact.SILENT or node.frozen:
            continue
        given_up = around.given_up(member) and (unreachable or leader.token_restarts != leader.restarts)
        if given_up or (unreachable and member.leader and around.others_serve):
            who = "its leader does not answer" if unreachable else "the control plane calls it not ready"
            words = f"node {member.node} of pod {member.name} is silent and {who}"
            return Failure("NodeSilent", words, member, node.silent_since)
    return None


def newly_restarted(group: Group) -> Member | None:
    """The member of a one-pod group whose restart in place is still to be forgiven."""
    forgiven = group.accepted_restart.restarts if group.accepted_restart else 0
    return next((member for member in group.members if member.ends > forgiven), None)


def describe(member: Member) -> str:
    """How a member ended, in a few words."""
    ended = member.last_termination
    if ended is None:
        return member.pod_reason or member.pod_message or "reason unknown"
    parts = [ended.reason or "ended"]
    if ended.exit_code is not None:
        parts.append(f"exit code {ended.exit_code}")
    if ended.signal:
        parts.append(f"signal {ended.signal}")
    if ended.message:
        parts.append(ended.message.strip().splitlines()[-1][:MAX_EVIDENCE_TEXT])
    return ", ".join(parts)


def evidence(failure: Failure, answer: Answer | None, now: float) -> dict[str, Any]:
    """`status.evidence` of a ReplicaGroup: what is known of the failure and of the member that failed first."""
    member, message = failure.member, failure.message
    known: dict[str, Any] = {
        "cause": failure.reason,
        "message": message[:MAX_EVIDENCE_TEXT],
        "occurredAt": precise(_occurred_at(failure, answer, now)),
        "observedAt": timestamp(now),
    }
    if failure.reason == "GPUUnhealthy":
        known["gpu"] = message[:MAX_WORDS]
        numbered = _XID.search(message)
        known |= {"xid": int(numbered.group(1))} if numbered else {}
    node = member.node if member is not None else failure.node
    if node:
        known["node"] = node
    if member is None:
        return known
    known |= {"member": member.index, "restartCount": member.restarts}
    ended = member.last_termination
    if ended is not None:
        known |= {"exitCode": ended.exit_code} if ended.exit_code is not None else {}
        known |= {"signal": ended.signal} if ended.signal else {}
    if not message:
        known["message"] = describe(member)[:MAX_EVIDENCE_TEXT]
    return known


def _occurred_at(failure: Failure, answer: Answer | None, now: float) -> float:
    """When it happened, as far as is known; a node's clock is not believed against what Berth saw itself."""
    at, member = failure.at, failure.member
    if at is None and member is not None and member.last_termination is not None:
        ended = member.last_termination
        at = ended.finished_at
        if at is not None and answer is not None and answer.uid == member.uid:
            at = max(at, answer.at)
        hung = _HUNG_FOR.search(ended.message) if ended.exit_code == Exit.HANG else None
        if hung:  # the launcher ended it after it had watched it for so long
            at = (at if at is not None else now) - float(hung.group(1))
    return min(max(at if at is not None else now, now - LONGEST_SKEW), now)


def first_to_fail(group: Group) -> Member | None:
    """The member to blame: the earliest that ended by itself, else the one that those which ended call gone.

    Without any end it is one that is being deleted.
    """
    ended = _ended(group)
    by_themselves = [member for member in ended if not _followed(member)]
    if not by_themselves and (named := _named(group, ended)) is not None:
        return named
    if ended:
        return min(by_themselves or ended, key=lambda member: (_ended_at(member), member.index))
    return next((member for member in group.members if member.ended or member.deleting), None)


def doubted_node(evidence: Mapping[str, Any], members: Sequence[Member]) -> str:
    """Where a member vanished, as others saw, while nobody told of its end: the node may have gone with it. Or empty.

    From the evidence, since those who said so are deleted soon. Among `members`, what is left of the group, the one
    that vanished may have ended after all: only the kubelet of its node tells that.
    """
    told = any(member.index == evidence.get("member") and member.last_termination for member in members)
    vanished = "exitCode" not in evidence and not told and _GONE.search(str(evidence.get("message", "")))
    return str(evidence.get("node", "")) if vanished else ""


def _ended(group: Group) -> list[Member]:
    """Members of which an end is known that was not forgiven."""
    forgiven = group.accepted_restart.restarts if group.accepted_restart else 0
    return [
        member
        for member in group.members
        if member.last_termination is not None and (member.ended or member.ends > forgiven)
    ]


def _followed(member: Member) -> bool:
    """It ended because another member was gone: that is never where it began."""
    return member.last_termination is not None and member.last_termination.exit_code == Exit.MEMBER_LOST


def _named(group: Group, ended: Sequence[Member]) -> Member | None:
    """Whom those that followed call gone, in the words of the launcher (`berth.engine.members`)."""
    for member in filter(_followed, ended):
        found = _GONE.search(member.last_termination.message) if member.last_termination else None
        if found:
            index = int(found.group(1) or 0)
            return next((each for each in group.members if each.index == index and each is not member), None)
    return None


def _ended_at(member: Member) -> float:
    at = member.last_termination.finished_at if member.last_termination else None
    return at if at is not None else float("inf")
