"""Label selectors mean what kubectl's do."""

from __future__ import annotations

import pytest

from berth.core.selectors import Selector

SEARCH = {"team": "search", "example.com/tier": "prod"}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("team=search", True),
        ("team == search", True),
        ("team=ads", False),
        ("team!=ads", True),
        ("other!=x", True),
        ("team in (ads, search)", True),
        ("team in (ads)", False),
        ("team notin (ads)", True),
        ("team notin (search,ads)", False),
        ("other notin (a)", True),
        ("team", True),
        ("!team", False),
        ("! other", True),
        ("team=search,example.com/tier in (prod,test), !other", True),
        ("team=search,example.com/tier=test", False),
        ("team=", False),
    ],
)
def test_selects(text: str, selected: bool) -> None:
    assert Selector.parse(text).matches(SEARCH) == selected


@pytest.mark.parametrize(
    "text",
    ["team=a b", "team in a", "team in (a", "=a", "team=a,", ",team=a", "team=ä", "a b", "team=" + 64 * "x", "(a)"],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|not a label value|ends with a comma"):
        Selector.parse(text)
