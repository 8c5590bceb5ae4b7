"""Failover under client load on local nodes with real Triton servers: each phase of each kind of fault, and its goal.

    python -m benchmarks.bench_failover [--repetitions N] [--fault NAME ...] [--json FILE]

Each repetition is a deployment of its own: two groups on six nodes, clients that send ten requests a second over eight
kept gRPC connections through the Service, one fault in the middle. Groups are of one pod, or of two on two nodes where
the fault hits a member. GPUs and engine are simulated; processes, control plane, connections and faults are real.
Phases, in seconds since the fault:

    lost      the last request that a client sent to the lost group in vain, that is when requests stop arriving there
    cut       the Service no longer points to the group
    replaced  every pod of the next incarnation exists ("-": it restarted in place)
    restored  both groups serve again
    unloaded  the same without `loading`, which lasts from when the containers of the new life run until its leader is
              ready: Triton's start, and 2 s of the simulated engine

Requests through the Service that broke were on their way to the lost group: `retried` were sent once more, `failed` had
no answer then either. `others` are what clients of the other group alone, which call its leader by its own address,
saw fail or break, of so many: none is the goal, like the `false` alarms, groups that were cut off or replaced though
nothing was done to them.

Kubernetes calls a silent node so after its own default of 50 s: whatever is earlier is Berth's doing.

Printed as a table with p50 / p95 / max, and as one JSON line per repetition (`--json`). A repetition takes about half a
minute, each is told as it ends, and what was measured is printed also if the run is ended early.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.local_site import LONGEST, NAMESPACE, Bench, add_line
from berth import labels
from berth.engine import contract
from berth.kube.errors import NotFound
from berth.kube.kinds import LLM_DEPLOYMENT, NODE, Object
from berth.local import cluster
from berth.local.config import Config, PoolOption
from berth.local.demo.client import Outcome, Replay
from berth.local.demo.trace import Request
from tests.support.manifests import fixed_deployment

RATE: Final = 10.0
RATE_OF_ONE: Final = 2.0
"""Of the clients of one group alone."""
BEFORE: Final = 3.0
AFTER: Final = 3.0
PHASES: Final = ("lost", "cut", "replaced", "restored", "unloaded")
ENOUGH: Final = 2.0
"""Seconds that a request must have had for its answer to count as missing at the end."""


@dataclass
class Result:
    """One repetition."""

    fault: str
    lost: float | None = None
    cut: float | None = None
    replaced: float | None = None
    loading: float | None = None
    restored: float | None = None
    requests: int = 0
    retried: int = 0
    failed: int = 0
    failed_after_cut: int = 0
    hung: int = 0
    """Sent after the fault and without an answer when the clients gave up, more than two seconds later."""
    errors: list[str] = field(default_factory=list)
    """The first two and the last, and when they were sent."""
    other_requests: int = 0
    """Of clients of the other group alone."""
    other_hurt: int = 0
    """Of these: failed, broken off, or never answered."""
    false_alarms: int = 0
    """Groups other than the victim that were cut off or replaced."""
    told: dict[str, Any] = field(default_factory=dict)
    """status.lastFailover."""
    took: float = 0.0
    """Seconds for all of the repetition."""

    @property
    def unloaded(self) -> float | None:
        if self.restored is None or self.loading is None:
            return None
        return round(self.restored - self.loading, 2)


def kill_server(bench: Bench, leader: Object) -> None:
    bench.signal_server(leader, signal.SIGKILL)


def stop_server(bench: Bench, leader: Object) -> None:
    bench.signal_server(leader, signal.SIGSTOP)


def hang_engine(bench: Bench, leader: Object) -> None:
    """Triton's health stays 200."""
    (folder,) = Path(bench.local(leader)["memory"]).glob("run-*")
    new = folder / "faults.new"
    new.write_text(json.dumps({"hang": True}))
    new.rename(folder / contract.DEFAULT_FAULT_FILE)


def end_hang(bench: Bench, leader: Object) -> None:
    for folder in Path(bench.local(leader)["memory"]).glob("run-*"):
        (folder / contract.DEFAULT_FAULT_FILE).unlink(missing_ok=True)


def sicken_gpu(bench: Bench, leader: Object) -> None:
    bench.node(leader["spec"]["nodeName"], "gpus", unhealthy=1)


def silence_node(bench: Bench, leader: Object) -> None:
    bench.node(leader["spec"]["nodeName"], "kill")


async def delete_node(bench: Bench, leader: Object) -> None:
    name = leader["spec"]["nodeName"]
    found = await bench.client.get(NODE, None, name)
    await bench.client.delete(NODE, None, name, uid=found["metadata"]["uid"])


def kill_member(bench: Bench, leader: Object) -> None:
    bench.kill(bench.mates(leader)[0])


def silence_member(bench: Bench, leader: Object) -> None:
    bench.node(bench.mates(leader)[0]["spec"]["nodeName"], "kill")


@dataclass(frozen=True)
class Fault:
    """What is done to the leader of a group, and the goals of the design at p95 in seconds; None where it has none."""

    inject: Callable[[Bench, Object], Any]
    lost: float
    replaced: float | None = None
    unloaded: float | None = None
    members: int = 1
    """Pods of each group."""


FAULTS: Final[dict[str, Fault]] = {
    "server killed": Fault(kill_server, 2.5, None, 4.0),
    "server killed again": Fault(kill_server, 2.5, 3.0, 4.0),
    "server stopped": Fault(stop_server, 10.0),
    "engine hangs": Fault(hang_engine, 10.0),
    "GPU unhealthy": Fault(sicken_gpu, 10.0),
    "node silent": Fault(silence_node, 20.0, 25.0),
    "node deleted": Fault(delete_node, 20.0, 25.0),
    "member killed": Fault(kill_member, 2.5, 3.0, 4.0, members=2),
    "member's node silent": Fault(silence_member, 20.0, 25.0, members=2),
}


async def repetition(bench: Bench, fault: str, number: int) -> Result:
    began = time.monotonic()
    name, slot = f"bench-{number}", f"g{number % 2}"
    await bench.client.create(fixed_deployment(name, NAMESPACE, "h100", pp=FAULTS[fault].members))
    if not await bench.until(lambda: len(bench.serving()) == 2):
        raise SystemExit(f"the deployment does not serve: {bench.status()}")
    address = await bench.address(name)
    if fault == "server killed again":
        lives = bench.serving()[slot]["metadata"]["uid"]
        kill_server(bench, bench.serving()[slot])
        await bench.until(lambda: slot not in bench.serving())
        await bench.until(lambda: slot in bench.serving())
        assert bench.serving()[slot]["metadata"]["uid"] == lives, "the first time it restarts in place"
    before = bench.serving()
    victim, others = before[slot], {group: pod for group, pod in before.items() if group != slot}
    replay = _clients(address, RATE, connections=8)
    (other,) = (_clients(f"{pod['status']['podIP']}:{labels.PORT_GRPC}", RATE_OF_ONE, 1) for pod in others.values())
    running = [asyncio.create_task(each.run()) for each in (replay, other)]
    watching = asyncio.create_task(_until_disturbed(bench, others))
    result = Result(fault)
    try:
        await asyncio.sleep(BEFORE)
        injected = FAULTS[fault].inject(bench, victim)
        if asyncio.iscoroutine(injected):
            await injected
        at = replay.now()
        await _follow(bench, victim, result)
        await asyncio.sleep(AFTER)
        result.false_alarms = int(watching.done())
        status = (await bench.client.get(LLM_DEPLOYMENT, NAMESPACE, name)).get("status", {})
        result.told = status.get("lastFailover", {})
    finally:
        ended = [each.now() for each in (replay, other)]
        for task in (*running, watching):
            task.cancel()
        await asyncio.gather(*running, watching, return_exceptions=True)
        await _heal(bench)
    _judge(result, replay.outcomes, at, ended[0])
    theirs = [each for each in other.outcomes if each.sent < ended[1] - ENOUGH]
    result.other_requests, result.other_hurt = len(theirs), sum(map(_is_hurt, theirs))
    await bench.remove(name)
    result.took = round(time.monotonic() - began, 1)
    return result


def _clients(address: str, rate: float, connections: int) -> Replay:
    total = int((BEFORE + LONGEST) * rate)
    return Replay(address, [Request(i / rate, 50, 20) for i in range(total)], connections=connections)


async def _follow(bench: Bench, victim: Object, result: Result) -> None:
    """Writes down when each phase was reached."""
    slot, moment = victim["metadata"]["labels"][labels.GROUP_LABEL], time.monotonic()
    seen: dict[str, float] = {}
    phases: dict[str, Callable[[], bool]] = {
        "cut": lambda: not _same_life(bench.serving().get(slot), victim),
        "replaced": lambda: _replaced(bench, slot, victim),
        "runs": lambda: _runs(bench, slot, victim, FAULTS[result.fault].members),
        "ready": lambda: "runs" in seen and any(_is_ready(pod) for pod in _next_life(bench, slot, victim)),
        "restored": lambda: "cut" in seen and len(bench.serving()) == 2,
    }

    def look() -> bool:
        for phase, reached in phases.items():
            if phase not in seen and reached():
                seen[phase] = round(time.monotonic() - moment, 2)
                if (phase, result.fault) == ("cut", "engine hangs"):  # the next life would find the switch still set
                    end_hang(bench, victim)
        return "restored" in seen

    await bench.until(look)
    result.cut, result.replaced, result.restored = (seen.get(each) for each in ("cut", "replaced", "restored"))
    if "ready" in seen:
        result.loading = round(seen["ready"] - seen["runs"], 2)


async def _until_disturbed(bench: Bench, others: dict[str, Object]) -> None:
    """Returns when a group that nothing was done to is cut off or replaced."""
    while all(_same_life(bench.serving().get(group), pod) for group, pod in others.items()):
        bench.changed.clear()
        await bench.changed.wait()


async def _heal(bench: Bench) -> None:
    """Whatever was done to the nodes: each is there and takes pods again."""
    for node in bench.status()["nodes"]:
        name = node["name"]
        if node["gpus"]["unhealthy"]:
            bench.node(name, "gpus", unhealthy=0)
        there = await _find_node(bench, name)
        if not there:  # its kubelet registers it again
            bench.node(name, "silence")
        if not there or node["state"] != "Ready":
            bench.node(name, "revive")
    deadline = time.monotonic() + LONGEST
    for node in bench.status()["nodes"]:
        while not _takes_pods(await _find_node(bench, node["name"])):
            if time.monotonic() > deadline:
                raise SystemExit(f"{node['name']} did not come back")
            await asyncio.sleep(0.5)


async def _find_node(bench: Bench, name: str) -> Object:
    """Empty if it does not exist."""
    try:
        return await bench.client.get(NODE, None, name)
    except NotFound:
        return {}


def _takes_pods(node: Object) -> bool:
    conditions = {each["type"]: each["status"] for each in node.get("status", {}).get("conditions", ())}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")


def _life(pod: Object) -> tuple[str, int]:
    statuses = pod["status"].get("containerStatuses") or [{}]
    return pod["metadata"]["uid"], statuses[0].get("restartCount", 0)


def _same_life(pod: Object | None, before: Object) -> bool:
    return pod is not None and _life(pod) == _life(before)


def _next_life(bench: Bench, slot: str, victim: Object) -> list[Object]:
    """The pods that serve in the victim's place or will: of a later incarnation, or itself after a restart."""
    found = [pod for pod in bench.pods.store.all() if pod["metadata"]["labels"].get(labels.GROUP_LABEL) == slot]
    latest = max((int(pod["metadata"]["labels"][labels.INCARNATION]) for pod in found), default=0)
    lives = [pod for pod in found if int(pod["metadata"]["labels"][labels.INCARNATION]) == latest]
    if latest > int(victim["metadata"]["labels"][labels.INCARNATION]):
        return lives
    return [pod for pod in lives if _life(pod) > _life(victim)]


def _runs(bench: Bench, slot: str, victim: Object, members: int) -> bool:
    """Every container of the next life runs."""
    lives = _next_life(bench, slot, victim)
    statuses = [each for pod in lives for each in pod["status"].get("containerStatuses") or [{}]]
    return len(lives) == members and all("running" in each.get("state", {}) for each in statuses)


def _is_ready(pod: Object) -> bool:
    """Members that do not lead are ready as soon as they run."""
    leads = pod["metadata"]["labels"].get(labels.MEMBER_INDEX) == "0"
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return leads and conditions.get("Ready") == "True"


def _replaced(bench: Bench, slot: str, victim: Object) -> bool:
    """Every pod of a later incarnation of the slot exists."""
    present = Counter(pod["metadata"]["labels"].get(labels.REPLICA_GROUP) for pod in bench.pods.store.all())
    old = int(victim["metadata"]["labels"][labels.INCARNATION])
    return any(
        group["spec"]["group"] == slot
        and group["spec"]["incarnation"] > old
        and present[group["metadata"]["name"]] == group["spec"].get("members", 1)
        for group in bench.groups.store.all()
    )


def _is_hurt(outcome: Outcome) -> bool:
    """Its first attempt did not bring the answer."""
    return outcome.last is None or bool(outcome.error) or outcome.broken_at is not None


def _judge(result: Result, outcomes: list[Outcome], at: float, ended_at: float) -> None:
    """What the clients' end itself cut short is nobody's fault: only requests that had enough time count."""
    outcomes = [each for each in outcomes if each.sent < ended_at - ENOUGH]
    ended = [each for each in outcomes if each.last is not None or each.error or each.broken_at is not None]
    result.hung = len(outcomes) - len(ended)
    wrong = sorted((round(each.sent - at, 1), each.error[:160]) for each in ended if each.error)
    result.errors = [f"{sent}s: {words}" for sent, words in (*wrong[:2], *wrong[2:][-1:])]
    result.requests, result.retried = len(ended), sum(each.broken_at is not None for each in ended)
    result.failed = sum(bool(each.error) for each in ended)
    result.lost = round(max([each.sent - at for each in filter(_is_hurt, outcomes) if each.sent >= at], default=0.0), 2)
    cut = at + (result.cut or 0.0)
    result.failed_after_cut = sum(bool(each.error) and each.sent > cut for each in ended)


def quantile(values: list[float], q: float) -> float:
    """Nearest rank: with few repetitions p95 is the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]


def row(fault: str, results: list[Result]) -> str:
    goal = FAULTS[fault]
    cells = [f"{fault:<20}", f"{len(results):>2}"]
    for phase, bound in zip(PHASES, (goal.lost, None, goal.replaced, None, goal.unloaded), strict=True):
        values = [value for each in results if (value := getattr(each, phase)) is not None]
        if not values:
            cells.append(f"{'-':>26}")
            continue
        text = f"{statistics.median(values):.1f} / {quantile(values, 0.95):.1f} / {max(values):.1f}"
        verdict = "" if bound is None else f" {'<=' if quantile(values, 0.95) <= bound else '> '} {bound:g}"
        cells.append(f"{text + verdict:>26}")
    cells.append(f"{sum(each.requests for each in results):>7} {sum(each.retried for each in results):>7}")
    failed = sum(each.failed + each.hung for each in results)
    others = f"{sum(each.other_hurt for each in results)}/{sum(each.other_requests for each in results)}"
    cells.append(f"{failed:>6} {others:>9} {sum(each.false_alarms for each in results):>6}")
    return "  ".join(cells)


async def run(folder: Path, faults: list[str], repetitions: int, out: Path | None, results: list[Result]) -> None:
    """Adds to `results` as they come."""
    total, began = repetitions * len(faults), time.monotonic()
    async with Bench.of(folder) as bench:
        for number, fault in enumerate(each for _ in range(repetitions) for each in faults):
            results.append(await repetition(bench, fault, number))
            add_line(results[-1], out, sys.stderr)
            done = number + 1
            left = (time.monotonic() - began) / done * (total - done) / 60
            print(f"{done} of {total}: {fault}; about {left:.0f} min to go", file=sys.stderr, flush=True)


def table(results: list[Result]) -> str:
    head = [f"{'fault':<20}", " n", *(f"{name:>26}" for name in PHASES)]
    lines = ["seconds since the fault: p50 / p95 / max, and the goal at p95"]
    lines.append("  ".join([*head, "requests retried", "failed    others  false"]))
    faults = dict.fromkeys(each.fault for each in results)
    lines += [row(fault, [each for each in results if each.fault == fault]) for fault in faults]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="default: all")
    parser.add_argument("--json", type=Path, help="file to add a JSON line per repetition to")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs below is ended on the way out
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="berth-bench-") as state:
        os.environ["XDG_STATE_HOME"] = state
        config = Config(
            "bench-failover",
            pools=(PoolOption("H100-SXM-80", 6, 2),),
            settings={"BERTH_NODE_STABLE": "0"},  # each repetition wants all nodes again
            node_silence=50,
        )
        report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        try:
            with cluster.up(config, report, report) as started:
                faults = arguments.fault or list(FAULTS)
                asyncio.run(run(started.folder, faults, arguments.repetitions, arguments.json, results))
        finally:
            print(table(results))
    sys.exit(1 if any(each.false_alarms or each.other_hurt for each in results) else 0)


if __name__ == "__main__":
    main()
