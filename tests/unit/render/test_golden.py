"""Every object of every case, byte for byte. UPDATE_GOLDEN=1 rewrites the files; read the difference then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.unit.render import cases

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


def check(name: str, manifests: list[cases.Manifest]) -> None:
    text = yaml.safe_dump_all(manifests, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} is outdated: compare, then UPDATE_GOLDEN=1"


@pytest.mark.parametrize("name", cases.CASES)
def test_a_group_renders_to_its_golden_manifests(name: str) -> None:
    made = cases.template(cases.CASES[name])
    check(name, cases.everything(made, () if name in cases.UNPLANNED else None))


def test_a_deployment_renders_to_its_golden_services_and_disruption_budget() -> None:
    check("deployment", cases.of_deployment(cases.template(cases.CASES["pytorch-claim"])))


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == {*cases.CASES, "deployment"}
