"""Hypothesis strategies for objects of Berth's kinds, drawn from the generated CRDs.

Every field of the schema is drawn inside its OpenAPI bounds, so that what else an object may violate are Berth's own
rules. `objects` keeps such violations; `valid_objects` removes the optional parts that cause them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from berth.api.crd import Resource, manifest
from tests.support.samples import BASES, Manifest

Schema = Mapping[str, Any]

_TEXTS = (
    "a",
    "g0",
    "h100",
    "a100-40",
    "fp8",
    "bf16",
    "USD",
    "NCCL_DEBUG",
    "HF_TOKEN",
    "BERTH_SIMULATED",
    "BERTH_GROUP",
    "PATH",
    "H100-SXM-80",
    "owner/name",
    "models/llama-70b",
    "../etc",
    "example.com/gpu",
    "nvidia.com/gpu",
    "rdma/hca",
    "topology.kubernetes.io/zone",
    "registry.example/triton:26.07",
    "triton",
    "triton:latest",
    "True",
    "",
    "two words",
    "Größe",
    "x" * 41,
    "x" * 400,
)
_DURATIONS = ("1ms", "50ms", "1500ms", "1s", "10s", "90s", "5m", "1h", "1h30m", "6h", "24h", "200h", "0s", "3", "1d")
_NUMBERS = ("0", "0.15", "0.9995", "1", "1.4", "5.4", "40", "2000000", "1e3", "-1", "NaN", 0, 1, 3, 60, 200000)
_AMOUNTS = ("12", "500m", "64Gi", "0", "0.5", "1e3", 0, 1, 12)
_KEYS = ("team", "example.com/team", "berth.dev/serving", "app.kubernetes.io/name", "bad key", "cpu", "nvidia.com/gpu")
_MATCHES = re.compile(r"^self\.matches\('(\^.*\$)'\)$")


def objects(resource: Resource) -> st.SearchStrategy[Manifest]:
    """Objects inside the OpenAPI bounds of their CRD; about half violate a rule."""
    base = base_of(resource)
    schema = manifest(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return st.builds(
        lambda spec: {**base, "spec": _overlaid(base["spec"], spec)},
        st.fixed_dictionaries({}, optional={name: values(child) for name, child in schema["properties"].items()}),
    )


def base_of(resource: Resource) -> Manifest:
    """A valid object of the kind."""
    return next(base for base in BASES.values() if base["kind"] == resource.kind)


def valid_objects(resource: Resource) -> st.SearchStrategy[Manifest]:
    """Objects that `parse` accepts."""
    return objects(resource).map(lambda drawn: repaired(resource, drawn))


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Values inside the OpenAPI bounds of `schema`."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return st.sampled_from(_AMOUNTS if "pattern" in schema else _NUMBERS)
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema.get("minimum", -5), schema.get("maximum", 100)
            return st.sampled_from(sorted({low, high, *(n for n in (1, 2, 4, 8, 64, 1024, 4096) if low <= n <= high)}))
        case "string":
            return _texts(schema)
        case "array":
            keys = schema.get("x-kubernetes-list-map-keys")
            unique = (
                (lambda item: item.get(keys[0]))
                if keys
                else (str if schema["x-kubernetes-list-type"] == "set" else None)
            )
            return st.lists(
                values(schema["items"]),
                min_size=schema.get("minItems", 0),
                max_size=min(schema["maxItems"], 2),
                unique_by=unique,
            )
        case _:
            if "additionalProperties" in schema:
                return st.dictionaries(st.sampled_from(_KEYS), values(schema["additionalProperties"]), max_size=2)
            required = schema.get("required", ())
            children = {name: values(child) for name, child in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: child for name, child in children.items() if name in required},
                optional={name: child for name, child in children.items() if name not in required},
            )


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
    if any("duration(" in rule for rule in rules):
        return st.sampled_from(_DURATIONS)
    low, high = schema.get("minLength", 0), schema.get("maxLength", 10**6)
    fitting = [text for text in _TEXTS if low <= len(text) <= high]
    patterns = [match[1] for rule in rules if (match := _MATCHES.match(rule))]
    matching = [text for text in fitting if all(re.search(pattern, text) for pattern in patterns)]
    return st.one_of(st.sampled_from(matching), st.sampled_from(matching), st.sampled_from(fitting))


def _overlaid(base: Any, drawn: Any) -> Any:
    if isinstance(base, dict) and isinstance(drawn, dict):
        return {**base, **{name: _overlaid(base.get(name), value) for name, value in drawn.items()}}
    return drawn


def repaired(resource: Resource, drawn: Manifest) -> Manifest:
    """The object without the parts that pydantic complains about; the base's spec if nothing less helps."""
    while True:
        try:
            resource.model.model_validate(drawn)
        except ValidationError as error:
            location = error.errors()[0]["loc"]
            drawn = _without(drawn, location) if len(location) > 1 else {**drawn, "spec": base_of(resource)["spec"]}
        else:
            return drawn


def _without(node: Any, path: tuple[int | str, ...]) -> Any:
    """A copy without what `path` leads to; if that is absent, without its parent."""
    head, *rest = path
    inside = head in node if isinstance(node, dict) else True
    child = node[head] if inside else None
    if rest and inside and isinstance(child, dict | list) and (len(rest) > 1 or _has(child, rest[0])):
        changed = _without(child, tuple(rest))
        if isinstance(node, dict):
            return {**node, head: changed}
        return [changed if index == head else item for index, item in enumerate(node)]
    if isinstance(node, dict):
        return {name: value for name, value in node.items() if name != head}
    return [item for index, item in enumerate(node) if index != head]


def _has(node: Any, part: int | str) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)
