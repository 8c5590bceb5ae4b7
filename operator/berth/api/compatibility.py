"""Whether a CRD still accepts, and still means, every object that an earlier release of it accepted.

There are no conversion webhooks, so within a version only optional additions are allowed. `breaks` lists everything
else: what was removed, retyped, newly required or narrowed. A CEL rule counts as known if its expression or its message
was there before (a rule may be reworded, and its expression rewritten under the same promise); any other rule on an
existing field is new and might refuse stored objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from berth.api.schema import VALIDATIONS

Schema = Mapping[str, Any]

_NEVER_RAN: Final = re.compile(r"tolerations\[\]\.(key|value)$")
"""Fields that are copied into pods and whose newer rules are those of Kubernetes for pods: what they refuse was never
accepted in any pod, so no object that works is refused."""

_LOWER_BOUNDS: Final = ("minimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS: Final = ("maximum", "maxLength", "maxItems", "maxProperties")
_FIXED: Final = (
    "type",
    "format",
    "pattern",
    "default",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
)


def breaks(released: Schema, current: Schema) -> list[str]:
    """What in `current` (a CRD manifest) breaks with `released`, one line each; empty if nothing does."""
    return list(_crd(released, current))


def _crd(released: Schema, current: Schema) -> Iterator[str]:
    name = released["metadata"]["name"]
    old, new = released["spec"], current["spec"]
    for key in ("group", "scope"):
        if old[key] != new[key]:
            yield f"{name}: {key} was {old[key]}, is {new[key]}"
    for key in ("kind", "plural", "singular"):
        if old["names"][key] != new["names"][key]:
            yield f"{name}: names.{key} was {old['names'][key]}, is {new['names'][key]}"
    for key in ("shortNames", "categories"):
        for lost in sorted(set(old["names"].get(key, ())) - set(new["names"].get(key, ()))):
            yield f"{name}: names.{key} lost {lost}"
    versions = {version["name"]: version for version in new["versions"] if version["served"]}
    for version in old["versions"]:
        if version["name"] not in versions:
            yield f"{name}: version {version['name']} is no longer served"
        else:
            yield from _version(f"{name}/{version['name']}", version, versions[version["name"]])


def _version(name: str, old: Schema, new: Schema) -> Iterator[str]:
    for subresource, settings in old.get("subresources", {}).items():
        if new.get("subresources", {}).get(subresource) != settings:
            yield f"{name}: subresource {subresource} was removed or changed"
    yield from _node(f"{name}:", old["schema"]["openAPIV3Schema"], new["schema"]["openAPIV3Schema"])


def _node(path: str, old: Schema, new: Schema) -> Iterator[str]:
    for key in _FIXED:
        if old.get(key) != new.get(key):
            yield f"{path} {key} was {old.get(key)}, is {new.get(key)}"
    yield from _bounds(path, old, new)
    yield from _enum(path, old, new)
    known = {text for rule in old.get(VALIDATIONS, ()) for text in (rule["rule"], rule["message"])}
    for rule in new.get(VALIDATIONS, ()):
        if rule["rule"] not in known and rule["message"] not in known and not _NEVER_RAN.search(path):
            yield f"{path} new rule: {rule['message']}"
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{path} {name} is newly required"
    for name, child in old.get("properties", {}).items():
        below = f"{path}.{name}" if not path.endswith(":") else f"{path} {name}"
        if name in new.get("properties", {}):
            yield from _node(below, child, new["properties"][name])
        else:
            yield f"{below} was removed"
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if key in old and key in new:
            yield from _node(f"{path}{suffix}", old[key], new[key])
        elif key in old or key in new:
            yield f"{path} {key} was {'removed' if key in old else 'added'}"


def _bounds(path: str, old: Schema, new: Schema) -> Iterator[str]:
    for key in _LOWER_BOUNDS:
        if key in new and (key not in old or new[key] > old[key]):
            yield f"{path} {key} was {old.get(key)}, is {new[key]}"
    for key in _UPPER_BOUNDS:
        if key in new and (key not in old or new[key] < old[key]):
            yield f"{path} {key} was {old.get(key)}, is {new[key]}"


def _enum(path: str, old: Schema, new: Schema) -> Iterator[str]:
    if "enum" in new and "enum" not in old:
        yield f"{path} enum was added"
    elif "enum" in new:
        for lost in old["enum"]:
            if lost not in new["enum"]:
                yield f"{path} enum lost {lost}"
