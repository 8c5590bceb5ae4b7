"""Berth, a LeaderWorkerSet and a Deployment with the same pods on the same cluster, hit by the same faults.

    python -m e2e.bench_peers [--runs 5] [--faults kill,delete,pause,stop] [--subjects Berth,LeaderWorkerSet,Deployment]
                              [--limit 150]

Each subject runs two groups of one pod; the peers' pods are those that Berth made, without what only Berth reads. So
readiness, engine and launcher are the same everywhere, and what differs is who notices and who acts. Each run begins
with new objects: Berth and kubelets wait longer with every failure of the same ones. From the fault, in seconds: until
the last request went into what was lost, until the pod is out of the Service's endpoints, until a new pod exists, until
two groups serve again; and how many requests of a client with one retry failed. Prints one JSON object per run, then a
table of p50 and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from berth import labels
from berth.local import binaries
from e2e import site as sites
from e2e.cluster import images, programs
from e2e.cluster.kubectl import Manifest
from e2e.cluster.shell import Failed, run, wait
from e2e.cluster.steps import say
from e2e.site import Site, sample
from e2e.support import faults
from e2e.support.berth import ON_CONTROL_PLANE
from e2e.support.deployments import node_of, uid
from e2e.support.traffic import traffic

GROUPS: Final = 2
NAMESPACE: Final = "peers"
APP: Final = "peer"
LWS_VERSION: Final = "v0.9.0"
FAULTS: Final[dict[str, tuple[str, Callable[[Manifest], None]]]] = {
    "kill": ("process killed", faults.kill_container),
    "delete": ("pod deleted", lambda pod: _delete(pod)),
    "pause": ("node silent", lambda pod: faults.pause_node(node_of(pod))),
    "stop": ("node without power", lambda pod: faults.stop_node(node_of(pod))),
}


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


@dataclass(frozen=True)
class Subject:
    name: str
    service: str
    selector: str
    create: Callable[[Site], None]


def berth(site: Site) -> None:
    site.cluster.kubectl.apply(sample("fixed-placement", NAMESPACE, site))


def deployment(site: Site) -> None:
    template = _template(site)
    spec = {"replicas": GROUPS, "selector": {"matchLabels": {"app": APP}}, "template": template}
    site.cluster.kubectl.apply(_service(), _object("apps/v1", "Deployment", spec))


def leader_worker_set(site: Site) -> None:
    template = {"size": 1, "restartPolicy": "RecreateGroupOnPodRestart", "workerTemplate": _template(site)}
    spec = {"replicas": GROUPS, "leaderWorkerTemplate": template}
    site.cluster.kubectl.apply(_service(), _object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", spec))


SUBJECTS: Final = {
    "Berth": Subject("Berth", "llama-70b", f"{labels.DEPLOYMENT}=llama-70b,{labels.MEMBER}={labels.LEADER}", berth),
    "LeaderWorkerSet": Subject("LeaderWorkerSet", APP, f"app={APP}", leader_worker_set),
    "Deployment": Subject("Deployment", APP, f"app={APP}", deployment),
}


# --- one run ----------------------------------------------------------------------------------------------------------
def measure(site: Site, subject: Subject, fault: str, limit: float) -> Run:
    """From two groups that serve to two groups that serve again, or for `limit` seconds."""
    wait(f"{subject.name} serves", lambda: len(_serving(site, subject)) == GROUPS, timeout=240)
    before = _pods(site, subject)
    victim = sorted(before, key=node_of)[0]
    address = f"{subject.service}.{NAMESPACE}.svc:{labels.PORT_GRPC}"
    with traffic(site.cluster, address) as client:
        at = time.time()
        FAULTS[fault][1](victim)
        out = created = serving = None
        known, life = {uid(pod) for pod in before}, _life(victim)
        while serving is None and time.time() - at < limit:
            pods, ready = _pods(site, subject), _serving(site, subject)
            now = round(time.time() - at, 1)
            if out is None and victim["status"]["podIP"] not in ready:
                out = now
            if created is None and {uid(pod) for pod in pods} - known:
                created = now
            fresh = [pod for pod in pods if pod["status"].get("podIP") in ready and _life(pod) != life]
            if out is not None and len(fresh) >= GROUPS:
                serving = now
            time.sleep(0.2)
        watched, load = time.time(), round(os.getloadavg()[0], 1)
        site.repair()
        wait(f"{subject.name} serves", lambda: len(_serving(site, subject)) == GROUPS, timeout=300)
    account = client.stop()
    troubled = [each.sent - at for each in (*account.failed, *account.retried) if each.sent < watched]
    last = round(max(0.0, max(troubled)), 1) if troubled else None
    return Run(subject.name, fault, last, out, created, serving, len(account.requests), len(account.failed), load)


def _pods(site: Site, subject: Subject) -> list[Manifest]:
    return site.cluster.kubectl.list("pods", NAMESPACE, subject.selector)


def _serving(site: Site, subject: Subject) -> set[str]:
    """Addresses that the Service sends requests to."""
    found = set()
    for each in site.cluster.kubectl.list("endpointslices", NAMESPACE, f"kubernetes.io/service-name={subject.service}"):
        for endpoint in each.get("endpoints") or ():
            if endpoint["conditions"].get("ready"):
                found |= set(endpoint["addresses"])
    return found


def _life(pod: Manifest) -> tuple[str, int]:
    """Of the container that serves in the pod."""
    statuses = pod["status"].get("containerStatuses") or [{"restartCount": 0}]
    return uid(pod), int(statuses[0]["restartCount"])


def _delete(pod: Manifest) -> None:
    meta = pod["metadata"]
    _site().cluster.kubectl.delete("pod", meta["name"], meta["namespace"], "--force", "--grace-period=0")


# --- the peers --------------------------------------------------------------------------------------------------------
def _template(site: Site) -> Manifest:
    """A pod of Berth's, with a copy of its ConfigMap: what anybody could have written."""
    kubectl = site.cluster.kubectl
    if kubectl.find("configmap", APP, NAMESPACE) is None:
        berth(site)
        wait("Berth serves", lambda: len(_serving(site, SUBJECTS["Berth"])) == GROUPS, timeout=240)
        pod = _pods(site, SUBJECTS["Berth"])[0]
        config = next(each["configMap"]["name"] for each in pod["spec"]["volumes"] if "configMap" in each)
        data = {"data": kubectl.get("configmap", config, NAMESPACE)["data"], "immutable": True}
        kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(), **data})
        annotated = {"metadata": {"annotations": {"pod": json.dumps(_plain(pod["spec"]))}}}
        kubectl.patch("configmap", APP, NAMESPACE, annotated)
        _remove(site, SUBJECTS["Berth"])
    spec = json.loads(kubectl.get("configmap", APP, NAMESPACE)["metadata"]["annotations"]["pod"])
    return {"metadata": {"labels": {"app": APP}}, "spec": spec}


def _plain(spec: Manifest) -> Manifest:
    for name in ("nodeName", "affinity", "hostname", "subdomain", "schedulingGates", "serviceAccount", "priority"):
        spec.pop(name, None)
    spec["tolerations"] = [each for each in spec["tolerations"] if each.get("key") == "nvidia.com/gpu"]
    match = {"labelSelector": {"matchLabels": {"app": APP}}, "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1}
    spec["topologySpreadConstraints"] = [{"topologyKey": "topology.kubernetes.io/zone", **match}]
    for volume in spec["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = APP
    return spec


def _service() -> Manifest:
    ports = [{"name": "grpc", "port": labels.PORT_GRPC}]
    return {**_object("v1", "Service", {"selector": {"app": APP}, "ports": ports})}


def _object(version: str, kind: str, spec: Any) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": _metadata(), "spec": spec}


def _metadata() -> Manifest:
    return {"name": APP, "namespace": NAMESPACE}


def _remove(site: Site, subject: Subject) -> None:
    kubectl = site.cluster.kubectl
    for kind, name in (
        ("llmdeployments", "llama-70b"),
        ("deployments", APP),
        ("services", APP),
        *([("leaderworkersets", APP)] if subject.name == "LeaderWorkerSet" else []),
    ):
        kubectl.delete(kind, name, NAMESPACE, "--wait=false")
    kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--grace-period=1", "--wait=false")
    wait("no pods are left", lambda: not kubectl.list("pods", NAMESPACE), timeout=120)


def leader_worker_set_module() -> Path:
    """The folder of its sources."""
    download = run("go", "mod", "download", "-json", f"sigs.k8s.io/lws@{LWS_VERSION}")
    return Path(json.loads(download)["Dir"])


def install_leader_worker_set(site: Site) -> None:
    """By its own chart, from the module that its program is built of."""
    program = binaries.provide([programs.LEADER_WORKER_SET])["lws"]
    chart = leader_worker_set_module() / "charts" / "lws"
    image = images.program("lws", program, "manager")
    site.cluster.load(image, [site.cluster.control_plane])
    repository, _, tag = image.name.rpartition(":")
    values = {
        "image": {"manager": {"repository": repository, "tag": tag, "pullPolicy": "Never"}},
        "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 65532},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        **ON_CONTROL_PLANE,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        where = ["--namespace=lws-system", "--create-namespace", "--wait", "--timeout=4m"]
        command: list[str | Path] = [
            site.cluster.helm,
            "upgrade",
            "--install",
            "lws",
            chart,
            *where,
            f"--values={file.name}",
        ]
        run(*command, environment=site.cluster.kubectl.environment())


# --- all runs ---------------------------------------------------------------------------------------------------------
def table(runs: Sequence[Run]) -> str:
    """Markdown: p50 / max of each."""
    lines = [
        "| fault | | last request into it | out of the Service | new pod | serving again | failed requests | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault, (words, _) in FAULTS.items():
        for subject in SUBJECTS:
            some = [each for each in runs if (each.fault, each.subject) == (fault, subject)]
            if some:
                columns = {"last_request": "none", "out_of_service": "never", "created": "none", "serving": "never"}
                cells = [_cell([getattr(each, name) for each in some], word) for name, word in columns.items()]
                failed = f"{sum(each.failed for each in some)} of {sum(each.requests for each in some)}"
                lines.append(f"| {words} | {subject} | {' | '.join(cells)} | {failed} | {len(some)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], absent: str) -> str:
    known = [each for each in values if each is not None]
    if not known:
        return "-"
    missing = f", {len(values) - len(known)} {absent}" if len(known) < len(values) else ""
    return f"{statistics.median(known):.1f} / {max(known):.1f} s{missing}"


_sites: list[Site] = []


def _site() -> Site:
    if not _sites:
        _sites.append(sites.up())
    return _sites[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which something counts as never")
    given = parser.parse_args(arguments)
    site, runs = _site(), list[Run]()
    site.repair()
    site.cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    if "LeaderWorkerSet" in given.subjects:
        install_leader_worker_set(site)
    for subject in [SUBJECTS[name] for name in given.subjects.split(",")]:
        for fault in given.faults.split(","):
            for number in range(given.runs):
                subject.create(site)
                try:
                    runs.append(measure(site, subject, fault, given.limit))
                    print(json.dumps(vars(runs[-1])), flush=True)
                except Failed as error:
                    say(f"{subject.name}, {fault}, run {number}: {error}")
                    site.repair()
                _remove(site, subject)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
