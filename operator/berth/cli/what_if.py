"""`--what-if`: the same deployment and pools with some values changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from berth.api.crd import RESOURCES, manifest

_POOLS = "pools."


@dataclass(frozen=True)
class Change:
    """`key` as the user wrote it, `path` where it leads: into spec, or into the spec of `pool`."""

    key: str
    path: tuple[str, ...]
    value: str | int
    pool: str | None = None


def parse_changes(text: str) -> list[Change]:
    """`requestsPerSecond=20,pools.h100.pricePerGPUHour=1.99`. Raises ValueError naming the part that is wrong."""
    changes = []
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"--what-if {part!r}: write it as key=value, several separated by commas")
        changes.append(_change(key, int(value) if value.isascii() and value.isdigit() else value))
    return changes


def apply_changes(
    deployment: Mapping[str, Any], pools: Sequence[Mapping[str, Any]], changes: Sequence[Change]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies of the objects with the changes in them. Raises ValueError for a pool that is not there."""
    changed, changed_pools = copy.deepcopy(dict(deployment)), copy.deepcopy([dict(pool) for pool in pools])
    for change in changes:
        target: Any = changed
        if change.pool is not None:
            named = [pool for pool in changed_pools if (pool.get("metadata") or {}).get("name") == change.pool]
            if not named:
                names = ", ".join(sorted(str((pool.get("metadata") or {}).get("name")) for pool in changed_pools))
                raise ValueError(f"--what-if {change.key}: pool {change.pool} is not there: use one of {names}")
            target = named[0]
        for step in change.path[:-1]:
            if not isinstance(target.get(step), dict):
                target[step] = {}
            target = target[step]
        target[change.path[-1]] = change.value
    return changed, changed_pools


def _change(key: str, value: str | int) -> Change:
    if key.startswith(_POOLS):
        pool, _, field = key.removeprefix(_POOLS).partition(".")
        inside = ("status", "nodes") if field == "nodes" else _resolve(key, field, "GPUPool")
        return Change(key, inside, value, pool)
    return Change(key, _resolve(key, key.removeprefix("spec."), "LLMDeployment"), value)


def _resolve(key: str, field: str, kind: str) -> tuple[str, ...]:
    """The path in the object: as written, or of the only field whose path ends so."""
    schema = next(manifest(resource) for resource in RESOURCES if resource.kind == kind)
    spec = schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    wanted = tuple(field.split("."))
    found = [path for path in _leaves(spec, ()) if path[-len(wanted) :] == wanted]
    if wanted in found:
        return "spec", *wanted
    if len(found) == 1:
        return "spec", *found[0]
    if not found:
        raise ValueError(
            f"--what-if {key}: {kind} has no such field: write its path in spec, as traffic.inputTokens.mean"
        )
    paths = ", ".join(".".join(path) for path in found[:4])
    raise ValueError(f"--what-if {key}: could be {paths}: write the whole path")


def _leaves(schema: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of all single values; lists and maps cannot be changed by one value."""
    for name, child in (schema.get("properties") or {}).items():
        if "properties" in child:
            yield from _leaves(child, (*path, name))
        elif child.get("type") != "array" and "additionalProperties" not in child:
            yield (*path, name)
