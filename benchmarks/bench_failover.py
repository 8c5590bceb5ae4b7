"""Failover under client load on local nodes with real Triton servers: each phase of each kind of fault, and its goal.

    python -m benchmarks.bench_failover [--repetitions N] [--fault NAME ...] [--json FILE]

Each repetition is a deployment of its own: two groups of one pod on three nodes, clients that send ten requests a
second over eight kept gRPC connections through the Service, one fault in the middle. GPUs and engine are simulated;
processes, control plane, connections and faults are real. Phases, in seconds since the fault:

    lost      the last request that a client sent to the lost group in vain, that is when requests stop arriving there
    cut       the Service no longer points to the group
    replaced  every pod of the next incarnation exists ("-": it restarted in place)
    restored  both groups serve again, load time of the simulated engine (2 s) included

Printed as a table with p50 / p95 / max, and as one JSON line per repetition (`--json`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient

from berth import labels
from berth.engine import contract
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import LLM_DEPLOYMENT, NODE, POD, REPLICA_GROUP, Object
from berth.kube.reflector import Reflector
from berth.local import cluster, control, sandbox
from berth.local.config import Config, PoolOption
from berth.local.demo.client import Outcome, Replay
from berth.local.demo.trace import Request

NAMESPACE: Final = "default"
RATE: Final = 10.0
BEFORE: Final = 3.0
AFTER: Final = 3.0
LONGEST: Final = 90.0


@dataclass(frozen=True)
class Goal:
    """Design goals at p95, in seconds; None where there is none."""

    lost: float
    replaced: float | None = None
    restored: float | None = None


@dataclass
class Result:
    """One repetition."""

    fault: str
    lost: float | None = None
    cut: float | None = None
    replaced: float | None = None
    restored: float | None = None
    requests: int = 0
    retried: int = 0
    failed: int = 0
    failed_after_cut: int = 0
    hung: int = 0
    """Sent after the fault and without an answer when the clients gave up, more than two seconds later."""
    errors: list[str] = field(default_factory=list)
    false_alarms: int = 0
    """Groups other than the victim that were cut off or replaced."""
    told: dict[str, Any] = field(default_factory=dict)
    """status.lastFailover."""


class Bench:
    """One local cluster, watched."""

    def __init__(self, folder: Path, client: KubeClient) -> None:
        self.folder = folder
        self.client = client
        self.changed = asyncio.Event()
        self.pods = self._watch(POD)
        self.groups = self._watch(REPLICA_GROUP)

    def _watch(self, kind: Any) -> Reflector:
        return Reflector(self.client, kind, namespace=NAMESPACE, on_change=lambda _old, _new: self.changed.set())

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = control.ask(self.folder, {"do": "status"})
        return found

    def node(self, name: str, action: str, **more: Any) -> None:
        control.ask(self.folder, {"do": "node", "name": name, "action": action, **more})

    def serving(self) -> dict[str, Object]:
        """By group: the leader that the Service points to."""
        return {
            pod["metadata"]["labels"][labels.GROUP_LABEL]: pod
            for pod in self.pods.store.all()
            if pod["metadata"]["labels"].get(labels.SERVING) == "true"
            and "deletionTimestamp" not in pod["metadata"]
            and {"True"} == {c["status"] for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"}
        }

    def local(self, pod: Object) -> dict[str, Any]:
        """The pod as its node knows it."""
        return next(
            each for node in self.status()["nodes"] for each in node["pods"] if each["name"] == pod["metadata"]["name"]
        )

    def server_of(self, pod: Object) -> int:
        mark = self.local(pod)["mark"]
        return next(
            pid for pid in sandbox.marked(mark) if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver"
        )

    async def until(self, so: Callable[[], bool], limit: float = LONGEST) -> bool:
        """Whether it became so in time."""
        deadline = time.monotonic() + limit
        while not so():
            self.changed.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, 0.5))
            except TimeoutError:
                continue
        return True

    async def deploy(self, name: str) -> str:
        """Two groups that serve; the address of their Service."""
        source = {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}}
        allocation = {"pool": "h100", "variant": "bf16", "tensorParallel": 2, "groups": 2}
        await self.client.create(
            {
                "apiVersion": labels.API_VERSION,
                "kind": "LLMDeployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "model": {
                        "name": "llama-3.1-8b-instruct",
                        "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
                    },
                    "placement": {"mode": "Fixed", "fixed": {"allocations": [allocation]}},
                    "engine": {"backend": "simulated"},
                },
            }
        )
        if not await self.until(lambda: len(self.serving()) == 2):
            raise SystemExit(f"the deployment does not serve: {self.status()}")
        await asyncio.sleep(1.0)
        for service in self.status()["services"]:
            if service["name"] == name:
                return f"{service['address']}:{labels.PORT_GRPC}"
        raise SystemExit("the deployment has no Service")

    async def remove(self, name: str) -> None:
        found = await self.client.get(LLM_DEPLOYMENT, NAMESPACE, name)
        await self.client.delete(LLM_DEPLOYMENT, NAMESPACE, name, uid=found["metadata"]["uid"])
        await self.until(lambda: not self.pods.store.all())


Inject = Callable[[Bench, Object], Any]


def kill_server(bench: Bench, pod: Object) -> None:
    sandbox.send([bench.server_of(pod)], signal.SIGKILL)


def stop_server(bench: Bench, pod: Object) -> None:
    sandbox.send([bench.server_of(pod)], signal.SIGSTOP)


def hang_engine(bench: Bench, pod: Object) -> None:
    """Triton's health stays 200."""
    (folder,) = Path(bench.local(pod)["memory"]).glob("run-*")
    new = folder / "faults.new"
    new.write_text(json.dumps({"hang": True}))
    new.rename(folder / contract.DEFAULT_FAULT_FILE)


def end_hang(bench: Bench, pod: Object) -> None:
    for folder in Path(bench.local(pod)["memory"]).glob("run-*"):
        (folder / contract.DEFAULT_FAULT_FILE).unlink(missing_ok=True)


def sicken_gpu(bench: Bench, pod: Object) -> None:
    bench.node(pod["spec"]["nodeName"], "gpus", unhealthy=1)


def silence_node(bench: Bench, pod: Object) -> None:
    bench.node(pod["spec"]["nodeName"], "kill")


async def delete_node(bench: Bench, pod: Object) -> None:
    name = pod["spec"]["nodeName"]
    found = await bench.client.get(NODE, None, name)
    await bench.client.delete(NODE, None, name, uid=found["metadata"]["uid"])


FAULTS: Final[dict[str, tuple[Inject, Goal]]] = {
    "server killed": (kill_server, Goal(2.5, None, 4.0 + 2.0)),
    "server killed again": (kill_server, Goal(2.5, 3.0)),
    "server stopped": (stop_server, Goal(10.0)),
    "engine hangs": (hang_engine, Goal(10.0)),
    "GPU unhealthy": (sicken_gpu, Goal(10.0)),
    "node silent": (silence_node, Goal(20.0, 25.0)),
    "node deleted": (delete_node, Goal(20.0, 25.0)),
}


async def repetition(bench: Bench, fault: str, number: int) -> Result:
    inject, _ = FAULTS[fault]
    name = f"bench-{number}"
    address = await bench.deploy(name)
    slot = f"g{number % 2}"
    if fault == "server killed again":
        lives = bench.serving()[slot]["metadata"]["uid"]
        kill_server(bench, bench.serving()[slot])
        await bench.until(lambda: slot not in bench.serving())
        await bench.until(lambda: slot in bench.serving())
        assert bench.serving()[slot]["metadata"]["uid"] == lives, "the first time it restarts in place"
    before = bench.serving()
    victim, others = before[slot], {group: pod for group, pod in before.items() if group != slot}
    node = victim["spec"]["nodeName"]
    total = int((BEFORE + LONGEST) * RATE)
    replay = Replay(address, [Request(i / RATE, 50, 20) for i in range(total)], connections=8)
    running = asyncio.create_task(replay.run())
    result = Result(fault)
    watching = asyncio.create_task(_until_disturbed(bench, others))
    try:
        await asyncio.sleep(BEFORE)
        injected = inject(bench, victim)
        if asyncio.iscoroutine(injected):
            await injected
        at, moment = replay.now(), time.monotonic()

        def since() -> float:
            return round(time.monotonic() - moment, 2)

        if await bench.until(lambda: not _same_life(bench.serving().get(slot), victim)):
            result.cut = since()
        if fault == "engine hangs":  # the next life of the container would find the switch still set
            end_hang(bench, victim)
        if await bench.until(lambda: _replaced(bench, slot, victim) or slot in bench.serving()):
            result.replaced = since() if _replaced(bench, slot, victim) else None
        if await bench.until(lambda: len(bench.serving()) == 2):
            result.restored = since()
        await asyncio.sleep(AFTER)
        result.false_alarms = int(watching.done())
        status = (await bench.client.get(LLM_DEPLOYMENT, NAMESPACE, name)).get("status", {})
        result.told = status.get("lastFailover", {})
    finally:
        ended_at = replay.now()
        for task in (running, watching):
            task.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)
        await _heal(bench, fault, node)
    _judge(result, replay.outcomes, at, ended_at)
    await bench.remove(name)
    return result


async def _until_disturbed(bench: Bench, others: dict[str, Object]) -> None:
    """Returns when a group that nothing was done to is cut off or replaced."""
    while all(_same_life(bench.serving().get(group), pod) for group, pod in others.items()):
        bench.changed.clear()
        await bench.changed.wait()


async def _heal(bench: Bench, fault: str, node: str) -> None:
    if fault == "GPU unhealthy":
        bench.node(node, "gpus", unhealthy=0)
    if fault == "node deleted":  # its kubelet registers it again
        bench.node(node, "silence")
    if fault in ("node silent", "node deleted"):
        bench.node(node, "revive")
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        try:
            found = await bench.client.get(NODE, None, node)
        except NotFound:
            found = {}
        conditions = {each["type"]: each["status"] for each in found.get("status", {}).get("conditions", ())}
        if conditions.get("Ready") == "True" and not found["spec"].get("taints"):
            return
        await asyncio.sleep(0.5)
    raise SystemExit(f"{node} did not come back")


def _life(pod: Object) -> tuple[str, int]:
    statuses = pod["status"].get("containerStatuses") or [{}]
    return pod["metadata"]["uid"], statuses[0].get("restartCount", 0)


def _same_life(pod: Object | None, before: Object) -> bool:
    return pod is not None and _life(pod) == _life(before)


def _replaced(bench: Bench, slot: str, victim: Object) -> bool:
    """Every pod of a later incarnation of the slot exists."""
    present = {pod["metadata"]["labels"].get(labels.REPLICA_GROUP) for pod in bench.pods.store.all()}
    old = int(victim["metadata"]["labels"][labels.INCARNATION])
    return any(
        group["spec"]["group"] == slot and group["spec"]["incarnation"] > old and group["metadata"]["name"] in present
        for group in bench.groups.store.all()
    )


def _judge(result: Result, outcomes: list[Outcome], at: float, ended_at: float) -> None:
    """What the clients' end itself cut short is nobody's fault: only requests that had two seconds count."""
    outcomes = [each for each in outcomes if each.sent < ended_at - 2.0]
    ended = [each for each in outcomes if each.last is not None or each.error or each.broken_at is not None]
    hung = [each for each in outcomes if each not in ended]
    hurt = [each for each in ended if each.error or each.broken_at is not None] + hung
    result.hung = len(hung)
    result.errors = sorted({each.error[:160] for each in ended if each.error})[:3]
    result.requests, result.retried = len(ended), sum(each.broken_at is not None for each in ended)
    result.failed = sum(bool(each.error) for each in ended)
    result.lost = round(max([each.sent - at for each in hurt if each.sent >= at], default=0.0), 2)
    cut = at + (result.cut or 0.0)
    result.failed_after_cut = sum(bool(each.error) and each.sent > cut for each in ended)


def quantile(values: list[float], q: float) -> float:
    """Nearest rank: with few repetitions p95 is the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


def row(fault: str, results: list[Result]) -> str:
    goal = FAULTS[fault][1]
    cells = [f"{fault:<20}", f"{len(results):>2}"]
    for phase, bound in (("lost", goal.lost), ("cut", None), ("replaced", goal.replaced), ("restored", goal.restored)):
        values = [value for each in results if (value := getattr(each, phase)) is not None]
        if not values:
            cells.append(f"{'-':>26}")
            continue
        text = f"{statistics.median(values):.1f} / {quantile(values, 0.95):.1f} / {max(values):.1f}"
        verdict = "" if bound is None else f" {'<=' if quantile(values, 0.95) <= bound else '> '} {bound:g}"
        cells.append(f"{text + verdict:>26}")
    cells.append(f"{sum(each.requests for each in results):>7} {sum(each.retried for each in results):>7}")
    failed = sum(each.failed + each.hung for each in results)
    cells.append(f"{failed:>6} {sum(each.false_alarms for each in results):>6}")
    return "  ".join(cells)


async def run(folder: Path, faults: list[str], repetitions: int, out: Path | None) -> int:
    kubeconfig = control.ask(folder, {"do": "status"})["kubeconfig"]
    results: list[Result] = []
    async with ApiClient(await auth.configuration(kubeconfig)) as api:
        bench = Bench(folder, KubeClient(api))
        tasks = [asyncio.create_task(each.run()) for each in (bench.pods, bench.groups)]
        for each in (bench.pods, bench.groups):
            await each.synced.wait()
        try:
            number = 0
            for fault in faults:
                for _ in range(repetitions):
                    number += 1
                    result = await repetition(bench, fault, number)
                    results.append(result)
                    line = json.dumps(asdict(result))
                    print(line, file=sys.stderr, flush=True)
                    if out is not None:
                        with out.open("a") as stream:
                            stream.write(line + "\n")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    print("seconds since the fault: p50 / p95 / max, and the goal at p95")
    head = [f"{'fault':<20}", " n", *(f"{name:>26}" for name in ("lost", "cut", "replaced", "restored"))]
    print("  ".join([*head, "requests retried", "failed  false"]))
    for fault in faults:
        print(row(fault, [each for each in results if each.fault == fault]))
    return sum(each.false_alarms for each in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="default: all")
    parser.add_argument("--json", type=Path, help="file to add a JSON line per repetition to")
    arguments = parser.parse_args()
    os.environ["BERTH_NODE_STABLE"] = "0"  # each repetition wants all three nodes again
    with tempfile.TemporaryDirectory(prefix="berth-bench-") as state:
        os.environ["XDG_STATE_HOME"] = state
        config = Config("bench-failover", pools=(PoolOption("H100-SXM-80", 3, 2),))
        report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        with cluster.up(config, report, report) as started:
            faults = arguments.fault or list(FAULTS)
            false = asyncio.run(run(started.folder, faults, arguments.repetitions, arguments.json))
    sys.exit(1 if false else 0)


if __name__ == "__main__":
    main()
