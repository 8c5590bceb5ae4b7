"""The record of a failover: each phase once, and nothing that was only suspected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from berth import labels
from berth.core.failover import failover_of, is_false_alarm, latest, news
from berth.core.failures import UNREACHABLE
from berth.core.groups import Judgement, State
from berth.core.observed import Contact, Group, NodeFacts
from berth.core.timestamps import precise
from tests.unit.failures.test_lost_groups import LEADER, NOW, group

SERVING = Judgement(State.SERVING, "Serving", "")


def evidence(cause: str, at: float) -> dict[str, Any]:
    return {"cause": cause, "message": "", "occurredAt": precise(at), "observedAt": precise(NOW)}


def failing(cause: str, at: float) -> Judgement:
    return Judgement(State.FAILED, cause, "", evidence=evidence(cause, at))


def successor(lifecycle: str, *, serving: bool = False) -> tuple[Group, Judgement]:
    leader = replace(LEADER, uid="next", serving=serving)
    judgement = SERVING if serving else Judgement(State.STARTING, "Loading", "")
    return group(leader, name="llama-g0-2", incarnation=2, lifecycle=lifecycle), judgement


def after(record: dict[str, str], **changes: Any) -> Group:
    """The failed group as it is read back."""
    recorded = {"failover": record, "evidence": evidence("MemberFailed", NOW - 1)}
    return group(lifecycle=labels.FAILED, recorded=recorded, **changes)


STILL_FAILED = Judgement(State.FAILED, "MemberFailed", "")


def test_each_phase_is_written_when_it_is_first_seen_and_then_stays() -> None:
    record = failover_of(group(), failing("MemberFailed", NOW - 1.25), [], {}, NOW)
    assert record == {"at": precise(NOW - 1.25), "detectedAfter": "1.2s", "trafficCutAfter": "1.2s"}
    record = failover_of(after(record), STILL_FAILED, [successor(labels.RESERVED)], {}, NOW + 1)
    assert "replacedAfter" not in record
    record = failover_of(after(record), STILL_FAILED, [successor(labels.COMMITTED)], {}, NOW + 2)
    assert record["replacedAfter"] == "3.2s"
    record = failover_of(after(record), STILL_FAILED, [successor(labels.COMMITTED, serving=True)], {}, NOW + 60)
    assert (record["replacedAfter"], record["restoredAfter"]) == ("3.2s", "61.2s")
    assert failover_of(after(record), STILL_FAILED, [], {}, NOW + 999) == record


def test_a_group_that_got_no_requests_has_none_cut() -> None:
    idle = group(replace(LEADER, serving=False))
    assert set(failover_of(idle, failing("MemberFailed", NOW), [], {}, NOW)) == {"at", "detectedAfter"}


def test_a_cut_on_suspicion_counts_from_the_silence_and_the_failure_after_it_too() -> None:
    facts = {"n0": NodeFacts(contact=Contact.LATE, silent_since=NOW - 13)}
    doubt = Judgement(State.WARMING, UNREACHABLE, "")
    record = failover_of(group(), doubt, [], facts, NOW)
    assert record == {"at": precise(NOW - 13), "trafficCutAfter": "13.0s"}
    suspected = group(replace(LEADER, serving=False), recorded={"failover": record})
    assert failover_of(suspected, doubt, [], facts, NOW + 5) == record
    not_ready = Judgement(State.WARMING, "LeaderNotReady", "")
    assert failover_of(suspected, not_ready, [], facts, NOW + 6) == record, "the control plane gives the node up, too"
    lost = failover_of(suspected, failing("NodeSilent", NOW - 13), [], facts, NOW + 8)
    assert lost == {**record, "detectedAfter": "21.0s"}


def test_a_suspicion_that_was_wrong_leaves_no_record_and_is_a_false_alarm() -> None:
    record = {"at": precise(NOW - 13), "trafficCutAfter": "13.0s"}
    conditions = [{"type": "Ready", "status": "False", "reason": UNREACHABLE}]
    suspected = group(recorded={"failover": record, "conditions": conditions})
    assert failover_of(suspected, SERVING, [], {}, NOW) == {}
    assert is_false_alarm(suspected, SERVING)
    assert not is_false_alarm(suspected, STILL_FAILED)
    assert not is_false_alarm(group(), SERVING)
    assert latest([suspected], {suspected.name: record}) is None


def test_a_restart_in_place_is_restored_by_its_own_token() -> None:
    restarted = Judgement(State.WARMING, "RestartedInPlace", "", evidence=evidence("RestartedInPlace", NOW - 0.5))
    again = replace(LEADER, restarts=1)
    record = failover_of(group(again), restarted, [], {}, NOW)
    assert record == {"at": precise(NOW - 0.5), "detectedAfter": "0.5s", "trafficCutAfter": "0.5s"}
    recorded = {"failover": record, "evidence": evidence("RestartedInPlace", NOW - 0.5)}
    warming = Judgement(State.WARMING, "NoTokenYet", "")
    assert failover_of(group(again, recorded=recorded), warming, [], {}, NOW + 1) == record
    proven = replace(again, token_restarts=1)
    restored = failover_of(group(proven, recorded=recorded), SERVING, [], {}, NOW + 3)
    assert restored == {**record, "restoredAfter": "3.5s"}


def test_news_are_told_once() -> None:
    first = {"at": "a", "detectedAfter": "1.2s"}
    assert news({}, first) == [("detected", 1.2)]
    assert news(first, first) == []
    assert news(first, {**first, "restoredAfter": "60.0s"}) == [("restored", 60.0)]
    assert news(first, {"at": "b", "detectedAfter": "1.2s"}) == [("detected", 1.2)]
    suspected = {"at": "a", "trafficCutAfter": "13.0s"}
    assert news({}, suspected) == [], "maybe a false alarm"
    assert news(suspected, {**suspected, "detectedAfter": "21.0s"}) == [("detected", 21.0), ("traffic_cut", 13.0)]


def test_the_last_failover_is_the_latest_failure() -> None:
    old, new = group(name="a", group=1), group(name="b", group=0, failure_reason="NodeSilent")
    records = {
        "a": {"at": precise(NOW), "detectedAfter": "1.0s"},
        "b": {"at": precise(NOW + 5), "detectedAfter": "2.0s"},
    }
    assert latest([old, new], records) == {"group": "g0", "reason": "NodeSilent", **records["b"]}
