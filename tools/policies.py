"""What the chart renders against the policies of kube-score: security context, probes, budgets, network policies.

    python -m tools.policies

Both with default values and with every option on. A policy that the chart does not follow on purpose is listed here
with its reason; everything else fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from berth.local import binaries

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "berth"
OLDEST_KUBERNETES: Final = "v1.31"
NOT_FOLLOWED: Final = {
    "container-image-pull-policy": "a fixed version is pulled once; image.pullPolicy is a value",
    "deployment-has-host-podantiaffinity": "topologySpreadConstraints spread the replicas over nodes and zones",
}
EGRESS: Final = "pod-networkpolicy"
"""Wants egress rules, which the chart has as an option: no chart can know where every cluster's API server listens."""
OPTIONS: Final[Mapping[str, tuple[Mapping[str, Any], frozenset[str]]]] = {
    "defaults": ({}, frozenset({EGRESS})),
    "everything": (
        {
            "watchNamespace": "models",
            "networkPolicy": {"egress": True},
            "metrics": {"monitor": "ServiceMonitor", "alerts": True, "dashboard": True},
        },
        frozenset(),
    ),
}
"""Values, and policies that these values do not follow."""


def complaints(values: Mapping[str, Any], not_followed: frozenset[str] = frozenset()) -> Iterator[str]:
    """One line for each policy that the chart breaks with these values; its test pod, which lives seconds, left out."""
    programs = binaries.provide(["helm", "kube-score"])
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values), file)
        file.flush()
        command = [programs["helm"], "template", "berth", CHART, "--namespace", "berth-system", "--values", file.name]
        command.append("--skip-tests")
        rendered = subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True).stdout
    yield from scored(programs["kube-score"], rendered, not_followed | NOT_FOLLOWED.keys())


def scored(kube_score: Path, manifests: str, not_followed: Iterable[str] = ()) -> Iterator[str]:
    """What kube-score has against `manifests`."""
    command = [str(kube_score), "score", "-", "--output-format", "json", "--kubernetes-version", OLDEST_KUBERNETES]
    command.append("--ignore-container-cpu-limit")  # a throttled leader renews its Lease late
    for policy in sorted(not_followed):
        command += ["--ignore-test", policy]
    answer = subprocess.run(command, input=manifests, capture_output=True, text=True)
    for found in json.loads(answer.stdout):
        for check in found["checks"]:
            if not check["skipped"] and check["grade"] < 10:
                words = "; ".join(f"{each['path']} {each['summary']}".strip() for each in check["comments"] or ())
                yield f"{found['object_name']}: {check['check']['id']}: {words}"


def main() -> None:
    found = [f"{name}: {line}" for name, options in OPTIONS.items() for line in complaints(*options)]
    print("\n".join(found) or f"{len(OPTIONS)} renderings, no policy broken")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
