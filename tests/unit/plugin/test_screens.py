"""What `kubectl berth` prints, byte for byte. UPDATE_GOLDEN=1 rewrites the files; read the difference then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from berth.cli.kubectl import status_text
from berth.cli.kubectl.events import lines as event_lines
from berth.cli.kubectl.events import sorted_events
from berth.cli.kubectl.explain import lines as explain_lines
from berth.cli.output import age
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
    "events-none": lambda: event_lines([], cases.NOW),
}


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_it_is_written_down(name: str) -> None:
    text = "".join(f"{line}\n" for line in SCREENS[name]())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} is outdated: compare, then UPDATE_GOLDEN=1"


def test_every_golden_file_belongs_to_a_screen() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(SCREENS)


def test_what_is_missing_is_never_zero() -> None:
    shown = "\n".join(status_text.lines(cases.refused(), cases.NOW))
    assert " 0ms" not in shown
    assert " 0 tok/s" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-3, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")],
)
def test_ages_read_as_kubectl_shows_them(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
