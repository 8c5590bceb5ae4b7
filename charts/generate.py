"""Everything in the chart that follows from something else, and the plain manifest that follows from the chart.

    python charts/generate.py [--check]

* `berth/files/crds/` from `crds/`, byte by byte;
* descriptions in `berth/values.schema.json` from the comments in `values.yaml`, its `settings` from `berth.settings`;
* the table of values in `berth/README.md` from `values.yaml`;
* `berth/files/dashboard.json` from `charts/dashboard.py`;
* `manifests/install.yaml` from the chart, rendered by Helm.

`--check` writes nothing and fails, naming what is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from berth.local import binaries
from berth.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[1]

CHART: Final = ROOT / "charts" / "berth"
NAMESPACE: Final = "berth-system"
SET_BY_THE_CHART: Final = (
    "namespace",
    "kubeconfig",
    "context",
    "lease_name",
    "lease_namespace",
    "listen",
    "live",
    "live_service",
)
TABLE: Final = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)


@dataclass(frozen=True)
class Value:
    """One value of the chart: a leaf of values.yaml, or a mapping that users fill."""

    path: tuple[str, ...]
    default: Any
    description: str


def values() -> list[Value]:
    """All values in the order of values.yaml; ValueError for one without a comment."""
    text = (CHART / "values.yaml").read_text()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_values(root, text.splitlines(), ()))


def _values(node: yaml.MappingNode, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, child in node.value:
        here = (*path, key.value)
        comment = _comment_above(lines, key.start_mark.line)
        if not comment and isinstance(child, yaml.MappingNode) and child.value:
            yield from _values(child, lines, here)
        elif comment:
            yield Value(here, yaml.safe_load(yaml.serialize(child)), comment)
        else:
            raise ValueError(f"values.yaml: {'.'.join(here)} has no comment above it: describe it")


def _comment_above(lines: list[str], index: int) -> str:
    found: list[str] = []
    while index > 0 and lines[index - 1].lstrip().startswith("#"):
        index -= 1
        found.insert(0, lines[index].strip().lstrip("# "))
    return " ".join(found)


def readme() -> str:
    """README.md with the table of values as it should be."""
    rows = ["| key | default | description |", "|---|---|---|"]
    for value in values():
        default = json.dumps(value.default).replace("|", "\\|")
        rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {value.description.replace('|', chr(92) + '|')} |")
    return TABLE.sub(lambda _: "\n".join(rows) + "\n", (CHART / "README.md").read_text())


def schema() -> str:
    """values.schema.json with descriptions and settings as they should be."""
    document = json.loads((CHART / "values.schema.json").read_text())
    document["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": dict(_settings()),
    }
    for value in values():
        node = document
        for part in value.path:
            node = node["properties"][part]
        children = {key: child for key, child in node.items() if key != "description"}
        node.clear()
        node.update({"description": value.description, **children})
    return json.dumps(document, indent=2) + "\n"


def _settings() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in dataclasses.fields(Settings):
        if each.name in SET_BY_THE_CHART:
            continue
        first, *rest = each.name.split("_")
        about = each.metadata
        key = first + "".join(part.capitalize() for part in rest)
        if isinstance(each.default, str):
            yield key, {"description": f"{about['description']} Default: {each.default}.", "type": "string"}
            continue
        yield (
            key,
            {
                "description": f"{about['description']} Default: {each.default:g} {about['unit']}".rstrip() + ".",
                "type": "integer" if isinstance(each.default, int) else "number",
                "minimum": about["low"],
                "maximum": about["high"],
            },
        )


def install() -> str:
    """The chart as it is with its default values, for `kubectl apply`, with its namespace."""
    helm = binaries.provide(["helm"])["helm"]
    options = ["--namespace", NAMESPACE, "--no-hooks", "--set", "crds.keep=false"]
    rendered = subprocess.run([helm, "template", "berth", CHART, *options], check=True, capture_output=True, text=True)
    lines = [line for line in rendered.stdout.splitlines() if not line.startswith("# Source:")]
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    head = "# Rendered from charts/berth by charts/generate.py; do not edit.\n"
    body = "\n".join(lines).rstrip() + "\n"
    return head + "---\n" + yaml.safe_dump(namespace, sort_keys=False) + re.sub(r"\n\n+(?=---\n)", "\n", body)


def files() -> dict[Path, str]:
    """Every generated file of the chart with its content."""
    crds = {CHART / "files" / "crds" / path.name: path.read_text() for path in sorted((ROOT / "crds").glob("*.yaml"))}
    sys.path.insert(0, str(ROOT))  # a script sees only its own folder
    from charts.dashboard import dashboard

    return {
        **crds,
        CHART / "files" / "dashboard.json": dashboard(),
        CHART / "values.schema.json": schema(),
        CHART / "README.md": readme(),
    }


def stale(wanted: dict[Path, str]) -> list[Path]:
    """What of `wanted` is missing or different."""
    return [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything is out of date")
    check = parser.parse_args().check
    # The plain manifest comes second, because it is rendered from the first.
    changed = _bring_up_to_date(files(), check)
    changed += _bring_up_to_date({ROOT / "manifests" / "install.yaml": install()}, check)
    for path in changed:
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
    if check and changed:
        sys.exit("run: python charts/generate.py")


def _bring_up_to_date(wanted: dict[Path, str], check: bool) -> list[Path]:
    changed = stale(wanted)
    for path in [] if check else changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
    return changed


if __name__ == "__main__":
    main()
