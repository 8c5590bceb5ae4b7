"""Berth in the cluster: installed by its chart from its image, as the manual says."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.cluster.images import CHECKOUT, Archive
from e2e.cluster.kind import Cluster
from e2e.cluster.kubectl import Manifest, condition
from e2e.cluster.shell import run, wait

NAMESPACE: Final = "berth-system"
RELEASE: Final = "berth"
CHART: Final = CHECKOUT / "charts" / "berth"
_RELEASED: Final = CHECKOUT / "tests" / "data" / "released" / "v0.1.0"
OLD_CHART: Final = _RELEASED / "berth-0.1.0-rc.1.tgz"
OLD_OPERATOR: Final = _RELEASED / "operator-0.1.0-rc.1.tar.xz"
"""As they were released: never changed, or going from one to the other proves nothing."""
ON_CONTROL_PLANE: Final = {
    "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
}
"""Operators and clients stand on a node without GPUs, which no scenario takes away."""
SETTINGS: Final = {"nodeStable": 5}
"""A node that one scenario broke and repaired is used in the next."""


@dataclass(frozen=True)
class Berth:
    cluster: Cluster
    image: Archive

    def helm(self, *arguments: str | Path, timeout: float = 300) -> str:
        with tempfile.TemporaryDirectory() as home:
            own = {f"HELM_{kind}_HOME": f"{home}/{kind.lower()}" for kind in ("CACHE", "CONFIG", "DATA")}
            environment = {**self.cluster.kubectl.environment(), **own}
            return run(
                self.cluster.helm, *arguments, f"--namespace={NAMESPACE}", timeout=timeout, environment=environment
            )

    def install(self, image: Archive | None = None, chart: Path = CHART, **values: Any) -> None:
        """`helm upgrade --install --wait`: installs, or brings an installation to this image and these values."""
        used = image or self.image
        self.cluster.load(used, [self.cluster.control_plane])
        self._namespace()
        repository, _, tag = used.name.rpartition(":")
        content = {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "settings": SETTINGS,
            **ON_CONTROL_PLANE,
            **values,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(content, file)
            file.flush()
            self.helm("upgrade", "--install", RELEASE, chart, "--wait", "--timeout=4m", f"--values={file.name}")

    def pods(self) -> list[Manifest]:
        """Operator processes."""
        return self.cluster.kubectl.list(
            "pods", NAMESPACE, "app.kubernetes.io/name=berth,app.kubernetes.io/component=operator"
        )

    def leader(self) -> str:
        """Name of the pod that holds the Lease; empty if nobody does."""
        lease = self.cluster.kubectl.find("lease", RELEASE, NAMESPACE)
        holder = str((lease or {}).get("spec", {}).get("holderIdentity") or "")
        return next(
            (each["metadata"]["name"] for each in self.pods() if holder.startswith(each["metadata"]["name"])), ""
        )

    def ready(self) -> bool:
        """Two operators, both Ready."""
        return [condition(pod, "Ready") for pod in self.pods()] == ["True", "True"]

    def wait_for_leader(self, timeout: float = 60) -> str:
        wait("an operator leads", self.leader, timeout)
        return self.leader()

    def _namespace(self) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.cluster.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        )
