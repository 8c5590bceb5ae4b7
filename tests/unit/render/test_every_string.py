"""Every string that the CRDs let a person write, one after the other made hostile: refused, or harmless in every pod.

The schema says which strings there are, so a new field is tried without a word here, or fails the first test.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berth.api.crd import RESOURCES, manifest
from berth.errors import InvalidSpec
from tests.unit.render import cases
from tests.unit.render.restricted import violations
from tests.unit.render.test_fuzz import HOSTILE, free_text, strings

Path = tuple[str, ...]
KEY = "<key>"
ITEM = "[]"

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 13824,
    "vocab_size": 64000,
    "max_position_embeddings": 32768,
}
FIELDS = {
    "traffic": {"peakToMean": "1.4", "peakInputToMean": "1", "peakOutputToMean": "1", "arrival": "Open"}
    | {"cachedInputFraction": "0"},
    "objectives": {"availability": "0.999", "prefer": "Cost", "limits": {"costPerHour": "900"}},
    "scaling": {"mode": "Auto"},
    "replicaGroups": {
        "spread": {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "Prefer"},
        "recovery": {"window": "1h", "initialBackoff": "10s", "maxBackoff": "10m", "forceDelete": "Never"},
        "drainTimeout": "10m",
    },
    "placement": {
        "pools": ["h100"],
        "moves": {"mode": "Auto", "minimumGain": "0.15", "payBackWithin": "6h", "cooldown": "6h"},
    },
    "update": {"surge": "WhenCapacity", "deadline": "20m"},
    "disruption": {"onCordon": "Migrate", "whenNoCapacity": "Block"},
    "engine": {"image": cases.IMAGE, "multiNode": cases.SSH},
    "pod": cases.EVERYTHING,
}
FULL = cases.spec("pytorch", cases.CLAIM, 8, 2, **FIELDS) | {"pause": "None"}
"""Together these have every field."""
BASES = (
    FULL,
    cases.spec("pytorch", cases.HUB, 2),
    cases.spec("pytorch", cases.CLAIM, model={"architecture": ARCHITECTURE, "name": "house-model"}),
    cases.spec("tensorrt", cases.CLAIM, 2),
)
BASES[3]["model"]["variants"][0]["backend"] = "tensorrt"
POOL = {
    **cases.H100,
    "interconnect": "NVLink",
    "pricePerGPUHour": "2.99",
    "currency": "USD",
    "billing": "PerGPU",
    "failureDomainKey": "topology.kubernetes.io/zone",
    "provisioning": "Static",
    "allowedNamespaces": {"names": ["serving"]},
    "tolerations": [
        {"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"},
    ],
}
HARMLESS = re.compile(r"\.spec\.containers\[\]\.env\[\]\.value|\.metadata\.annotations\.(?!<key>).*")
"""Where a text of any kind may stand."""

SPECIAL = re.compile("[^-A-Za-z0-9_./:@]")
"""What no name has."""


def declared(schema: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """Paths of all strings of a schema; numbers that may be written as strings are strings."""
    if schema.get("type") == "string" or schema.get("x-kubernetes-int-or-string"):
        yield path
    elif schema.get("type") == "array":
        yield from declared(schema["items"], (*path, ITEM))
    for name, inner in schema.get("properties", {}).items():
        yield from declared(inner, (*path, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield (*path, KEY)
        yield from declared(schema["additionalProperties"], (*path, "*"))


def schema_of(kind: str) -> dict[str, Any]:
    resource = next(each for each in RESOURCES if each.kind == kind)
    spec: dict[str, Any] = manifest(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def with_text(given: Any, path: Path, text: str) -> Any:
    """A copy with `text` at the first place that `path` names; None where there is none."""
    if not path:
        return text if isinstance(given, str | int) and not isinstance(given, bool) else None
    head, *rest = path
    if head == ITEM:
        for index, inner in enumerate(given if isinstance(given, list) else ()):
            changed = with_text(inner, tuple(rest), text)
            if changed is not None:
                return [*given[:index], changed, *given[index + 1 :]]
        return None
    if not isinstance(given, dict):
        return None
    if head == KEY:
        return {**given, text: next(iter(given.values()))} if given else None
    names = sorted(given) if head == "*" else [head] if head in given else []
    for name in names:
        changed = with_text(given[name], tuple(rest), text)
        if changed is not None:
            return {**given, name: changed}
    return None


DEPLOYMENT_PATHS = sorted(declared(schema_of("LLMDeployment")))
POOL_PATHS = sorted(declared(schema_of("GPUPool")))


@pytest.mark.parametrize(
    ("paths", "bases"), [(DEPLOYMENT_PATHS, BASES), (POOL_PATHS, (POOL,))], ids=["LLMDeployment", "GPUPool"]
)
def test_every_string_of_the_schema_is_tried_here(paths: list[Path], bases: tuple[Any, ...]) -> None:
    assert [path for path in paths if all(with_text(base, path, "x") is None for base in bases)] == []
    assert len(paths) > 10


OURS = {
    found
    for base in BASES
    for each in (*cases.everything(cases.template(base)), *cases.of_deployment(cases.template(base)))
    for _, found in strings(each)
}
"""Texts of manifests in which nothing is hostile."""


def check(content: cases.Manifest, text: str, **pool: Any) -> bool:
    """Whether the text is accepted; then it is harmless in everything that is made of it."""
    try:
        made = cases.template(content, **pool)
    except InvalidSpec:
        return False
    for each in [*cases.everything(made), *cases.of_deployment(made)]:
        json.dumps(each)
        for path, found in strings(each):
            assert found in OURS or text not in found or HARMLESS.fullmatch(path), f"{each['kind']}{path}: {found}"
    for pod in cases.pods(made):
        assert violations(pod) == []
        (container,) = pod["spec"]["containers"]
        assert container["command"] == ["python3", "-m", "berth.engine.launcher"]
    return True


@pytest.mark.parametrize("path", DEPLOYMENT_PATHS, ids=".".join)
def test_a_hostile_string_in_any_field_of_a_deployment_is_refused_or_harmless(path: Path) -> None:
    for base in BASES:
        for text in HOSTILE:
            changed = with_text(copy.deepcopy(base), path, text)
            if changed is not None:
                check(changed, text)


@pytest.mark.parametrize("path", POOL_PATHS, ids=".".join)
def test_a_hostile_string_in_any_field_of_a_pool_is_refused_or_harmless(path: Path) -> None:
    for text in HOSTILE:
        check(cases.spec("pytorch", cases.CLAIM, 8, 2), text, **with_text(copy.deepcopy(POOL), path, text))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(DEPLOYMENT_PATHS), st.sampled_from(BASES), free_text.filter(SPECIAL.search))
def test_any_string_in_any_field_is_refused_or_harmless(path: Path, base: Any, text: str) -> None:
    changed = with_text(copy.deepcopy(base), path, text)
    if changed is not None:
        check(changed, text)


def test_what_this_tries_is_accepted_unless_it_is_hostile() -> None:
    """Else every test above would pass by refusing everything."""
    assert all(check(base, "never written anywhere") for base in BASES)
    assert check(cases.spec("pytorch", cases.CLAIM, 8, 2), "never written anywhere", **POOL)
    assert check(with_text(FULL, ("pod", "env", ITEM, "value"), HOSTILE[0]), HOSTILE[0])
