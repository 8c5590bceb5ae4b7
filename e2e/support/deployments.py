"""An LLMDeployment under test, as a person sees it with kubectl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from berth import labels
from e2e.cluster.kubectl import Kubectl, Manifest, condition
from e2e.cluster.shell import wait


@dataclass(frozen=True)
class Deployment:
    kubectl: Kubectl
    namespace: str
    name: str

    @property
    def address(self) -> str:
        """Of Triton's gRPC, through the Service by name."""
        return f"{self.name}.{self.namespace}.svc:{labels.PORT_GRPC}"

    def get(self) -> Manifest:
        return self.kubectl.get("llmdeployment", self.name, self.namespace)

    def status(self) -> Manifest:
        found: Manifest = self.get().get("status", {})
        return found

    def patch(self, **spec: Any) -> None:
        self.kubectl.patch("llmdeployment", self.name, self.namespace, {"spec": spec})

    def leaders(self, *, serving: bool = True) -> list[Manifest]:
        """Leader pods; with `serving` those that get requests."""
        wanted = [f"{labels.DEPLOYMENT}={self.name}", f"{labels.MEMBER}={labels.LEADER}"]
        return self.kubectl.list("pods", self.namespace, ",".join([*wanted, *([f"{labels.SERVING}=true"] * serving)]))

    def pods(self) -> list[Manifest]:
        return self.kubectl.list("pods", self.namespace, f"{labels.DEPLOYMENT}={self.name}")

    def groups(self) -> list[Manifest]:
        """ReplicaGroups, failed ones included."""
        return self.kubectl.list("replicagroups", self.namespace, f"{labels.DEPLOYMENT}={self.name}")

    def failed_groups(self) -> list[Manifest]:
        return [each for each in self.groups() if each["metadata"]["labels"].get(labels.LIFECYCLE) == labels.FAILED]

    def serves(self, groups: int) -> bool:
        """Ready for the newest spec, with exactly so many leaders that get requests and no other pods of leaders."""
        found = self.get()
        observed = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        ready = observed and condition(found, "Ready") == "True"
        return ready and len(self.leaders()) == groups == len(self.leaders(serving=False))

    def wait_until_serving(self, groups: int, timeout: float = 180) -> float:
        return wait(f"{self.name} serves with {groups} groups", lambda: self.serves(groups), timeout)

    def wait_until_chosen(self, timeout: float = 60) -> float:
        """Until a placement has been decided on."""
        return wait(
            f"a placement of {self.name}", lambda: self.status().get("placement", {}).get("allocations"), timeout
        )

    def with_groups(self, groups: int) -> Manifest:
        """`spec.placement`, fixed, with another number of groups."""
        placement: Manifest = self.get()["spec"]["placement"]
        placement["fixed"]["allocations"][0]["groups"] = groups
        return placement


def node_of(pod: Manifest) -> str:
    return str(pod["spec"].get("nodeName", ""))


def uid(manifest: Manifest) -> str:
    return str(manifest["metadata"]["uid"])


def group_of(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][labels.GROUP_LABEL])
