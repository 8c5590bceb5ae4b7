"""What of a status may wait a moment, and what may not."""

from __future__ import annotations

from typing import Any

import pytest

from berth.core.progress import only_a_step, only_progress


def status(*, message: str = "Starting", ready: str = "False", state: str = "Starting", **more: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "reason": "GroupsStarting", "message": message}
    return {
        "observedGeneration": 1,
        "summary": {"message": message},
        "groups": [{"name": "g0", "state": state}],
        "groupCounts": {state: 1},
        "conditions": [{**condition, "lastTransitionTime": "2026-11-28T12:00:00Z", "observedGeneration": 1}],
        **more,
    }


def test_how_far_a_start_has_come_is_progress() -> None:
    assert only_progress(status(), status(message="waiting for a token", state="Warming"))


@pytest.mark.parametrize(
    "news",
    [
        status(ready="True"),
        status(state="Failed"),
        status(state="Draining"),
        status(observedGeneration=2),
        status(readyReplicas=1),
        status(moves={"current": {"id": "m1"}}),
        {key: value for key, value in status().items() if key != "conditions"},
    ],
)
def test_what_else_changes_is_told_at_once(news: dict[str, Any]) -> None:
    assert not only_progress(status(), news)
    assert not only_progress(news, status())


def test_a_wiped_status_is_no_progress() -> None:
    assert not only_progress({}, status())


def record(state: str, reason: str, *, ready: str = "False", **more: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "reason": reason, "message": reason}]
    return {"state": state, "conditions": conditions, "memberUIDs": ["a"], **more}


def test_a_step_of_a_group_is_progress_and_the_rest_is_not() -> None:
    before = record("Starting", "Loading")
    assert only_a_step(before, record("Warming", "NoTokenYet"))
    for news in (
        record("Serving", "Serving", ready="True"),
        record("Failed", "MemberFailed"),
        record("Warming", "NoTokenYet", memberUIDs=["a", "b"]),
        record("Warming", "NoTokenYet", evidence={"cause": "OOMKilled"}),
        {"state": "Warming", "memberUIDs": ["a"]},
        {"state": "Thinking", "conditions": [{}]},
        {},
    ):
        assert not only_a_step(before, news)
        assert not only_a_step(news, before)
