"""The generated CRDs: as checked in, structural, bounded, described, and known to the Kubernetes client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from kubernetes.client import ApiClient
from pydantic import Field

from berth.api.crd import RESOURCES, Resource, files, manifest, structural_schema
from berth.api.schema import Model

CRDS = Path(__file__).parents[3] / "crds"
REJECTED_KEYWORDS = {
    "$ref",
    "$defs",
    "anyOf",
    "allOf",
    "const",
    "title",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "patternProperties",
    "prefixItems",
    "propertyNames",
    "readOnly",
    "uniqueItems",
}
every_resource = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema node with its dotted path; [] for items, * for values of a map."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def schema_of(resource: Resource) -> dict[str, Any]:
    found: dict[str, Any] = manifest(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_checked_in_crds_are_the_generated_ones() -> None:
    assert {path.name: path.read_text() for path in CRDS.glob("*.yaml")} == files()


@every_resource
def test_every_node_is_structural(resource: Resource) -> None:
    for path, node in nodes(schema_of(resource)):
        assert "type" in node or "x-kubernetes-int-or-string" in node, path
        assert not REJECTED_KEYWORDS & node.keys(), path
        assert not any(key.startswith("x-berth") for key in node), path


@every_resource
def test_every_field_of_spec_and_status_is_described(resource: Resource) -> None:
    for path, node in nodes(schema_of(resource)):
        if path.startswith(("spec", "status")) and not path.endswith(("[]", ".*")):
            assert node.get("description", "").endswith((".", "...")), path


@every_resource
def test_everything_in_spec_is_bounded(resource: Resource) -> None:
    for path, node in nodes(schema_of(resource)):
        if not path.startswith("spec") or "enum" in node:
            continue
        match node.get("type"):
            case "string":
                assert "maxLength" in node, path
            case "integer":
                assert "minimum" in node, path
                assert "maximum" in node, path
            case "array":
                assert "maxItems" in node, path
            case "object" if "additionalProperties" in node:
                assert "maxProperties" in node, path
            case None:
                assert "x-kubernetes-validations" in node or "maximum" in node, path


@every_resource
def test_bounds_are_in_the_descriptions(resource: Resource) -> None:
    for path, node in nodes(schema_of(resource)):
        if "description" in node and {"minimum", "maximum"} <= node.keys() and "type" in node:
            assert f"From {node['minimum']} to {node['maximum']}." in node["description"], path


@every_resource
def test_lists_say_how_they_merge(resource: Resource) -> None:
    for path, node in nodes(schema_of(resource)):
        if node.get("type") == "array":
            kind = node["x-kubernetes-list-type"]
            assert (kind == "map") == ("x-kubernetes-list-map-keys" in node), path
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"]["required"], path


def test_conditions_merge_by_type_and_summaries_are_atomic() -> None:
    types = {path: node["x-kubernetes-list-type"] for path, node in nodes(schema_of(RESOURCES[0])) if "items" in node}
    assert types["status.conditions"] == "map"
    assert types["status.candidates"] == types["status.groups"] == types["status.moves.recent"] == "atomic"
    assert types["spec.model.variants"] == types["spec.pod.env"] == "map"
    assert types["spec.placement.pools"] == "set"


def test_the_only_default_written_into_objects_is_replicas() -> None:
    found = {
        (resource.kind, path, node["default"])
        for resource in RESOURCES
        for path, node in nodes(schema_of(resource))
        if "default" in node
    }
    assert found == {("LLMDeployment", "spec.replicas", 1)}


@every_resource
def test_columns_and_scale_point_at_fields_of_the_schema(resource: Resource) -> None:
    known = {f".{path}" for path, _ in nodes(schema_of(resource))} | {".metadata.creationTimestamp"}
    version = manifest(resource)["spec"]["versions"][0]
    for column in version["additionalPrinterColumns"]:
        assert column["jsonPath"] in known
    for path in version["subresources"].get("scale", {}).values():
        assert path in known


def test_columns_of_a_deployment_are_those_people_know() -> None:
    columns = manifest(RESOURCES[0])["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns] == ["Ready", "Placement", "TTFT P95", "TPOT P95", "Status", "Age"]


@every_resource
def test_the_kubernetes_client_knows_every_keyword(resource: Resource) -> None:
    client = ApiClient()
    expected = manifest(resource)
    read = client._ApiClient__deserialize(expected, "V1CustomResourceDefinition")
    assert client.sanitize_for_serialization(read) == expected


def test_names_do_not_collide() -> None:
    names = [name for resource in RESOURCES for name in (resource.plural, resource.kind.lower(), resource.short_name)]
    assert len(names) == len(set(names))


def test_a_recursive_model_is_refused_with_its_path() -> None:
    class Node(Model):
        """A node."""

        children: Annotated[tuple[Node, ...], Field(max_length=2)] = ()

    Node.model_rebuild(_types_namespace={"Node": Node})

    class Tree(Model):
        """A tree."""

        root: Node

    with pytest.raises(ValueError, match="Node -> Node: a structural schema cannot be recursive"):
        structural_schema(Tree)


def test_a_union_of_types_is_refused() -> None:
    class Mixed(Model):
        """Mixed."""

        value: int | bool

    with pytest.raises(ValueError, match="cannot be a union"):
        structural_schema(Mixed)
