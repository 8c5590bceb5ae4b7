"""What counts as breaking with a released schema, and what does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.api.compatibility import breaks
from berth.api.crd import RESOURCES, manifest

Schema = dict[str, Any]
RELEASED = Path(__file__).parents[2] / "data/released"
CRD = manifest(RESOURCES[0])


def spec_of(crd: Schema) -> Schema:
    found: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def changed(change: Callable[[Schema], object]) -> list[str]:
    """What `breaks` says after `change` was made to the CRD of LLMDeployment."""
    crd = copy.deepcopy(CRD)
    change(crd)
    return breaks(CRD, crd)


def test_the_current_schema_does_not_break_with_the_last_release() -> None:
    last = max(RELEASED.iterdir(), key=lambda folder: [int(part) for part in folder.name.removeprefix("v").split(".")])
    released = {path.name: yaml.safe_load(path.read_text()) for path in last.glob("*.yaml")}
    assert len(released) == len(RESOURCES)
    for resource in RESOURCES:
        assert breaks(released[resource.file_name], manifest(resource)) == []


def test_the_same_schema_is_compatible() -> None:
    assert breaks(CRD, copy.deepcopy(CRD)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda crd: spec_of(crd).pop("pause"), "spec.pause was removed"),
        (lambda crd: spec_of(crd)["scaling"].update(required=["max"]), "spec.scaling max is newly required"),
        (lambda crd: spec_of(crd)["pause"]["enum"].remove("All"), "spec.pause enum lost All"),
        (
            lambda crd: spec_of(crd)["engine"]["properties"]["image"].update(enum=["a"]),
            "spec.engine.image enum was added",
        ),
        (lambda crd: spec_of(crd)["pause"].update(type="integer"), "spec.pause type was string, is integer"),
        (lambda crd: spec_of(crd)["replicas"].update(maximum=10), "spec.replicas maximum was 1000, is 10"),
        (lambda crd: spec_of(crd)["replicas"].update(minimum=2), "spec.replicas minimum was 1, is 2"),
        (lambda crd: spec_of(crd)["replicas"].update(default=2), "spec.replicas default was 1, is 2"),
        (lambda crd: spec_of(crd)["pause"].update(maxLength=3), "spec.pause maxLength was None, is 3"),
        (lambda crd: spec_of(crd)["pause"].update(pattern="N.*"), "spec.pause pattern was None, is N.*"),
        (
            lambda crd: spec_of(crd)["placement"]["properties"]["pools"].update({"x-kubernetes-list-type": "atomic"}),
            "spec.placement.pools x-kubernetes-list-type was set, is atomic",
        ),
        (
            lambda crd: spec_of(crd)["model"]["properties"]["variants"]["items"]["properties"].pop("gpus"),
            "spec.model.variants[].gpus was removed",
        ),
        (
            lambda crd: spec_of(crd)["pod"]["properties"]["labels"]["additionalProperties"].update(maxLength=3),
            "spec.pod.labels.* maxLength was 63, is 3",
        ),
        (
            lambda crd: spec_of(crd)["update"]["x-kubernetes-validations"].append({"rule": "false", "message": "no"}),
            "spec.update new rule: no",
        ),
        (lambda crd: spec_of(crd)["pod"]["properties"]["env"].pop("items"), "spec.pod.env items was removed"),
        (lambda crd: crd["spec"]["versions"][0]["subresources"].pop("scale"), "subresource scale was removed"),
        (lambda crd: crd["spec"]["versions"][0].update(served=False), "version v1alpha1 is no longer served"),
        (lambda crd: crd["spec"]["names"].update(shortNames=["dep"]), "names.shortNames lost llmd"),
        (lambda crd: crd["spec"]["names"].update(plural="llms"), "names.plural was llmdeployments, is llms"),
        (lambda crd: crd["spec"].update(scope="Cluster"), "scope was Namespaced, is Cluster"),
    ],
)
def test_what_old_objects_or_clients_would_notice_is_a_break(change: Callable[[Schema], object], words: str) -> None:
    found = changed(change)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda crd: spec_of(crd).update(gravity={"type": "string", "maxLength": 3, "enum": ["a"]}),
        lambda crd: spec_of(crd)["pause"]["enum"].append("Forever"),
        lambda crd: spec_of(crd)["pause"].pop("enum"),
        lambda crd: spec_of(crd)["replicas"].update(maximum=5000, minimum=0),
        lambda crd: spec_of(crd)["model"]["required"].remove("variants"),
        lambda crd: spec_of(crd)["pause"].update(description="Other words."),
        lambda crd: spec_of(crd)["update"].pop("x-kubernetes-validations"),
        lambda crd: spec_of(crd)["update"]["x-kubernetes-validations"][0].update(message="Said better."),
        lambda crd: spec_of(crd)["update"]["x-kubernetes-validations"][0].update(rule="has(self.surge)"),
        lambda crd: crd["spec"]["versions"].append({**crd["spec"]["versions"][0], "name": "v1beta1"}),
        lambda crd: crd["spec"]["versions"][0]["additionalPrinterColumns"].pop(),
    ],
)
def test_additions_and_wider_bounds_are_no_break(change: Callable[[Schema], object]) -> None:
    assert changed(change) == []
