"""Objects as people hand them to the command line: files of YAML or JSON, checked as the API server would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from berth.api.gpupool import GPUPool
    from berth.api.llmdeployment import LLMDeployment


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
    """With traffic. Raises InvalidSpec."""
    from berth.api.llmdeployment import parse_llmdeployment
    from berth.errors import InvalidSpec

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
    return pool


def _stored(manifest: Mapping[str, Any]) -> bool:
    """Read from a cluster, with fields that nobody writes by hand."""
    return "uid" in (manifest.get("metadata") or {})
