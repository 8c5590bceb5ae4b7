"""Berth, a LeaderWorkerSet and a Deployment with the same pods on the same cluster, hit by the same fault at once.

    python -m e2e.bench_peers [--runs 5] [--faults kill,delete,pause,stop] [--limit 90]

Each subject runs two groups of one pod, on two nodes; the peers' pods are those that Berth made, without what only
Berth reads. So readiness, engine and launcher are the same everywhere, and what differs is who notices and who acts.
Each run begins with new objects: Berth and kubelets wait longer with every failure of the same ones. From the fault,
in seconds: until the last request went into what was lost, until the pod is out of the Service's endpoints, until a
new pod exists, until two groups serve again; and how many requests of a client with one retry failed. Prints one JSON
object per run and subject, then a table of p50 and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from berth import labels
from e2e import site as sites
from e2e.cluster.kubectl import Kubectl, Manifest
from e2e.cluster.shell import Failed, wait
from e2e.cluster.steps import say
from e2e.site import Site, sample
from e2e.support import faults, leader_worker_set
from e2e.support.deployments import node_of, uid
from e2e.support.traffic import Account, traffic

GROUPS: Final = 2
NAMESPACE: Final = "peers"


@dataclass(frozen=True)
class Fault:
    """To the pods of all subjects on one node, or to the node."""

    words: str
    to_pod: Callable[[Kubectl, Manifest], None] | None = None
    to_node: Callable[[str], None] | None = None


def _delete(kubectl: Kubectl, pod: Manifest) -> None:
    kubectl.delete("pod", pod["metadata"]["name"], NAMESPACE, "--force", "--grace-period=0")


FAULTS: Final = {
    "kill": Fault("process killed", to_pod=lambda _, pod: faults.kill_container(pod)),
    "delete": Fault("pod deleted", to_pod=_delete),
    "pause": Fault("node silent", to_node=faults.pause_node),
    "stop": Fault("node without power", to_node=faults.stop_node),
}


@dataclass(frozen=True)
class Subject:
    name: str
    service: str
    labels: dict[str, str]
    """Of its pods."""

    @property
    def address(self) -> str:
        return f"{self.service}.{NAMESPACE}.svc:{labels.PORT_GRPC}"

    def pods(self, seen: Sequence[Manifest]) -> list[Manifest]:
        return [
            each
            for each in seen
            if each["kind"] == "Pod" and self.labels.items() <= each["metadata"].get("labels", {}).items()
        ]

    def serving(self, seen: Sequence[Manifest]) -> list[Manifest]:
        """Pods that the Service sends requests to."""
        addresses: set[str] = set()
        for each in seen:
            of = each["metadata"].get("labels", {}).get("kubernetes.io/service-name")
            if each["kind"] == "EndpointSlice" and of == self.service:
                for endpoint in each.get("endpoints") or ():
                    if endpoint["conditions"].get("ready"):
                        addresses |= set(endpoint["addresses"])
        return [pod for pod in self.pods(seen) if pod["status"].get("podIP") in addresses]

    def on_two_nodes(self, seen: Sequence[Manifest]) -> bool:
        """All of it serves, each group on a node of its own."""
        serving = self.serving(seen)
        return len(serving) == GROUPS == len({node_of(pod) for pod in serving}) == len(self.pods(seen))


BERTH: Final = Subject("Berth", "llama-8b", {labels.DEPLOYMENT: "llama-8b", labels.MEMBER: labels.LEADER})
LEADER_WORKER_SET: Final = Subject("LeaderWorkerSet", "lws", {"app": "lws"})
DEPLOYMENT: Final = Subject("Deployment", "deployment", {"app": "deployment"})
SUBJECTS: Final = (BERTH, LEADER_WORKER_SET, DEPLOYMENT)


@dataclass(frozen=True)
class Run:
    """Seconds after the fault; None: not within the limit, or (created) not needed."""

    subject: str
    fault: str
    last_request: float | None
    """When the last request was sent that failed or had to be sent again; None: there was none before the repair."""
    out_of_service: float | None
    created: float | None
    serving: float | None
    requests: int
    failed: int
    load: float
    """Of this machine in the last minute of the run."""


@dataclass
class Watch:
    """What becomes of one subject after the fault."""

    subject: Subject
    victim: Manifest
    known: set[str]
    """UIDs of its pods before."""
    at: float
    """Of the fault; Unix seconds."""
    times: dict[str, float | None] = field(
        default_factory=lambda: {"out_of_service": None, "created": None, "serving": None}
    )

    def look(self, seen: Sequence[Manifest], now: float) -> bool:
        """Whether all groups serve again."""
        serving = self.subject.serving(seen)
        if all(uid(pod) != uid(self.victim) for pod in serving):
            self._note("out_of_service", now)
        if {uid(pod) for pod in self.subject.pods(seen)} - self.known:
            self._note("created", now)
        healed = [pod for pod in serving if _life(pod) != _life(self.victim)]
        if self.times["out_of_service"] is not None and len(healed) >= GROUPS:
            self._note("serving", now)
        return self.times["serving"] is not None

    def run(self, fault: str, account: Account, until: float, load: float) -> Run:
        """`until`: what was sent later is not counted as trouble, the node was repaired."""
        troubled = [each.sent - self.at for each in (*account.failed, *account.retried) if each.sent < until]
        last = round(max(0.0, max(troubled)), 1) if troubled else None
        counts = len(account.requests), len(account.failed)
        return Run(self.subject.name, fault, last, **self.times, requests=counts[0], failed=counts[1], load=load)

    def _note(self, what: str, now: float) -> None:
        if self.times[what] is None:
            self.times[what] = round(now - self.at, 1)


def _life(pod: Manifest) -> tuple[str, int]:
    """Of the container that serves in the pod."""
    statuses = pod["status"].get("containerStatuses") or [{"restartCount": 0}]
    return uid(pod), int(statuses[0]["restartCount"])


# --- one run ----------------------------------------------------------------------------------------------------------
def measure(site: Site, fault: str, limit: float) -> list[Run]:
    """Hits one node's pods of all subjects, watches until all are whole again or `limit` seconds, and repairs."""
    kubectl = site.cluster.kubectl

    def spread() -> bool:
        seen = _look(kubectl)
        return all(subject.on_two_nodes(seen) for subject in SUBJECTS)

    wait("everybody serves on two nodes", spread, timeout=240)
    with ExitStack() as stack:
        clients = [stack.enter_context(traffic(site.cluster, subject.address)) for subject in SUBJECTS]
        watches = _strike(kubectl, FAULTS[fault])
        began = time.time()
        while time.time() - began < limit:
            seen, now = _look(kubectl), time.time()
            whole = [watch.look(seen, now) for watch in watches]
            if all(whole):
                break
            time.sleep(0.2)
        until, load = time.time(), round(os.getloadavg()[0], 1)
        if FAULTS[fault].to_node is not None:
            site.repair()
        wait(
            "everybody serves",
            lambda: all(len(each.serving(_look(kubectl))) == GROUPS for each in SUBJECTS),
            timeout=300,
        )
    accounts = [client.stop() for client in clients]
    for watch, account in zip(watches, accounts, strict=True):
        if account.failed:
            sent = ", ".join(f"{each.sent - watch.at:.1f}" for each in account.failed)
            say(f"{watch.subject.name}: requests sent {sent} s after the fault failed: {account.failed[0].error[:200]}")
    return [watch.run(fault, account, until, load) for watch, account in zip(watches, accounts, strict=True)]


def _strike(kubectl: Kubectl, fault: Fault) -> list[Watch]:
    seen = _look(kubectl)
    node = min(node_of(pod) for pod in BERTH.pods(seen))
    victims = [next(pod for pod in subject.pods(seen) if node_of(pod) == node) for subject in SUBJECTS]
    at = time.time()
    if fault.to_node is not None:
        fault.to_node(node)
    if fault.to_pod is not None:
        with ThreadPoolExecutor(len(victims)) as hands:
            list(hands.map(partial(fault.to_pod, kubectl), victims))
    return [
        Watch(subject, victim, {uid(pod) for pod in subject.pods(seen)}, at)
        for subject, victim in zip(SUBJECTS, victims, strict=True)
    ]


def _look(kubectl: Kubectl) -> list[Manifest]:
    return kubectl.list("pods,endpointslices", NAMESPACE)


# --- the subjects -----------------------------------------------------------------------------------------------------
def create(site: Site) -> None:
    """All three; the peers from a pod of Berth's and a copy of its ConfigMap: what anybody could have written."""
    kubectl = site.cluster.kubectl
    allocation = {"pool": "h100", "variant": "bf16", "tensorParallel": 1, "groups": GROUPS}
    placement = {"mode": "Fixed", "fixed": {"allocations": [allocation]}}
    kubectl.apply(sample("llama-8b-one-gpu", NAMESPACE, site, placement=placement))
    wait("Berth makes pods", lambda: len(BERTH.pods(_look(kubectl))) == GROUPS, timeout=60)
    spec = BERTH.pods(_look(kubectl))[0]["spec"]
    config = next(each["configMap"]["name"] for each in spec["volumes"] if "configMap" in each)
    for peer in (LEADER_WORKER_SET, DEPLOYMENT):
        template = {"metadata": {"labels": peer.labels}, "spec": _plain(spec, peer)}
        ports = [{"name": "grpc", "port": labels.PORT_GRPC}]
        kubectl.apply(
            {**_object(peer, "v1", "ConfigMap"), "data": kubectl.get("configmap", config, NAMESPACE)["data"]},
            {**_object(peer, "v1", "Service"), "spec": {"selector": peer.labels, "ports": ports}},
            _workload(peer, template),
        )


def _workload(peer: Subject, template: Manifest) -> Manifest:
    if peer is DEPLOYMENT:
        spec = {"replicas": GROUPS, "selector": {"matchLabels": peer.labels}, "template": template}
        return {**_object(peer, "apps/v1", "Deployment"), "spec": spec}
    group = {"size": 1, "restartPolicy": "RecreateGroupOnPodRestart", "workerTemplate": template}
    spec = {"replicas": GROUPS, "leaderWorkerTemplate": group}
    return {**_object(peer, "leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"), "spec": spec}


def _plain(spec: Manifest, peer: Subject) -> Manifest:
    """Without what only Berth reads, spread over nodes in the scheduler's way."""
    plain: Manifest = json.loads(json.dumps(spec))
    for name in ("nodeName", "affinity", "hostname", "subdomain", "schedulingGates", "serviceAccount", "priority"):
        plain.pop(name, None)
    plain["tolerations"] = [each for each in plain["tolerations"] if each.get("key") == "nvidia.com/gpu"]
    match = {"labelSelector": {"matchLabels": peer.labels}, "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1}
    plain["topologySpreadConstraints"] = [{"topologyKey": "kubernetes.io/hostname", **match}]
    for volume in plain["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = peer.service
    return plain


def _object(peer: Subject, version: str, kind: str) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": peer.service, "namespace": NAMESPACE}}


def remove(site: Site) -> None:
    kubectl = site.cluster.kubectl
    for kind in ("llmdeployments", "leaderworkersets", "deployments"):
        kubectl("delete", kind, "--all", f"--namespace={NAMESPACE}", "--wait=false")
    kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--grace-period=1", "--wait=false")
    wait("no pods are left", lambda: not kubectl.list("pods", NAMESPACE), timeout=120)


def _await_webhook(kubectl: Kubectl) -> None:
    """Of LeaderWorkerSet: Ready pods say nothing about it."""
    template = {"metadata": {"labels": LEADER_WORKER_SET.labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}}

    def answers() -> bool:
        kubectl.apply(_workload(LEADER_WORKER_SET, template), arguments=("--dry-run=server",))
        return True

    wait("the webhook of LeaderWorkerSet answers", answers, timeout=120)


# --- all runs ---------------------------------------------------------------------------------------------------------
def table(runs: Sequence[Run]) -> str:
    """Markdown: p50 / max of each."""
    lines = [
        "| fault | | last request into it | out of the Service | new pod | serving again | failed requests | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = {"last_request": "none", "out_of_service": "never", "created": "none", "serving": "never"}
    for name, fault in FAULTS.items():
        for subject in SUBJECTS:
            some = [each for each in runs if (each.fault, each.subject) == (name, subject.name)]
            if some:
                cells = [_cell([getattr(each, column) for each in some], word) for column, word in columns.items()]
                failed = f"{sum(each.failed for each in some)} of {sum(each.requests for each in some)}"
                lines.append(f"| {fault.words} | {subject.name} | {' | '.join(cells)} | {failed} | {len(some)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], absent: str) -> str:
    known = [each for each in values if each is not None]
    if not known:
        return "-"
    missing = f", {len(values) - len(known)} {absent}" if len(known) < len(values) else ""
    return f"{statistics.median(known):.1f} / {max(known):.1f} s{missing}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--limit", type=float, default=90.0, help="seconds after which something counts as never")
    given = parser.parse_args(arguments)
    site, runs = sites.up(), list[Run]()
    site.repair()
    site.cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    leader_worker_set.install(site)
    _await_webhook(site.cluster.kubectl)
    remove(site)
    for fault in given.faults.split(","):
        for number in range(given.runs):
            say(f"{FAULTS[fault].words}, run {number + 1} of {given.runs}")
            try:
                create(site)
                found = measure(site, fault, given.limit)
                print("\n".join(json.dumps(vars(each)) for each in found), flush=True)
                runs += found
            except Failed as error:
                say(f"not counted: {error}")
                site.repair()
            remove(site)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
