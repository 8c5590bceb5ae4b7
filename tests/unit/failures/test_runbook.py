"""No reason that a condition may carry is missing in the runbook, and none in the list of reasons; nor a proof."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from berth.core.conditions import GROUP_REASONS, REASONS

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| `([A-Za-z]+)` \| (.+) \| (.+) \|$", re.MULTILINE)
RUNBOOK = {reason: (meaning, remedy) for reason, meaning, remedy in ROW.findall((ROOT / "docs/runbook.md").read_text())}
FIELDS = {"at", "detectedAfter", "trafficCutAfter", "replacedAfter", "restoredAfter"}


def test_every_reason_is_explained_as_in_the_code_with_something_to_do() -> None:
    said = {reason: meaning for reason, (meaning, remedy) in RUNBOOK.items() if remedy.strip(" -")}
    assert said == {**REASONS, **GROUP_REASONS}


def reasons(module: str, positions: dict[str, int]) -> set[str]:
    """What the calls of these names in a module of the core give as their reason: words, or constants that name one."""
    tree = ast.parse((ROOT / f"operator/berth/core/{module}.py").read_text())
    names = vars(importlib.import_module(f"berth.core.{module}"))
    found = set()
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
        position = positions.get(call.func.id)
        given = call.args[position] if position is not None and len(call.args) > position else None
        if isinstance(given, ast.Constant):
            found.add(given.value)
        elif isinstance(given, ast.Name) and given.id.isupper():
            found.add(names[given.id])
    assert found
    return found


@pytest.mark.parametrize("module", ["groups", "failures", "plan"])
def test_every_reason_of_a_group_is_listed(module: str) -> None:
    assert reasons(module, {"Judgement": 1, "Failure": 0}) <= set(GROUP_REASONS)


@pytest.mark.parametrize("module", ["status", "pools", "conditions", "resilience"])
def test_every_reason_of_a_condition_is_listed(module: str) -> None:
    assert reasons(module, {"Condition": 2}) <= set(REASONS)


def test_every_test_that_the_record_of_failures_names_is_there() -> None:
    named = set(re.findall(r"`(test_[a-z_]+)`", (ROOT / "docs/designs/015-failures.md").read_text()))
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= defined
