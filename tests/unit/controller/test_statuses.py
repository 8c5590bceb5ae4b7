"""What is taken out of a status that somebody else wrote into."""

from __future__ import annotations

from typing import Any

import pytest

from berth.controller.statuses import surplus

WANTED = {"needed": 1, "moves": {"recent": [{"id": "m0"}]}, "conditions": [{"type": "Ready"}]}


@pytest.mark.parametrize(
    ("found", "patch"),
    [
        ({}, {}),
        ({"availability": {"predicted": "1"}}, {"availability": None}),
        ({"moves": {"recent": [{"id": "m0"}], "current": {"id": "m1"}}}, {"moves": {"current": None}}),
        ({"conditions": [{"type": "Ready"}, {"type": "Foreign"}]}, {}),
        ({"needed": {"a": 1}}, {}),
    ],
)
def test_only_what_nobody_wants_is_taken_out(found: dict[str, Any], patch: dict[str, Any]) -> None:
    assert surplus(WANTED, WANTED | found) == patch
