"""Berth and those it is measured beside, with the same pods on the same cluster: how they are made, and what serves.

Each subject has two groups. The peers' pods are those that Berth made, without what only Berth reads, so readiness,
engine and launcher are the same everywhere. A Deployment has no groups of several pods.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from berth import labels
from e2e import site as sites
from e2e.cluster.kubectl import Kubectl, Manifest
from e2e.cluster.shell import wait
from e2e.site import Site, sample
from e2e.support.deployments import node_of

GROUPS: Final = 2
NAMESPACE: Final = "peers"
POOL: Final = "h100"
_LWS: Final = "leaderworkerset.sigs.k8s.io"


@dataclass(frozen=True)
class Subject:
    name: str
    workload: str
    """Name of its object."""
    service: str
    """That clients send to."""
    labels: dict[str, str]
    """Of its pods."""
    leaders: dict[str, str] = field(default_factory=dict)
    """And of those that the Service selects."""
    group: str = ""
    """Label by which pods of one group are told; none: each is a group."""

    @property
    def address(self) -> str:
        return f"{self.service}.{NAMESPACE}.svc:{labels.PORT_GRPC}"

    def pods(self, seen: Iterable[Manifest]) -> list[Manifest]:
        return [each for each in seen if each["kind"] == "Pod" and _has(each, self.labels)]

    def members(self, seen: Iterable[Manifest], of: Manifest) -> list[Manifest]:
        """Pods of the group that the pod `of` belongs to, its leader first."""
        found = [each for each in self.pods(seen) if _label(each, self.group) == _label(of, self.group)]
        return sorted(found, key=lambda each: not _has(each, self.leaders)) if self.group else [of]

    def serving(self, seen: Sequence[Manifest]) -> list[Manifest]:
        """Pods that the Service sends requests to."""
        addresses: set[str] = set()
        for each in seen:
            of = _label(each, "kubernetes.io/service-name")
            if each["kind"] == "EndpointSlice" and of == self.service:
                for endpoint in each.get("endpoints") or ():
                    if endpoint["conditions"].get("ready"):
                        addresses |= set(endpoint["addresses"])
        return [pod for pod in self.pods(seen) if pod["status"].get("podIP") in addresses]

    def whole(self, seen: Sequence[Manifest], size: int) -> bool:
        """All of it serves and nothing else is left; groups of one pod each on a node of its own."""
        serving = self.serving(seen)
        apart = size > 1 or len({node_of(pod) for pod in serving}) == GROUPS
        return len(serving) == GROUPS and len(self.pods(seen)) == GROUPS * size and apart


BERTH: Final = Subject(
    "Berth",
    "llama-8b",
    "llama-8b",
    {labels.DEPLOYMENT: "llama-8b"},
    {labels.MEMBER: labels.LEADER},
    labels.GROUP_LABEL,
)
LEADER_WORKER_SET: Final = Subject(
    "LeaderWorkerSet", "lws", "lws-leaders", {"app": "lws"}, {f"{_LWS}/worker-index": "0"}, f"{_LWS}/group-index"
)
DEPLOYMENT: Final = Subject("Deployment", "deployment", "deployment", {"app": "deployment"})


def subjects(size: int) -> tuple[Subject, ...]:
    """Those that can have groups of so many pods."""
    return (BERTH, LEADER_WORKER_SET, DEPLOYMENT) if size == 1 else (BERTH, LEADER_WORKER_SET)


def look(kubectl: Kubectl) -> list[Manifest]:
    return kubectl.list("pods,endpointslices", NAMESPACE)


# --- making and removing ----------------------------------------------------------------------------------------------
def create(site: Site, size: int) -> None:
    """All subjects; the peers from pods of a group of Berth and a copy of its ConfigMap: what anybody could write."""
    kubectl = site.cluster.kubectl
    if size > 1:
        kubectl.apply(_pool_of_single_gpus())
    allocation = {"pool": POOL, "variant": "bf16", "tensorParallel": 1, "pipelineParallel": size, "groups": GROUPS}
    placement = {"mode": "Fixed", "fixed": {"allocations": [allocation]}}
    kubectl.apply(sample("llama-8b-one-gpu", NAMESPACE, site, placement=placement))
    wait("Berth makes pods", lambda: len(BERTH.pods(look(kubectl))) == GROUPS * size, timeout=60)
    seen = look(kubectl)
    members = [each["spec"] for each in BERTH.members(seen, BERTH.pods(seen)[0])]
    config = next(each["configMap"]["name"] for each in members[0]["volumes"] if "configMap" in each)
    for peer in subjects(size)[1:]:
        templates = [{"metadata": {"labels": peer.labels}, "spec": _plain(spec, peer)} for spec in members]
        ports = [{"name": "grpc", "port": labels.PORT_GRPC}]
        selector = {**peer.labels, **peer.leaders}
        kubectl.apply(
            {**_object("v1", "ConfigMap", peer.workload), "data": kubectl.get("configmap", config, NAMESPACE)["data"]},
            {**_object("v1", "Service", peer.service), "spec": {"selector": selector, "ports": ports}},
            _workload(peer, templates),
        )


def remove(site: Site) -> None:
    kubectl = site.cluster.kubectl
    for kind in ("llmdeployments", "leaderworkersets", "deployments"):
        kubectl("delete", kind, "--all", f"--namespace={NAMESPACE}", "--wait=false")
    kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--grace-period=1", "--wait=false")
    wait("no pods are left", lambda: not kubectl.list("pods", NAMESPACE), timeout=120)


def webhook_answers(kubectl: Kubectl) -> bool:
    """LeaderWorkerSet's, which Ready pods say nothing about. Raises Failed while it does not."""
    template = {"metadata": {"labels": LEADER_WORKER_SET.labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    kubectl.apply(_workload(LEADER_WORKER_SET, [template]), arguments=("--dry-run=server",))
    return True


def _pool_of_single_gpus() -> Manifest:
    """A pod gets no more GPUs than its pool's nodes have: a group of two is two pods."""
    pool = next(each for each in sites.pools() if each["metadata"]["name"] == POOL)
    return {**pool, "spec": {**pool["spec"], "gpusPerNode": 1}}


def _workload(peer: Subject, templates: Sequence[Manifest]) -> Manifest:
    """`templates`: of each member, the leader first."""
    if peer is DEPLOYMENT:
        spec = {"replicas": GROUPS, "selector": {"matchLabels": peer.labels}, "template": templates[0]}
        return {**_object("apps/v1", "Deployment", peer.workload), "spec": spec}
    group: dict[str, Any] = {"size": len(templates), "restartPolicy": "RecreateGroupOnPodRestart"}
    group |= {"leaderTemplate": templates[0], "workerTemplate": templates[-1]}
    spec = {"replicas": GROUPS, "leaderWorkerTemplate": group}
    return {**_object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", peer.workload), "spec": spec}


def _plain(spec: Manifest, peer: Subject) -> Manifest:
    """Without what only Berth reads, spread over nodes in the scheduler's way."""
    plain: Manifest = json.loads(json.dumps(spec))
    for name in ("nodeName", "affinity", "hostname", "subdomain", "schedulingGates", "serviceAccount", "priority"):
        plain.pop(name, None)
    plain["restartPolicy"] = "Always"
    plain["tolerations"] = [each for each in plain["tolerations"] if each.get("key") == "nvidia.com/gpu"]
    match = {"labelSelector": {"matchLabels": peer.labels}, "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1}
    plain["topologySpreadConstraints"] = [{"topologyKey": "kubernetes.io/hostname", **match}]
    for volume in plain["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = peer.workload
    (container,) = plain["containers"]
    leader = "--leader=$(LWS_LEADER_ADDRESS)"
    container["args"] = [leader if each.startswith("--leader=") else each for each in container.get("args", ())]
    return plain


def _object(version: str, kind: str, name: str) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}}


def _label(manifest: Manifest, name: str) -> str | None:
    value: str | None = manifest["metadata"].get("labels", {}).get(name)
    return value


def _has(manifest: Manifest, wanted: dict[str, str]) -> bool:
    return all(_label(manifest, name) == value for name, value in wanted.items())
