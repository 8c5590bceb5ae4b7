"""A cluster of a few dictionaries that plays API server, scheduler and kubelets, and what a test may do to it."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any, TypeVar

from berth import labels
from berth.controller import parse
from berth.core.timestamps import timestamp

Manifest = dict[str, Any]
T = TypeVar("T")

GPUS_PER_NODE = 8
GIVEN_UP = 3
"""Rounds of silence after which the control plane calls a node, and all that ran there, not ready."""


class Cluster:
    """`nodes` nodes with the objects of one deployment, `stored`. Time passes where `now` is set."""

    def __init__(self, stored: Manifest, nodes: int = 3) -> None:
        self.stored = copy_of(stored)
        self.nodes = {f"node-{index}": GPUS_PER_NODE for index in range(nodes)}
        self.groups: dict[str, Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.children: dict[tuple[str, str], Manifest] = {}
        self.now = 1_000_000.0
        self.silent: set[str] = set()
        """UIDs of leaders that produce no token; "*" is everybody."""
        self.dead: set[str] = set()
        """Nodes without power: nothing starts there, and nothing that is deleted goes."""
        self.cordoned: set[str] = set()
        """Nodes somebody is about to take away: they take no new pods."""
        self.mute: set[str] = set()
        """Nodes whose kubelet is cut off: no Lease, no status; their containers run on."""
        self.gone: set[str] = set()
        """Nodes that were deleted."""
        self.sick: set[str] = set()
        """UIDs of pods whose GPUs are reported unhealthy."""
        self.hung: set[str] = set()
        """UIDs of leaders whose engine has work, makes no progress and gives no token."""
        self.deaf = False
        """The operator's network reaches no leader."""
        self.quiet: Counter[str] = Counter()
        """How long each silent node has been so, in rounds of the kubelets."""
        self.busy = False
        self.tokens: set[tuple[str, int]] = set()
        """Container lives (pod UID, restart count) that produced one."""
        self.draining: set[str] = set()
        """UIDs of leaders that take no new requests."""
        self._uids = itertools.count(1)

    def _held(self, node: str, without: set[str]) -> int:
        """GPUs of bound pods, and of members that are planned here and not bound yet."""
        bound = [pod for pod in self.pods.values() if pod["spec"].get("nodeName") == node]
        held = sum(gpus_of(pod) for pod in bound if owner_of(pod) not in without)
        for group in self.groups.values():
            if parse.lifecycle(group) not in (labels.RESERVED, labels.COMMITTED):
                continue
            planned = group["spec"]["plannedNodes"].count(node)
            present = sum(owner_of(pod) == group["metadata"]["uid"] for pod in bound)
            held += max(0, planned - present) * copy_gpus(group) // group["spec"]["members"]
        return held

    def kubelets(self) -> None:
        """Everything that is due happens: deleted pods go, others are bound and run."""
        for node in self.nodes:
            self.quiet[node] = self.quiet[node] + 1 if node in self.dead | self.mute | self.gone else 0
        absent = self.dead | self.mute
        for name, pod in list(self.pods.items()):
            node = pod["spec"].get("nodeName")
            if node in self.gone or ("deletionTimestamp" in pod["metadata"] and node not in absent):
                del self.pods[name]
        for pod in self.pods.values():
            if pod["spec"].get("nodeName") in self.mute:
                continue
            if self._crashed(pod) and pod["spec"].get("nodeName") not in self.dead:
                pod["status"]["containerStatuses"][0].pop("state")
                pod["status"]["containerStatuses"][0]["restartCount"] += 1
                pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
            if pod["spec"].get("nodeName") in self.dead:
                if self.quiet[pod["spec"]["nodeName"]] >= GIVEN_UP:  # until then it says what the kubelet said last
                    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
            elif "nodeName" not in pod["spec"] and "schedulingGates" not in pod["spec"]:
                self._bind(pod)
            elif pod["status"]["phase"] == "Pending" and "nodeName" in pod["spec"]:
                pod["status"] |= {
                    "phase": "Running",
                    "podIP": f"10.0.0.{pod['metadata']['uid']}",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "triton", "restartCount": 0}],
                }

    def _bind(self, pod: Manifest) -> None:
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        node = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
        taken = sum(gpus_of(each) for each in self.pods.values() if each["spec"].get("nodeName") == node)
        if taken + gpus_of(pod) <= self.nodes[node] and node not in self.cordoned:
            pod["spec"]["nodeName"] = node
        else:
            refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
            pod["status"]["conditions"] = [refused]

    def leader_of(self, group: Manifest) -> Manifest | None:
        return self.pods.get(f"{group['metadata']['name']}-0")

    def serves(self, group: Manifest) -> bool:
        """Requests reach a leader of this container life's own token."""
        leader = self.leader_of(group)
        return (
            leader is not None
            and parse.lifecycle(group) == labels.COMMITTED
            and leader["metadata"]["labels"].get(labels.SERVING) == "true"
            and "deletionTimestamp" not in leader["metadata"]
            and is_ready(leader)
            and (leader["metadata"]["uid"], leader["status"]["containerStatuses"][0]["restartCount"]) in self.tokens
        )

    def crash(self, pod: Manifest) -> None:
        """Its container ends, and the kubelet takes its time to start it again."""
        status = pod["status"]["containerStatuses"][0]
        self.draining.discard(pod["metadata"]["uid"])
        status["lastState"] = {"terminated": {"exitCode": 137, "reason": "Error"}}
        status["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]

    def restart(self, pod: Manifest) -> None:
        """Its container ends and is started again; its next life takes requests."""
        status = pod["status"]["containerStatuses"][0]
        self.draining.discard(pod["metadata"]["uid"])
        status["restartCount"] += 1
        status["lastState"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}

    def _create_pod(self, manifest: Manifest) -> None:
        manifest["metadata"] |= {"uid": self._uid(), "creationTimestamp": timestamp(self.now)}
        manifest["status"] = {"phase": "Pending"}
        self.pods[manifest["metadata"]["name"]] = manifest

    def _set_serving(self, name: str, uid: str, restarts: int, serving: bool) -> None:
        pod = self._pod(name, uid)
        if pod is None:
            return
        pod["metadata"]["labels"][labels.SERVING] = "true" if serving else "false"
        if serving:
            assert (uid, restarts) in self.tokens, f"{name} serves without a token"
            pod["metadata"].setdefault("annotations", {})[labels.TOKEN_RESTARTS] = str(restarts)

    def _pod(self, name: str, uid: str) -> Manifest | None:
        pod = self.pods.get(name)
        return pod if pod is not None and pod["metadata"]["uid"] == uid else None

    def _uid(self) -> str:
        return str(next(self._uids))

    def _crashed(self, pod: Manifest) -> bool:
        return "state" in (pod["status"].get("containerStatuses") or [{}])[0]

    def _unreachable(self, pod: Manifest) -> bool:
        return self.deaf or pod["spec"].get("nodeName") in self.dead | self.gone


def copy_of(value: T) -> T:
    """As deepcopy, several times faster: every pass starts from copies, so that none can change what is stored."""
    return pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))  # type: ignore[no-any-return]


def owner_of(pod: Manifest) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def is_ready(pod: Manifest) -> bool:
    return {"type": "Ready", "status": "True"} in pod["status"].get("conditions", ())


def gpus_of(pod: Manifest) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


def copy_gpus(group: Manifest) -> int:
    allocation = group["spec"]["allocation"]
    return int(allocation["tensorParallel"]) * int(allocation["pipelineParallel"])
