"""Valid objects to start from, out of manifests/samples, and how to edit them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
SAMPLES = Path(__file__).parents[2] / "manifests/samples"
REMOVED = object()
"""As a value in `edit`: the field is removed."""


def samples() -> dict[str, Manifest]:
    """All objects of Berth's kinds in manifests/samples, by `file/kind/name`."""
    found = {}
    for path in sorted(SAMPLES.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["apiVersion"].startswith("berth.dev/"):
                found[f"{path.stem}/{manifest['kind']}/{manifest['metadata']['name']}"] = manifest
    return found


def edit(manifest: Manifest, changes: Mapping[str, Any]) -> Manifest:
    """A copy with values set at dotted paths; numbers are list indices, missing objects are made."""
    edited = copy.deepcopy(manifest)
    for path, value in changes.items():
        node: Any = edited
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is REMOVED:
            del node[last]
        else:
            node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)
    return edited


REPLICA_GROUP: Manifest = {
    "apiVersion": "berth.dev/v1alpha1",
    "kind": "ReplicaGroup",
    "metadata": {"name": "llama-70b-1a2b3-g0-1"},
    "spec": {
        "group": "g0",
        "incarnation": 1,
        "allocation": {
            "pool": "h100",
            "variant": "bf16",
            "tensorParallel": 8,
            "pipelineParallel": 2,
            "precision": "bf16",
            "kvPrecision": "fp8",
        },
        "members": 2,
        "plannedNodes": ["h100-node-1", "h100-node-2"],
        "templateHash": "5f2c8a",
    },
}
BASES: dict[str, Manifest] = {**samples(), "ReplicaGroup": REPLICA_GROUP}
