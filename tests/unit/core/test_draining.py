"""A group on its way out: no new requests, those it has are finished, then its pods go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from berth import labels
from berth.api.replicagroup import GroupAllocation
from berth.core import actions as do
from berth.core.failures import GroupPolicy
from berth.core.groups import Judgement, State, judge
from berth.core.observed import Answer, Group, Member

NOW = 1_000_000.0
POLICY = GroupPolicy(recovery_window=3600, drain_timeout=300)
LEADER = Member("llama-g0-1-0", "uid-0", 0, NOW - 600, "Running", "n0", "10.0.0.1", ready=True, token_restarts=0)
BUSY = Answer("uid-0", 0, token_at=NOW - 500, in_flight=3, at=NOW - 2)
DELETED = (do.DeleteMember(LEADER, None),)


def look(member: Member = LEADER, answer: Answer | None = BUSY, *, ago: float = 60.0, **changes: Any) -> Judgement:
    allocation = GroupAllocation(pool="h100", variant="bf16")
    group = Group(
        "llama-g0-1", "group-uid", 0, 1, labels.RETIRING, allocation, "hash", 1, NOW - 600, "h100", members=(member,)
    )
    return judge(replace(group, retired_at=NOW - ago, **changes), answer, POLICY, NOW, None)


@pytest.mark.parametrize("ready", [True, False])
def test_it_is_told_to_drain_and_waited_for_whether_or_not_it_calls_itself_ready(ready: bool) -> None:
    """A leader that drains is not ready: that is how Services forget it."""
    leader = replace(LEADER, ready=ready)
    judgement = look(leader)
    assert (judgement.state, judgement.reason, judgement.actions) == (State.DRAINING, "Draining", (do.Drain(leader),))
    assert (judgement.needs_answer, judgement.requeue_after) == (True, 240)


def test_its_pods_go_with_their_own_grace_when_its_requests_have_ended() -> None:
    done = look(answer=replace(BUSY, in_flight=0))
    assert (done.reason, done.message, done.actions) == ("Stopping", "drained", DELETED)
    just_cut = look(answer=replace(BUSY, in_flight=0, at=NOW - 59))
    assert just_cut.reason == "Draining", "a request may still be on its way through a Service that has not heard of it"


def test_drain_timeout_ends_it_whatever_it_has() -> None:
    late = look(ago=300)
    assert (late.message, late.actions) == ("drainTimeout", DELETED)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"ready": False}, replace(BUSY, at=NOW - 20)),
        ({"ready": False}, replace(BUSY, restarts=1)),
        ({"ready": False}, None),
        ({"token_restarts": None}, BUSY),
    ],
)
def test_nobody_waits_for_one_that_has_gone_quiet_or_never_served(
    changes: dict[str, Any], answer: Answer | None
) -> None:
    leader = replace(LEADER, **changes)
    assert look(leader, answer).actions == (do.DeleteMember(leader, None),)
