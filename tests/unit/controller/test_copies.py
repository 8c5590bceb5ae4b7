"""What is believed of a deployment without asking, for how long, and which news is none."""

from __future__ import annotations

from typing import Any

import pytest

from berth.controller.copies import BELIEVED_SECONDS, Copies
from berth.controller.world import deployment_key

KEY = deployment_key("ns", "llama")


def deployment(version: int, *, groups: int = 1, status: str = "", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": "llama", "resourceVersion": str(version), **metadata},
        "spec": {"groups": groups},
        "status": {"message": status},
    }


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def copies(clock: Clock) -> Copies:
    return Copies(clock)


def test_what_was_told_is_believed_for_a_while(copies: Copies, clock: Clock) -> None:
    assert copies.get(KEY) is None
    assert copies.tell(deployment(5, managedFields=[{"manager": "kubectl"}]))
    assert copies.get(KEY) == deployment(5)
    clock.now += BELIEVED_SECONDS
    assert copies.get(KEY) is None


def test_older_news_changes_nothing_and_wakes_all_the_same(copies: Copies) -> None:
    copies.tell(deployment(5, groups=2))
    assert copies.tell(deployment(4, groups=1)), "an edit may have been overtaken by the answer to a write"
    assert copies.get(KEY) == deployment(5, groups=2)


def test_the_echo_of_an_own_write_is_no_news(copies: Copies) -> None:
    copies.tell(deployment(5))
    copies.wrote(deployment(5), deployment(7, status="Ready"))
    assert copies.get(KEY) == deployment(7, status="Ready")
    assert not copies.tell(deployment(7, status="Ready"))


@pytest.mark.parametrize(
    "edit", [{"groups": 2}, {"annotations": {"berth.dev/request": "x"}}, {"deletionTimestamp": "now"}]
)
def test_an_edit_under_an_own_write_is_news_even_if_only_the_write_is_seen(
    copies: Copies, edit: dict[str, Any]
) -> None:
    """The watch was away in between and shows the last state alone."""
    copies.tell(deployment(5))
    copies.wrote(deployment(5), deployment(7, status="Ready", **edit))
    assert copies.tell(deployment(7, status="Ready", **edit))


def test_what_somebody_else_did_to_a_status_is_news(copies: Copies) -> None:
    copies.wrote(deployment(5), deployment(7, status="Ready"))
    assert copies.tell(deployment(8))
    assert copies.get(KEY) == deployment(8)


def test_a_dropped_one_is_asked_for(copies: Copies) -> None:
    copies.wrote(deployment(5), deployment(7))
    copies.drop(KEY)
    assert copies.get(KEY) is None
    assert copies.tell(deployment(7)), "nobody has looked at this one since"
