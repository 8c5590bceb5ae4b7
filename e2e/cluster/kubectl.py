"""kubectl on one cluster: the tests' hands. Nothing of the caller's configuration is read."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.shell import Failed, run, wait

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kubectl:
    program: Path
    kubeconfig: Path

    def __call__(self, *arguments: str | Path, input: str | None = None, timeout: float = 120) -> str:  # noqa: A002
        """What `kubectl arguments` printed. Raises Failed."""
        return run(self.program, *arguments, input=input, timeout=timeout, environment=self.environment())

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def start(self, *arguments: str | Path, log: Path) -> subprocess.Popen[bytes]:
        """A kubectl that goes on, such as port-forward."""
        with log.open("w") as output:
            return subprocess.Popen(
                [str(self.program), *map(str, arguments)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def apply(self, *manifests: Manifest, arguments: tuple[str, ...] = ()) -> None:
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self("apply", "--server-side", "--force-conflicts", *arguments, "-f", "-", input=content)

    def get(self, kind: str, name: str, namespace: str = "") -> Manifest:
        found: Manifest = json.loads(self("get", kind, name, *_in(namespace), "-o", "json"))
        return found

    def find(self, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Like `get`, None if there is no such object."""
        output = self("get", kind, name, *_in(namespace), "-o", "json", "--ignore-not-found")
        return json.loads(output) if output.strip() else None

    def list(self, kind: str, namespace: str = "", labels: str = "", fields: str = "") -> list[Manifest]:
        """Of one namespace; `*` is all."""
        where = ["--all-namespaces"] if namespace == "*" else _in(namespace)
        output = self("get", kind, *where, "-l", labels, f"--field-selector={fields}", "-o", "json")
        items: list[Manifest] = json.loads(output)["items"]
        return items

    def patch(self, kind: str, name: str, namespace: str, patch: Mapping[str, Any]) -> None:
        self("patch", kind, name, *_in(namespace), "--type=merge", "-p", json.dumps(patch))

    def delete(self, kind: str, name: str, namespace: str = "", *arguments: str) -> None:
        self("delete", kind, name, *_in(namespace), "--ignore-not-found", *arguments)

    def answers(self) -> bool:
        try:
            return self("get", "--raw", "/readyz", timeout=10).strip() == "ok"
        except Failed:
            return False

    def wait_for_nodes(self, number: int, timeout: float = 180) -> None:
        def ready() -> bool:
            return sum(condition(node, "Ready") == "True" for node in self.list("nodes")) == number

        wait(f"{number} nodes are Ready", ready, timeout)


def condition(manifest: Manifest, kind: str) -> str:
    """Status of a condition: True, False, Unknown, or empty if it is not there."""
    for each in manifest.get("status", {}).get("conditions", []):
        if each["type"] == kind:
            return str(each["status"])
    return ""


def _in(namespace: str) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []
