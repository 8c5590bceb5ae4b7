"""Objects as people hand them to the command line: files of YAML or JSON, checked as the API server would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from berth.api.gpupool import GPUPool
    from berth.api.llmdeployment import LLMDeployment

_MOST_NODES: Final = 10_000
"""Nodes of a pool in a file; twice as many as Kubernetes supports in a cluster."""


def documents(file: Any) -> list[dict[str, Any]]:
    """The objects of a file: YAML or JSON, several documents, lists."""
    import yaml

    try:
        found = list(yaml.safe_load_all(file.read()))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        raise ValueError(f"{file.name}{where}: this is neither YAML nor JSON") from None
    objects: list[dict[str, Any]] = []
    for document in found:
        items = document.get("items") if isinstance(document, dict) else None
        objects += [each for each in (items if isinstance(items, list) else [document]) if isinstance(each, dict)]
    return objects


def the_deployment(found: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one in a file called `name`."""
    wanted = [document for document in found if document.get("kind") == "LLMDeployment"]
    if len(wanted) != 1:
        raise ValueError(f"{name}: holds {len(wanted)} objects of kind LLMDeployment, must hold one: correct the file")
    return wanted[0]


def parsed_deployment(manifest: dict[str, Any]) -> LLMDeployment:
    """With traffic, and in namespace `default` if it names none. Raises InvalidSpec."""
    from berth.api.llmdeployment import parse_llmdeployment
    from berth.errors import InvalidSpec

    metadata = manifest.get("metadata")
    if isinstance(metadata, Mapping) and not metadata.get("namespace"):
        manifest = {**manifest, "metadata": {**metadata, "namespace": "default"}}
    deployment = parse_llmdeployment(manifest, known_fields_only=not _stored(manifest))
    if deployment.spec.traffic is None:
        raise InvalidSpec(
            "InvalidSpec",
            f"LLMDeployment {deployment.metadata.name}: spec.traffic is absent, so there is nothing to plan for: "
            "add it, or make it from a record of requests with berth traffic profile",
        )
    return deployment


def parsed_pool(manifest: dict[str, Any]) -> GPUPool:
    """Of a GPU type that is known. Raises InvalidSpec."""
    from berth.api.gpupool import parse_gpupool
    from berth.core.placement.supply import gpu_of
    from berth.errors import InvalidSpec

    name = (manifest.get("metadata") or {}).get("name", "")
    try:
        pool = parse_gpupool(manifest, known_fields_only=not _stored(manifest))
    except InvalidSpec as error:
        raise InvalidSpec(error.reason, f"GPUPool {name}: {error}") from None
    gpu_of(pool)
    _check_nodes(f"GPUPool {name} status", manifest.get("status"), pool.spec.gpus_per_node)
    return pool


def _check_nodes(where: str, status: Any, gpus_per_node: int) -> None:
    """Refuses numbers of nodes that nobody can have: reading an object forgives them, a plan must not."""
    from berth.errors import InvalidSpec

    told = status if isinstance(status, Mapping) else {}
    nodes, frees = told.get("nodes"), told.get("freePerNode")
    if nodes is not None and not _is_count(nodes):
        raise InvalidSpec("InvalidSpec", f"{where}.nodes: {nodes!r} must be a whole number from 0 to {_MOST_NODES}")
    for free, count in frees.items() if isinstance(frees, Mapping) else ():
        if not (str(free).isascii() and str(free).isdecimal() and int(free) <= gpus_per_node and _is_count(count)):
            words = f"free GPUs from 0 to spec.gpusPerNode ({gpus_per_node}) to a number of nodes"
            raise InvalidSpec("InvalidSpec", f"{where}.freePerNode: {free!r}: {count!r} must be {words}")
    spoken = sum(frees.values()) if isinstance(frees, Mapping) else 0
    if spoken > (nodes or 0):
        raise InvalidSpec("InvalidSpec", f"{where}.freePerNode: speaks of {spoken} nodes, nodes of {nodes or 0}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_NODES


def _stored(manifest: Mapping[str, Any]) -> bool:
    """Read from a cluster, with fields that nobody writes by hand."""
    return "uid" in (manifest.get("metadata") or {})
