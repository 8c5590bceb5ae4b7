"""Alerts fire on what they are for (asked of promtool), and everything shown or alerted on is a metric that exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.core import conditions
from berth.measurements import Measurements
from berth.metrics import Metrics
from berth.standing import Standing
from charts.generate import CHART

RULES = CHART / "files" / "alerts.yaml"
SCENES = Path(__file__).parents[2] / "data" / "alerts" / "alerts.test.yaml"


def groups() -> Any:
    return yaml.safe_load(RULES.read_text())["groups"]


def rules(kind: str) -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"] if kind in rule]


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for group in groups() for rule in group["rules"])
    yield from (target["expr"] for panel in panels() for target in panel.get("targets", ()))


def exported() -> set[str]:
    """Names of all series that an operator may show."""
    metrics = Metrics()
    metrics.registry.register(Standing())
    metrics.registry.register(Measurements(None))
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "info": ("_info",)}
    return {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in suffixes[family.type]
    }  # fmt: skip


def promtool(*arguments: str, folder: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool in PATH: it is in Debian's package prometheus")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_alerts_fire_on_what_they_are_for_and_on_nothing_else() -> None:
    promtool("test", "rules", SCENES.name, folder=SCENES.parent)


def test_prometheus_can_read_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    recorded = [{"record": f"asked:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", "asked.yaml", folder=tmp_path)


def test_every_alert_is_seen_to_fire() -> None:
    scenes = yaml.safe_load(SCENES.read_text())["tests"]
    fired = {
        check["alertname"] for scene in scenes for check in scene["alert_rule_test"] if check["exp_alerts"]
    }  # fmt: skip
    assert fired == {rule["alert"] for rule in rules("alert")}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]


def test_whatever_is_shown_or_alerted_on_is_exported() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    known = exported() | recorded
    for expression in expressions():
        without_labels = re.sub(r"\{[^}]*\}", "", expression)
        names = set(re.findall(r"\bberth[_:][a-z0-9_:]+", without_labels))
        assert names, expression
        assert names <= known, f"{names - known} in {expression}"


def test_conditions_that_alerts_look_at_exist() -> None:
    known = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    for expression in expressions():
        assert set(re.findall(r'type="(\w+)"', expression)) <= known, expression


def test_every_panel_asks_something_and_names_it() -> None:
    shown = [panel for panel in panels() if panel["type"] != "row"]
    assert len(shown) > 10
    for panel in shown:
        assert panel["title"]
        assert panel["targets"], panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters), "a panel drops queries of the same letter"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
