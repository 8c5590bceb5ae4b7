"""Berth, a LeaderWorkerSet and a Deployment with the same pods on the same cluster, hit by the same fault at once.

    python -m e2e.bench_peers [--runs 5] [--faults kill,delete,pause,stop] [--limit 90] [--size 2]

Each subject runs two groups with the same readiness, engine and launcher (`e2e.support.peers`), so what differs is who
notices and who acts. Groups of one pod stand on two nodes, and what is hit is a pod on one of them, or that node; of
groups of two pods it is a worker, and a Deployment has none. Each run begins with new objects: Berth and kubelets wait
longer with every failure of the same ones. From the fault, in seconds: until the last request went into what was lost,
until the leader is out of the Service's endpoints, until a new pod exists, until two groups serve again; and how many
requests of a client with one retry failed. Prints one JSON object per run and subject, then a table of p50 and maximum.
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

from e2e import site as sites
from e2e.cluster.kubectl import Kubectl, Manifest
from e2e.cluster.shell import Failed, wait
from e2e.cluster.steps import say
from e2e.site import Site
from e2e.support import faults, leader_worker_set, peers
from e2e.support.deployments import node_of, uid
from e2e.support.peers import BERTH, DEPLOYMENT, GROUPS, LEADER_WORKER_SET, NAMESPACE, Subject
from e2e.support.traffic import Account, traffic


@dataclass(frozen=True)
class Fault:
    """To one pod of each subject, or to a node on which all have one."""

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
    leader: Manifest
    """Of the group that was hit."""
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
        if all(uid(pod) != uid(self.leader) for pod in serving):
            self._note("out_of_service", now)
        if {uid(pod) for pod in self.subject.pods(seen)} - self.known:
            self._note("created", now)
        healed = [pod for pod in serving if _life(pod) != _life(self.leader)]
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
def measure(site: Site, fault: str, size: int, limit: float) -> list[Run]:
    """Hits one group of each subject, watches until all are whole again or `limit` seconds, and repairs."""
    kubectl, subjects = site.cluster.kubectl, peers.subjects(size)

    def whole() -> bool:
        seen = peers.look(kubectl)
        return all(subject.whole(seen, size) for subject in subjects)

    wait("everybody serves", whole, timeout=240)
    with ExitStack() as stack:
        clients = [stack.enter_context(traffic(site.cluster, subject.address)) for subject in subjects]
        watches = _strike(kubectl, subjects, FAULTS[fault])
        began = time.time()
        while time.time() - began < limit:
            seen, now = peers.look(kubectl), time.time()
            healed = [watch.look(seen, now) for watch in watches]
            if all(healed):
                break
            time.sleep(0.2)
        until, load = time.time(), round(os.getloadavg()[0], 1)
        if FAULTS[fault].to_node is not None:
            site.repair()
        wait(
            "everybody serves again",
            lambda: all(len(each.serving(peers.look(kubectl))) == GROUPS for each in subjects),
            timeout=300,
        )
    accounts = [client.stop() for client in clients]
    for watch, account in zip(watches, accounts, strict=True):
        if account.failed:
            sent = ", ".join(f"{each.sent - watch.at:.1f}" for each in account.failed)
            say(f"{watch.subject.name}: requests sent {sent} s after the fault failed: {account.failed[0].error[:200]}")
    return [watch.run(fault, account, until, load) for watch, account in zip(watches, accounts, strict=True)]


def _strike(kubectl: Kubectl, subjects: Sequence[Subject], fault: Fault) -> list[Watch]:
    seen = peers.look(kubectl)
    node = min(node_of(pod) for pod in BERTH.pods(seen))
    groups = [subject.members(seen, _first_on(node, subject.serving(seen))) for subject in subjects]
    victims = [members[-1] for members in groups]
    at = time.time()
    if fault.to_node is not None:
        fault.to_node(node)
    if fault.to_pod is not None:
        with ThreadPoolExecutor(len(victims)) as hands:
            list(hands.map(partial(fault.to_pod, kubectl), victims))
    return [
        Watch(subject, members[0], {uid(pod) for pod in subject.pods(seen)}, at)
        for subject, members in zip(subjects, groups, strict=True)
    ]


def _first_on(node: str, pods: Sequence[Manifest]) -> Manifest:
    """Of the pods; where groups have several, all leaders may stand elsewhere."""
    return min(pods, key=lambda pod: (node_of(pod) != node, pod["metadata"]["name"]))


# --- all runs ---------------------------------------------------------------------------------------------------------
def table(runs: Sequence[Run]) -> str:
    """Markdown: p50 / max of each."""
    lines = [
        "| fault | | last request into it | out of the Service | new pod | serving again | failed requests | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = {"last_request": "none", "out_of_service": "never", "created": "none", "serving": "never"}
    for name, fault in FAULTS.items():
        for subject in (BERTH, LEADER_WORKER_SET, DEPLOYMENT):
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
    parser.add_argument("--size", type=int, default=1, choices=(1, 2), help="pods of a group")
    given = parser.parse_args(arguments)
    if given.size > 1 and any(FAULTS[fault].to_node for fault in given.faults.split(",")):
        parser.error("a node holds members of each group of two pods: use --faults kill,delete")
    site, runs = sites.up(), list[Run]()
    site.repair()
    site.cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    leader_worker_set.install(site)
    wait("LeaderWorkerSet's webhook answers", partial(peers.webhook_answers, site.cluster.kubectl), timeout=120)
    peers.remove(site)
    for fault in given.faults.split(","):
        for number in range(given.runs):
            say(f"{FAULTS[fault].words}, run {number + 1} of {given.runs}")
            try:
                peers.create(site, given.size)
                found = measure(site, fault, given.size, given.limit)
                print("\n".join(json.dumps(vars(each)) for each in found), flush=True)
                runs += found
            except Failed as error:
                say(f"not counted: {error}")
                site.repair()
            peers.remove(site)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
