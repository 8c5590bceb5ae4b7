"""What `kubectl berth` prints, byte for byte. UPDATE_GOLDEN=1 rewrites the files; read the difference then."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.cli.kubectl import requests, status_text
from berth.cli.kubectl.cluster import Told
from berth.cli.kubectl.events import lines as event_lines
from berth.cli.kubectl.events import sorted_events
from berth.cli.kubectl.explain import lines as explain_lines
from berth.cli.kubectl.requests import Wanted
from berth.cli.kubectl.top import entry
from berth.cli.kubectl.top import lines as top_lines
from berth.cli.output import age, printable
from tests.unit.plugin import cases

GOLDEN = Path(__file__).parents[2] / "data" / "plugin"

SCREENS: dict[str, Callable[[], Iterator[str]]] = {
    "status-healthy": lambda: status_text.lines(cases.healthy(), cases.NOW, cases.LIVE, "$"),
    "status-without-live-figures": lambda: status_text.lines(cases.healthy(), cases.NOW),
    "status-moving": lambda: status_text.lines(cases.moving(), cases.NOW, cases.LIVE, "EUR"),
    "status-refused": lambda: status_text.lines(cases.refused(), cases.NOW),
    "status-new": lambda: status_text.lines(cases.fresh(), cases.NOW),
    "explain-healthy": lambda: explain_lines(cases.healthy(), "$"),
    "explain-moving": lambda: explain_lines(cases.moving()),
    "explain-refused": lambda: explain_lines(cases.refused()),
    "explain-new": lambda: explain_lines(cases.fresh()),
    "events": lambda: event_lines(sorted_events(cases.EVENTS, cases.healthy()), cases.NOW),
    "failover": lambda: requests.failover_lines(cases.healthy(), "g4", cases.NOW),
    "failover-of-one-too-many": lambda: requests.failover_lines(cases.moving(), "g1", cases.NOW),
    "move": lambda: _move(Wanted("a100-40"), "$", 24),
    "move-without-room": lambda: _move(Wanted("a100-40", groups=3), "", 12),
    "move-by-hand": lambda: _move(Wanted("a100-40", "int4-awq", 4), "$", None),
    "move-back": lambda: requests.back_lines(cases.moving()),
    "top": lambda: _top(groups=False),
    "top-of-all": lambda: _top(namespaces=True, groups=True),
    "top-of-nothing": lambda: top_lines([], namespaces=False, groups=False),
    "events-none": lambda: event_lines([], cases.NOW),
}


def _top(*, namespaces: bool = False, groups: bool) -> Iterator[str]:
    late = {"fresh": False, "problem": "no fresh figures of g0", "groups": []}
    seen = [(cases.healthy(), cases.LIVE), (cases.moving(), late), (cases.refused(), None), (cases.fresh(), None)]
    return top_lines([entry(*each) for each in seen], namespaces=namespaces, groups=groups)


def _move(wanted: Wanted, currency: str, free: int | None) -> Iterator[str]:
    found = cases.healthy()
    return requests.move_lines(found, requests.destination(found, wanted), currency, free)


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_it_is_written_down(name: str) -> None:
    text = "".join(f"{line}\n" for line in SCREENS[name]())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} is outdated: compare, then UPDATE_GOLDEN=1"


def test_every_golden_file_belongs_to_a_screen() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(SCREENS)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted("h100"), "it runs on h100 already: give --variant, --tp or --pp for another split"),
        (Wanted("a100-40", "fp8"), "a100-40: A100 has no FP8; to ask all the same, give --variant and --tp"),
        (Wanted("b200"), "no candidate is on pool b200 (candidates are on a100-40, h100): give --variant and --tp"),
    ],
)
def test_a_move_that_cannot_be_meant_is_refused_with_a_remedy(wanted: Wanted, words: str) -> None:
    with pytest.raises(Told) as told:
        requests.destination(cases.healthy(), wanted)
    assert str(told.value).startswith(words)


@pytest.mark.parametrize("group", ["g4", "g9", "llama", ""])
def test_a_group_that_is_not_there_is_told_from_those_that_are(group: str) -> None:
    with pytest.raises(Told, match=r"that could be replaced; there is g1$"):
        list(requests.failover_lines(cases.moving(), group, cases.NOW))


def test_no_move_no_way_back() -> None:
    with pytest.raises(Told, match="no move of llama-70b is under way"):
        list(requests.back_lines(cases.healthy()))


def test_what_is_missing_is_never_zero() -> None:
    shown = "\n".join(status_text.lines(cases.refused(), cases.NOW))
    assert " 0ms" not in shown
    assert " 0 tok/s" not in shown


ALWAYS = ("name", "type", "status", "reason", "pool", "variant", "allocations", "scope", "metric", "factor")
"""Fields that what they stand in never lacks."""


def without(value: Any, lost: Callable[[], bool]) -> Any:
    """The value without whatever optional part `lost` says."""
    if isinstance(value, dict):
        return {key: without(part, lost) for key, part in value.items() if key in ALWAYS or not lost()}
    return [without(part, lost) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("make", [cases.healthy, cases.moving, cases.refused])
@settings(max_examples=40, deadline=None)
@given(seed=st.randoms(use_true_random=False), share=st.floats(0.05, 0.9))
def test_whatever_status_lacks_every_screen_has_words_for_it(make: Any, seed: Any, share: float) -> None:
    found = make()
    found["status"] = without(found["status"], lambda: seed.random() < share)
    live = without(cases.LIVE, lambda: seed.random() < share)
    shown = [
        *status_text.lines(found, cases.NOW, live),
        *explain_lines(found),
        *top_lines([entry(found, live)], namespaces=True, groups=True),
    ]
    for preview in (
        lambda: requests.failover_lines(found, "g1", cases.NOW),
        lambda: requests.back_lines(found),
        lambda: requests.move_lines(found, requests.destination(found, Wanted("a100-40", "bf16", 8)), "", None),
    ):
        with contextlib.suppress(Told):
            shown += preview()
    assert not any("None" in line for line in shown), shown


def test_nothing_that_a_pod_said_is_obeyed_by_a_terminal() -> None:
    assert printable("a\x1b[2J\u202eb\r\x07 é €") == "a\ufffd[2J\ufffdb\ufffd\ufffd é €"
    for screen in SCREENS.values():
        assert all(line == printable(line) for line in screen())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-3, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")],
)
def test_ages_read_as_kubectl_shows_them(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
