"""What of all that is seen makes a committed group lost, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from berth import labels
from berth.api.replicagroup import GroupAllocation
from berth.core import actions as do
from berth.core.failures import GroupPolicy, Surroundings, doubted_node
from berth.core.groups import FORCE_AFTER_SECONDS, LONGEST_FAREWELL_SECONDS, Judgement, State, judge
from berth.core.nodes import NodeView, Taint
from berth.core.observed import AcceptedRestart, Answer, Contact, Group, Member, NodeFacts, Sickness, Termination
from berth.core.timestamps import precise
from berth.engine.contract import Exit

NOW = 1_000_000.0
POLICY = GroupPolicy(recovery_window=3600, drain_timeout=300)
LEADER = Member(
    "llama-g0-1-0", "uid-0", 0, NOW - 600, "Running", "n0", "10.0.0.1", ready=True, serving=True, token_restarts=0
)
WELL = Answer("uid-0", 0, token_at=NOW - 500, in_flight=3, at=NOW - 2)
MISSED = replace(WELL, misses=2, at=NOW - 15)


def group(*members: Member, **changes: Any) -> Group:
    members = members or (LEADER,)
    uids = [member.uid for member in members]
    base = Group(
        "llama-g0-1",
        "group-uid",
        0,
        1,
        labels.COMMITTED,
        GroupAllocation(pool="h100", variant="bf16"),
        "hash",
        len(members),
        NOW - 600,
        "h100",
        recorded={"memberUIDs": uids},
        members=members,
    )
    return replace(base, **changes)


def look(
    subject: Group | None = None,
    answer: Answer | None = WELL,
    *,
    others: bool = True,
    ready: bool = True,
    taints: tuple[Taint, ...] = (),
    unschedulable: bool = False,
    policy: GroupPolicy = POLICY,
    **facts: Any,
) -> Judgement:
    node = NodeView("n0", ready=ready, taints=taints, unschedulable=unschedulable)
    around = Surroundings({"n0": node}, {"n0": NodeFacts(**facts)}, others)
    return judge(subject or group(), answer, policy, NOW, None, around)


def cuts(judgement: Judgement) -> bool:
    return any(isinstance(order, do.SetServing) and not order.serving for order in judgement.actions)


def marked(judgement: Judgement) -> str:
    marks = [order for order in judgement.actions if isinstance(order, do.Mark) and labels.LIFECYCLE in order.labels]
    return marks[0].labels[labels.LIFECYCLE] if marks else ""


def test_a_sick_gpu_ends_the_group_that_holds_it() -> None:
    judgement = look(sick={"uid-0": Sickness("node n0: condition X is True (NvidiaXID79Error)", NOW - 4)})
    assert (judgement.state, judgement.reason) == (State.FAILED, "GPUUnhealthy")
    assert cuts(judgement)
    assert marked(judgement) == labels.FAILED
    assert judgement.evidence is not None
    assert judgement.evidence["node"] == "n0"
    assert judgement.evidence["xid"] == 79
    assert judgement.evidence["occurredAt"] == precise(NOW - 4)
    assert look(sick={"another": Sickness("GPU gpu-4 is unhealthy", NOW)}).serving


def test_a_deleted_node_ends_its_groups_even_the_last_one() -> None:
    assert look(None, MISSED, gone=True, others=False).reason == "NodeDeleted"


def test_a_pod_thrown_off_by_a_taint_says_which() -> None:
    deleted = group(replace(LEADER, deleting=True))
    judgement = look(deleted, taints=(Taint("maintenance", "now", "NoExecute"),))
    assert judgement.reason == "MemberEvicted"
    assert judgement.message.endswith("node n0 has taint maintenance=now:NoExecute")
    assert look(deleted).reason == "MemberDeleted"


def test_a_pod_thrown_off_by_a_drain_is_no_failing_of_its_group() -> None:
    drained = look(group(replace(LEADER, deleting=True)), unschedulable=True)
    assert (drained.reason, drained.message.endswith("node n0 is cordoned")) == ("NodeDrained", True)
    vanished = look(group(LEADER, planned_nodes=("n0",), members=()), unschedulable=True)
    assert (vanished.reason, vanished.message) == ("NodeDrained", "1 of 1 pods are gone: node n0 is cordoned")
    assert vanished.evidence["node"] == "n0", "also where no pod is left to tell"


def test_a_late_node_whose_leader_is_silent_loses_its_requests_and_nothing_else() -> None:
    judgement = look(None, MISSED, contact=Contact.LATE)
    assert (judgement.state, judgement.reason) == (State.WARMING, "Unreachable")
    assert cuts(judgement)
    assert marked(judgement) == ""


def test_it_gets_them_back_when_it_answers() -> None:
    cut = group(replace(LEADER, serving=False))
    judgement = look(cut, WELL, contact=Contact.LATE)
    assert judgement.serving
    assert judgement.actions == (do.SetServing(cut.members[0], True),)


@pytest.mark.parametrize(
    ("contact", "answer", "back"),
    [
        (Contact.UNKNOWN, None, False),
        (Contact.UNKNOWN, replace(MISSED, at=0.0), False),
        (Contact.LATE, None, False),
        (Contact.UNKNOWN, WELL, True),
        (Contact.FRESH, replace(MISSED, misses=1000), True),  # a policy that blocks Berth is no reason
    ],
)
def test_one_that_was_suspected_has_its_requests_back_once_it_or_its_node_is_heard_from(
    contact: Contact, answer: Answer | None, back: bool
) -> None:
    """A Berth that has just begun knows no Lease yet, and nobody's answer: that is not the end of a suspicion."""
    recorded = {"memberUIDs": ["uid-0"], "conditions": [{"type": "Ready", "status": "False", "reason": "Unreachable"}]}
    suspected = group(replace(LEADER, serving=False), recorded=recorded)
    judgement = look(suspected, answer, contact=contact)
    assert judgement.serving == back
    assert look(suspected, answer, contact=contact, others=False).serving, "the last one is not cut off"
    turned = replace(suspected, recorded={"memberUIDs": ["uid-0"]})
    heard = answer is not None
    assert look(turned, answer, contact=contact).serving == heard, "one whose label somebody took was never suspected"
    assert look(turned, answer, contact=contact, others=False).serving


def test_one_without_requests_of_which_nothing_is_known_gets_none_beside_others_for_it_may_be_draining() -> None:
    returned = group(replace(LEADER, serving=False))
    assert not look(returned, None).serving
    assert not look(returned, replace(WELL, restarts=1)).serving, "that was another life"
    drains = look(returned, replace(WELL, draining=True))
    assert (drains.serving, drains.actions) == (False, (do.Resume(returned.members[0]),))
    assert look(returned, WELL).serving
    assert look(returned, None, others=False).serving


def test_a_silent_node_whose_leader_is_silent_is_lost() -> None:
    assert look(None, MISSED, contact=Contact.SILENT).reason == "NodeSilent"


@pytest.mark.parametrize("contact", [Contact.LATE, Contact.SILENT])
@pytest.mark.parametrize("answer", [WELL, replace(WELL, misses=1), None])
def test_a_silent_lease_alone_proves_nothing(contact: Contact, answer: Answer | None) -> None:
    assert look(None, answer, contact=contact).serving
    assert look(None, answer, contact=contact, ready=False).serving


@pytest.mark.parametrize("contact", [Contact.FRESH, Contact.UNKNOWN])
@pytest.mark.parametrize("others", [True, False])
def test_a_leader_that_does_not_answer_on_a_node_that_lives_is_left_alone(contact: Contact, others: bool) -> None:
    """A policy that blocks Berth, a mesh that refuses it, an overload."""
    judgement = look(None, replace(MISSED, misses=1000), contact=contact, others=others)
    assert judgement.serving
    assert not judgement.actions


@pytest.mark.parametrize("contact", [Contact.LATE, Contact.SILENT])
def test_the_last_group_that_serves_keeps_its_requests_on_network_evidence(contact: Contact) -> None:
    judgement = look(None, MISSED, contact=contact, others=False)
    assert judgement.serving
    assert not cuts(judgement)


def test_it_is_given_up_when_the_control_plane_has_given_its_node_up() -> None:
    assert look(None, MISSED, contact=Contact.SILENT, others=False, ready=False).reason == "NodeSilent"
    assert look(None, MISSED, contact=Contact.LATE, others=False, ready=False).serving
    assert look(None, MISSED, contact=Contact.FRESH, others=False, ready=False).serving


@pytest.mark.parametrize("others", [True, False])
def test_while_evacuations_are_frozen_nothing_is_cut_or_given_up(others: bool) -> None:
    for contact in Contact:
        judgement = look(None, MISSED, contact=contact, frozen=True, others=others, ready=False)
        assert judgement.serving
        assert not judgement.actions


def test_a_leader_that_was_never_reached_cannot_fail_by_silence() -> None:
    loading = group(replace(LEADER, ready=False, serving=False, token_restarts=None))
    never = Answer("uid-0", 0, misses=50)
    assert look(loading, never, contact=Contact.SILENT).state is State.STARTING
    assert look(loading, None, contact=Contact.SILENT).state is State.STARTING


@pytest.mark.parametrize("life", [{"token_restarts": None}, {"restarts": 1}])
def test_a_group_that_was_loading_on_a_node_that_died_does_not_wait_for_ever(life: dict[str, Any]) -> None:
    """Nobody asks a leader that is not ready, or that has yet to prove itself after a restart in place."""
    forgiven = AcceptedRestart(1, NOW - 60)
    loading = group(replace(LEADER, ready=False, serving=False, **life), accepted_restart=forgiven)
    assert look(loading, None, contact=Contact.SILENT, ready=False).reason == "NodeSilent"
    assert look(loading, None, contact=Contact.FRESH, ready=False).state is State.STARTING


def test_a_restarted_berth_knows_by_the_token_that_a_leader_was_reached() -> None:
    assert look(None, Answer("uid-0", 0, misses=2), contact=Contact.SILENT).reason == "NodeSilent"
    other_life = Answer("uid-0", 1, misses=2)
    assert look(None, other_life, contact=Contact.SILENT).serving, "said of another life of the container"


def test_no_progress_and_no_token_is_a_hang_whatever_the_health_endpoint_says() -> None:
    frozen = replace(WELL, frozen_for=15.0)
    assert look(None, replace(frozen, canary_missed=True)).reason == "EngineFrozen"
    assert look(None, replace(frozen, canary_missed=True), others=False).reason == "EngineFrozen"
    assert look(None, frozen).serving, "a token came"
    assert look(None, replace(WELL, frozen_for=7.0, canary_missed=True)).serving, "the launcher has its say first"
    assert look(None, replace(WELL, canary_missed=True)).serving, "busy, but it moves"


def failed(member: Member, **changes: Any) -> Group:
    evidence = {"cause": "NodeSilent", "message": "", "observedAt": "2026-01-01T00:00:00Z"}
    recorded = {"memberUIDs": [member.uid], "evidence": evidence}
    return group(member, lifecycle=labels.FAILED, failed_at=NOW - 60, recorded=recorded, **changes)


def test_pods_on_a_silent_node_are_removed_by_force_only_where_the_user_allows_it() -> None:
    stuck = failed(replace(LEADER, serving=False, deleting=True, deleted_at=NOW - FORCE_AFTER_SECONDS))
    allowed = replace(POLICY, force_delete=True)
    forced = look(stuck, None, contact=Contact.SILENT, ready=False, policy=allowed)
    assert forced.actions == (do.DeleteMember(stuck.members[0], 0),)
    assert look(stuck, None, contact=Contact.SILENT, ready=False).actions == ()
    for spared in (
        {"contact": Contact.FRESH, "ready": False},
        {"contact": Contact.SILENT, "ready": True},
        {"contact": Contact.SILENT, "ready": False, "frozen": True},
    ):
        assert look(stuck, None, policy=allowed, **spared).actions == ()
    fresh = failed(replace(LEADER, serving=False, deleting=True, deleted_at=NOW - 1))
    assert look(fresh, None, contact=Contact.SILENT, ready=False, policy=allowed).actions == ()


def given_up(*members: Member, reason: str = "GPUUnhealthy", ago: float = 5.0, **changes: Any) -> Group:
    """Cut off and marked, and its evidence was read back."""
    members = members or (replace(LEADER, serving=False),)
    recorded = {"memberUIDs": [each.uid for each in members], "evidence": {"cause": reason, "message": "words"}}
    marks = {"lifecycle": labels.FAILED, "failure_reason": reason, "failed_at": NOW - ago, "recorded": recorded}
    return group(*members, **{**marks, **changes})


BUSY = Answer("uid-0", 0, token_at=NOW - 500, in_flight=2, at=NOW - 1)


@pytest.mark.parametrize("reason", ["GPUUnhealthy", "NodeDeleted", "Requested"])
def test_a_leader_that_still_answers_finishes_its_requests_before_its_pods_go(reason: str) -> None:
    worker = replace(LEADER, name="llama-g0-1-1", uid="uid-1", index=1, serving=False)
    lost = given_up(replace(LEADER, serving=False), worker, reason=reason)
    for unsure in (BUSY, None, replace(BUSY, in_flight=0, at=NOW - 4), replace(BUSY, uid="another", in_flight=0)):
        judgement = look(lost, unsure, gone=reason == "NodeDeleted")
        assert judgement.actions == (do.Drain(lost.members[0]),)
        assert judgement.needs_answer
        assert judgement.requeue_after == LONGEST_FAREWELL_SECONDS - 5
    deletions = tuple(do.DeleteMember(member, 5) for member in lost.members)
    assert look(lost, replace(BUSY, in_flight=0)).actions == deletions
    crashed_between = replace(lost, members=(replace(lost.members[0], deleting=True), worker))
    assert look(crashed_between, BUSY).actions == deletions[1:]


def test_a_farewell_has_an_end() -> None:
    over = given_up(ago=LONGEST_FAREWELL_SECONDS)
    assert look(over, BUSY).actions == (do.DeleteMember(over.members[0], 5),)
    short = replace(POLICY, drain_timeout=4)
    assert look(given_up(), BUSY, policy=short).actions == (do.DeleteMember(over.members[0], 5),)


def test_evidence_comes_before_the_farewell() -> None:
    unread = given_up(recorded={"memberUIDs": ["uid-0"]})
    assert look(unread, BUSY).actions == ()


@pytest.mark.parametrize(
    ("member", "answer", "reason", "facts"),
    [
        ({}, BUSY, "EngineFrozen", {}),
        ({}, BUSY, "NodeSilent", {}),
        ({}, BUSY, "MemberRestarted", {}),
        ({}, replace(BUSY, misses=2), "Requested", {}),
        ({}, BUSY, "Requested", {"contact": Contact.SILENT}),
        ({}, replace(BUSY, misses=2), "NodeDeleted", {"gone": True}),
        ({"down": True}, BUSY, "GPUUnhealthy", {}),
        ({"restarts": 1}, BUSY, "GPUUnhealthy", {}),
        ({"token_restarts": None}, None, "Requested", {}),
        ({"phase": "Failed"}, BUSY, "GPUUnhealthy", {}),
    ],
)
def test_nobody_waits_for_a_leader_that_cannot_finish(
    member: dict[str, Any], answer: Answer | None, reason: str, facts: dict[str, Any]
) -> None:
    lost = given_up(replace(LEADER, serving=False, **member), reason=reason)
    judgement = look(lost, answer, **facts)
    assert judgement.actions == (do.DeleteMember(lost.members[0], 5),)
    assert not judgement.needs_answer


CRASHED = Termination(exit_code=137, reason="Error", finished_at=NOW - 1)
FORGIVEN = AcceptedRestart(1, NOW - 60)


def down(**changes: Any) -> Member:
    """Its container has ended, and the kubelet waits before it starts it again."""
    waiting = {"down": True, "ready": False, "waiting_reason": "CrashLoopBackOff", "last_termination": CRASHED}
    return replace(LEADER, **{**waiting, **changes})


def test_a_container_that_ended_is_forgiven_when_it_ends_and_not_when_it_is_back() -> None:
    judgement = look(group(down()))
    assert judgement.reason == "RestartedInPlace"
    assert cuts(judgement)
    (mark,) = [order for order in judgement.actions if isinstance(order, do.Mark)]
    assert mark.annotations[labels.ACCEPTED_RESTART].startswith("1@")
    waiting = group(down(serving=False), accepted_restart=FORGIVEN)
    assert look(waiting).state is State.STARTING
    back = group(replace(LEADER, restarts=1, serving=False, last_termination=CRASHED), accepted_restart=FORGIVEN)
    assert look(back).reason == "NoTokenYet"


def test_the_next_end_is_a_failure_before_the_kubelets_back_off_is_over() -> None:
    again = group(down(restarts=1, token_restarts=1), accepted_restart=FORGIVEN)
    assert look(again).reason == "RestartedAgain"


def test_a_group_of_several_pods_is_lost_when_a_container_ends() -> None:
    worker = replace(LEADER, name="llama-g0-1-1", uid="uid-1", index=1, serving=False, down=True)
    judgement = look(group(LEADER, replace(worker, last_termination=CRASHED)))
    assert judgement.reason == "MemberRestarted"
    assert judgement.evidence is not None
    assert judgement.evidence["member"] == 1


SAYS_GONE = Termination(exit_code=Exit.MEMBER_LOST, message="MemberLost: member 1 is gone", finished_at=NOW - 1)
SAYS_LEADER_GONE = replace(SAYS_GONE, message="MemberLost: the leader is gone")


@pytest.mark.parametrize(
    ("leader", "worker", "lost", "words"),
    [
        (SAYS_GONE, CRASHED, 1, "container of llama-g0-1-1 ended: Error, exit code 137"),
        (SAYS_GONE, None, 1, "container of llama-g0-1-0 ended: ended, exit code 72, MemberLost: member 1 is gone"),
        (CRASHED, SAYS_LEADER_GONE, 0, "container of llama-g0-1-0 ended: Error, exit code 137"),
        (None, SAYS_LEADER_GONE, 0, "container of llama-g0-1-1 ended: ended, exit code 72, MemberLost: the leader"),
        (SAYS_GONE, SAYS_LEADER_GONE, 1, "container of llama-g0-1-1 ended: ended, exit code 72"),
        (CRASHED, replace(CRASHED, finished_at=NOW - 2), 1, "container of llama-g0-1-1 ended: Error"),
    ],
)
def test_evidence_names_the_member_that_was_lost_and_not_those_that_followed_it(
    leader: Termination | None, worker: Termination | None, lost: int, words: str
) -> None:
    members = [
        replace(LEADER, last_termination=leader, down=leader is not None),
        replace(
            LEADER,
            name="llama-g0-1-1",
            uid="uid-1",
            index=1,
            node="n1",
            serving=False,
            last_termination=worker,
            down=worker is not None,
        ),
    ]
    judgement = look(group(*members))
    assert judgement.reason == "MemberRestarted"
    assert judgement.message.startswith(words)
    assert judgement.evidence is not None
    assert (judgement.evidence["member"], judgement.evidence["node"]) == (lost, f"n{lost}")
    told = members[lost].last_termination
    assert judgement.evidence.get("exitCode") == (told.exit_code if told else None)
    assert doubted_node(judgement.evidence, ()) == (f"n{lost}" if told is None else "")


def test_a_node_is_not_doubted_for_longer_than_its_kubelet_takes_to_tell_how_the_member_ended() -> None:
    leader = replace(LEADER, last_termination=SAYS_GONE, down=True)
    worker = replace(LEADER, name="llama-g0-1-1", uid="uid-1", index=1, node="n1", serving=False)
    evidence = look(group(leader, worker)).evidence
    assert evidence is not None
    assert doubted_node(evidence, (leader, worker)) == "n1"
    assert doubted_node(evidence, (leader,)) == "n1", "others can delete a pod, too"
    assert doubted_node(evidence, (replace(worker, phase="Failed"),)) == "n1", "the control plane says that, too"
    assert doubted_node(evidence, (leader, replace(worker, last_termination=CRASHED))) == ""


def test_a_container_that_is_down_gets_no_requests_although_the_pod_still_says_ready() -> None:
    stale = group(down(ready=True, serving=False), accepted_restart=FORGIVEN)
    assert look(stale).actions == ()


def test_a_hang_began_before_the_launcher_ended_it() -> None:
    words = "Hang: no progress for 5.2s with 3 requests in flight (steps 1, tokens 1)"
    hung = Termination(exit_code=70, message=words, finished_at=NOW - 1)
    judgement = look(group(down(last_termination=hung)), replace(WELL, at=NOW - 3))
    assert judgement.evidence is not None
    assert judgement.evidence["occurredAt"] == precise(NOW - 1 - 5.2)
    killed = look(group(down(last_termination=replace(CRASHED, finished_at=NOW - 300))), replace(WELL, at=NOW - 3))
    assert killed.evidence is not None
    assert killed.evidence["occurredAt"] == precise(NOW - 3), "a node's clock is not believed against an answer"
