"""No reason that a condition may carry is missing in the runbook, and none in the list of reasons; nor a proof."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from berth.cli import main
from berth.core.conditions import GROUP_REASONS, REASONS
from berth.metrics import Metrics
from berth.settings import Settings, variable

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| `([A-Za-z]+)` \| (.+) \| (.+) \|$", re.MULTILINE)
RUNBOOK = {reason: (meaning, remedy) for reason, meaning, remedy in ROW.findall((ROOT / "docs/runbook.md").read_text())}


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


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a stored object, with dots and `[]`, and its schema."""
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from fields(each, f"{path}.{name}")
    if schema.get("type") == "array":
        yield from fields(schema["items"], f"{path}[]")


CRDS = [yaml.safe_load(path.read_text())["spec"] for path in (ROOT / "crds").glob("*.yaml")]
SHORT_NAMES = {name for crd in CRDS for name in crd["names"]["shortNames"]}
STORED = [each for crd in CRDS for each in fields(crd["versions"][0]["schema"]["openAPIV3Schema"])]
OF_OTHERS = {"reason", "cause"}
"""Words of conditions and of evidence."""
FIELD = re.compile(r"([a-z][A-Za-z]*(?:\[\])?(?:\.[a-z][A-Za-z]*(?:\[\])?)*)(?:: (\w+))?")


def test_what_people_are_told_to_set_or_to_read_is_there_and_takes_that_value() -> None:
    for told in re.findall(r"`([^`\n]+)`", (ROOT / "docs/runbook.md").read_text()):
        if (named := FIELD.fullmatch(told)) is None or told in OF_OTHERS:
            continue
        path, value = named.groups()
        found = [schema for stored, schema in STORED if f"{stored}.".endswith(f".{path}.")]
        assert found, f"{told}: no such field"
        allowed = {str(each) for schema in found for each in schema.get("enum", ())}
        assert value is None or not allowed or value in allowed, f"{told}: may be {sorted(allowed)}"


@pytest.mark.parametrize("page", ["runbook.md", "failures.md"])
def test_what_people_are_told_to_type_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for words in re.findall(r"(?:^|`)(?:kubectl )?berth ([a-z]+(?: [a-z]+)*)", text, re.MULTILINE):
        command: click.Command = main
        for word in words.split():
            assert isinstance(command, click.Group), f"{words}: {word}"
            command = command.commands[word]
    for kind in re.findall(r"kubectl (?:get|describe) ([a-z]+)", text):
        assert kind in SHORT_NAMES, kind
    assert set(re.findall(r"BERTH_[A-Z_]+", text)) <= {variable(each.name) for each in dataclasses.fields(Settings)}
    measured = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    measured |= {family.name for family in Metrics().registry.collect()}
    assert set(re.findall(r"`(berth_[a-z_]+)", text)) <= measured
