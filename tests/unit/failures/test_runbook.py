"""No reason that a condition may carry is missing in the runbook, and none in the list of reasons."""

from __future__ import annotations

import ast
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


@pytest.mark.parametrize("module", ["groups", "failures", "plan"])
def test_every_reason_of_a_group_is_listed(module: str) -> None:
    tree = ast.parse((ROOT / f"operator/berth/core/{module}.py").read_text())
    found = set()
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
        position = {"Judgement": 1, "Failure": 0}.get(call.func.id)
        if position is not None and len(call.args) > position and isinstance(call.args[position], ast.Constant):
            found.add(call.args[position].value)
    assert found
    assert found <= set(GROUP_REASONS)


@pytest.mark.parametrize("module", ["status", "pools", "conditions", "resilience"])
def test_every_reason_of_a_condition_is_listed(module: str) -> None:
    tree = ast.parse((ROOT / f"operator/berth/core/{module}.py").read_text())
    found = set()
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
        if call.func.id == "Condition" and len(call.args) > 2 and isinstance(call.args[2], ast.Constant):
            found.add(call.args[2].value)
    assert found
    assert found <= set(REASONS)
