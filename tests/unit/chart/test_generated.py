"""What of the chart follows from something else does follow, and its schema is closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charts import generate


def test_nothing_generated_is_out_of_date() -> None:
    assert generate.stale(generate.files()) == []


def test_the_charts_crds_are_the_crds_byte_by_byte() -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert contents(generate.CHART / "files" / "crds") == contents(generate.ROOT / "crds")


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((generate.CHART / "values.schema.json").read_text())
    return found


def objects(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if node.get("type") == "object":
        yield path, node
    for name, child in node.get("properties", {}).items():
        yield from objects(child, (*path, name))
    if "items" in node:
        yield from objects(node["items"], (*path, "[]"))


def test_every_object_with_keys_of_ours_refuses_others() -> None:
    for path, node in objects(schema()):
        assert "properties" not in node or node["additionalProperties"] is False, path


def test_what_kubernetes_validates_is_all_that_stays_open() -> None:
    opened = {
        path for path, node in objects(schema()) if "properties" not in node and "additionalProperties" not in node
    }
    assert opened == {
        ("global",),
        ("tolerations", "[]"),
        *(("affinity", kind) for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity")),
        *(
            ("networkPolicy", *peers, "[]", kind)
            for peers in (("metricsFrom",), ("egressTo", "[]", "to"))
            for kind in ("podSelector", "namespaceSelector", "ipBlock")
        ),
    }


def test_the_schema_knows_each_value_and_no_others() -> None:
    def leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, child in node["properties"].items():
            if (*path, name) in documented or "properties" not in child:
                yield (*path, name)
            else:
                yield from leaves(child, (*path, name))

    documented = {value.path for value in generate.values()}
    assert set(leaves(schema())) - {("global",)} == documented
