"""Moves under client load on local nodes with real Triton servers: what they cost, and that nobody loses a request.

    python -m benchmarks.bench_replacement [--scenario NAME ...] [--json FILE]

Each scenario is a deployment of its own on two pools of one node, with clients that send eight requests a second over
eight kept gRPC connections through the Service from before the move until after it:

    pool slows down  every step on the pool takes four times as long: the deployment moves
    price falls      the other pool becomes cheap: a move for money, a (shortened) day after the deployment began
    no spare GPUs    the pool slows down and the other one is full: it stays, and says why
    worse after      a person asks for a move to a pool that is eight times slower: taken back
    without surge    a person asks for a move of two groups that have no room beside the new ones: one by one

GPUs, engine and the faults are simulated; processes, control plane, connections and decisions are real. An hour of the
decisions is shortened to 20 s (setting decision_hour), so the price falls after eight minutes; all times below are
those of the clock on the wall. Printed as a table, and as one JSON line per scenario (`--json`): requests, retried and
failed ones, seconds per phase, GPU minutes held beyond those of the placement in force, and the smallest share of
requests, over any five seconds of the move, that met both objectives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiClient

from benchmarks.local_site import NAMESPACE, Bench
from berth import labels
from berth.kube import auth
from berth.kube.client import KubeClient
from berth.kube.kinds import GPU_POOL, LLM_DEPLOYMENT, Object
from berth.local import cluster, control
from berth.local.config import Config, PoolOption
from berth.local.demo.client import Outcome, Replay
from berth.local.demo.trace import Request
from berth.local.faults import switch

RATE: Final = 8
SLOW: Final = 4.0
MUCH_SLOWER: Final = 8.0
"""So slow that even the faster pool misses the objective."""
TTFT, TPOT = 2.0, 0.036
"""Objectives at p95, seconds."""
WINDOW: Final = 5.0
LONGEST: Final = 180.0
DAY: Final = 900.0
"""Seconds in which the (shortened) day should have been measured."""
AFTER: Final = 3.0


@dataclass
class Result:
    """One scenario."""

    scenario: str
    ended: str = ""
    """Result of the move, or why there was none."""
    reason: str = ""
    decided: float | None = None
    """Seconds from the change of the world to the first sign of a move, or of its refusal."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds in each phase, in order."""
    extra_gpu_minutes: float = 0.0
    worst: float | None = None
    requests: int = 0
    retried: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)


class Moving(Bench):
    """One local cluster, with its deployments watched too."""

    def __init__(self, folder: Path, client: KubeClient) -> None:
        super().__init__(folder, client)
        self.deployments = self._watch(LLM_DEPLOYMENT)

    def said(self, name: str) -> dict[str, Any]:
        """Status of a deployment."""
        found = (each for each in self.deployments.store.all() if each["metadata"]["name"] == name)
        return next((each.get("status") or {} for each in found), {})

    def moves(self, name: str) -> dict[str, Any]:
        return self.said(name).get("moves") or {}

    def pool_of(self, name: str) -> str:
        return str(self.said(name)["placement"]["allocations"][0]["pool"])

    def other_pool(self, name: str) -> str:
        here = self.pool_of(name)
        return next(pool for pool in POOLS if pool != here)

    def held(self) -> int:
        """GPUs of groups that have pods."""
        named = {pod["metadata"]["labels"].get(labels.REPLICA_GROUP) for pod in self.pods.store.all()}
        found = [each for each in self.groups.store.all() if each["metadata"]["name"] in named]
        return sum(_gpus(each["spec"]["allocation"]) for each in found)

    def slow_down(self, pool: str, factor: float) -> bool:
        """The engines of every pod on the pool; False while there is none to slow down."""
        folders = []
        for pod in self.pods.store.all():
            if pod["metadata"]["labels"].get(labels.POOL) == pool and pod["spec"].get("nodeName"):
                try:
                    folders += list(Path(self.local(pod)["memory"]).glob("run-*"))
                except StopIteration:
                    continue
        for folder in folders:
            switch(folder, {"slow": factor})
        return bool(folders)

    async def begin(self, name: str, groups: int = 1, **spec: Any) -> str:
        """A deployment that serves where the planner put it; the address of its Service."""
        await self.client.create(deployment(name, scaling={"min": groups, "max": groups}, **spec))
        serves = lambda: len(self.serving()) == groups and bool(self.said(name).get("placement"))  # noqa: E731
        ready = await self.until(serves, LONGEST)
        if not ready:
            raise SystemExit(f"{name} does not serve: {self.said(name)}")
        while True:
            for service in self.status()["services"]:
                if service["name"] == name and service["pods"]:
                    return f"{service['address']}:{labels.PORT_GRPC}"
            await asyncio.sleep(0.2)

    async def learned(self, name: str) -> None:
        """Until the step times of the placement in force are known."""
        if not await self.until(lambda: bool(self.said(name).get("calibration")), LONGEST):
            raise SystemExit(f"{name} learns nothing: {self.said(name)}")

    async def ask(self, name: str, request: str) -> None:
        body = {"metadata": {"annotations": {labels.REQUEST: request}}}
        await self.client.merge_patch(LLM_DEPLOYMENT, NAMESPACE, name, body)

    async def reprice(self, pool: str, price: str) -> None:
        await self.client.merge_patch(GPU_POOL, None, pool, {"spec": {"pricePerGPUHour": price}})


def _gpus(allocation: Object) -> int:
    return int(allocation.get("tensorParallel", 1)) * int(allocation.get("pipelineParallel", 1))


def deployment(name: str, **spec: Any) -> Object:
    source = {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}}
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {
                "name": "llama-3.1-8b-instruct",
                "variants": [{"name": "bf16", "precision": "bf16", "source": source}],
            },
            "traffic": {
                "requestsPerSecond": str(RATE),
                "inputTokens": {"mean": 50, "p95": 60, "max": 4000},
                "outputTokens": {"mean": 20, "p95": 25, "maxRequested": 1024},
            },
            "objectives": {
                "timeToFirstToken": {"p95": f"{TTFT:g}s"},
                "timePerOutputToken": {"p95": f"{TPOT * 1000:g}ms"},
            },
            "placement": {"mode": "Auto", "moves": {"cooldown": "1m", "payBackWithin": "720h"}},
            "update": {"deadline": "1m"},
            "engine": {"backend": "simulated"},
            **spec,
        },
    }


# --- scenarios --------------------------------------------------------------------------------------------------------
async def pool_slows_down(bench: Moving, name: str, watch: Watch) -> None:
    await bench.learned(name)
    pool = bench.pool_of(name)
    watch.begin()
    bench.slow_down(pool, SLOW)
    await watch.over()


async def price_falls(bench: Moving, name: str, watch: Watch) -> None:
    """The other pool is dear until a day was measured."""
    other = bench.other_pool(name)
    day = await bench.until(lambda: (bench.moves(name).get("hold") or {}).get("reason") == "NothingBetter", DAY)
    if not day:
        raise SystemExit(f"no day was measured: {bench.moves(name)}")
    watch.begin()
    await bench.reprice(other, "0.10")
    await watch.over()


async def no_spare_gpus(bench: Moving, name: str, watch: Watch) -> None:
    """The other pool is full of a deployment that holds both of its GPUs."""
    await bench.learned(name)
    watch.begin()
    bench.slow_down(bench.pool_of(name), SLOW)
    held = lambda: (bench.moves(name).get("hold") or {}).get("reason") == "NoCapacity"  # noqa: E731
    if not await bench.until(held, LONGEST):
        raise SystemExit(f"it is not said: {bench.moves(name)}")
    watch.stays(bench.moves(name)["hold"])


async def worse_after(bench: Moving, name: str, watch: Watch) -> None:
    there = bench.other_pool(name)
    watch.begin()
    await bench.ask(name, f"move {there} bf16 tp1 x1")
    await bench.until(lambda: bench.slow_down(there, MUCH_SLOWER), LONGEST)
    await watch.over()


async def without_surge(bench: Moving, name: str, watch: Watch) -> None:
    there = bench.other_pool(name)
    watch.begin()
    await bench.ask(name, f"move {there} bf16 tp1 x2")
    await watch.over()


Scenario = Callable[[Moving, str, "Watch"], Awaitable[None]]
POOLS: Final = ("h100", "a100-40")
SCENARIOS: Final[dict[str, Scenario]] = {
    "pool slows down": pool_slows_down,
    "worse after": worse_after,
    "no spare GPUs": no_spare_gpus,
    "price falls": price_falls,
    "without surge": without_surge,
}
SPECS: Final[dict[str, dict[str, Any]]] = {
    "without surge": {"groups": 2, "update": {"surge": "Never", "maxUnavailable": 1, "deadline": "1m"}},
}
"""What its deployment has that others have not."""


class Watch:
    """Follows one move from the change of the world to its end."""

    def __init__(self, bench: Moving, name: str, replay: Replay, result: Result) -> None:
        self._bench, self._name, self._replay, self._result = bench, name, replay, result
        self._moment, self._usual = 0.0, 0
        self._from = self._to = 0.0

    def begin(self) -> None:
        self._moment, self._from = time.monotonic(), self._replay.now()
        self._usual = self._bench.held()

    def stays(self, hold: Object) -> None:
        """There is no move, and status says why."""
        self._result.decided, self._to = self.since(), self._replay.now()
        self._result.ended, self._result.reason = f"stays: {hold['reason']}", hold["message"]

    def since(self) -> float:
        return round(time.monotonic() - self._moment, 1)

    @property
    def span(self) -> tuple[float, float]:
        """On the replay's clock."""
        return self._from, self._to

    async def over(self) -> None:
        """Until the move has ended and nothing of it is left; phases and GPUs are added up on the way."""
        result, bench = self._result, self._bench
        usual, phase, at, ended = self._usual, "", time.monotonic(), False
        deadline = time.monotonic() + LONGEST
        while not ended:
            if time.monotonic() > deadline:
                raise SystemExit(f"the move does not end: {bench.said(self._name)}")
            bench.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bench.changed.wait(), 0.5)
            now = time.monotonic()
            result.extra_gpu_minutes += max(bench.held() - usual, 0) * (now - at) / 60
            if phase:
                result.phases[phase] = result.phases.get(phase, 0.0) + now - at
            at, moves = now, bench.moves(self._name)
            phase = (moves.get("current") or {}).get("phase", "")
            if phase and result.decided is None:
                result.decided = self.since()
                self._from = self._replay.now()
            if moves.get("recent") and not phase:
                last = moves["recent"][0]
                result.ended, result.reason = last["result"], last["reason"]
                ended = bench.held() == usual
        result.phases = {name: round(seconds, 1) for name, seconds in result.phases.items()}
        result.extra_gpu_minutes = round(result.extra_gpu_minutes, 2)
        self._to = self._replay.now()


async def scenario(bench: Moving, what: str, number: int) -> Result:
    result, name = Result(what), f"bench-{number}"
    full = what == "no spare GPUs"
    address = await bench.begin(name, **SPECS.get(what, {}))
    if full:
        allocation = {"pool": bench.other_pool(name), "variant": "bf16", "tensorParallel": 2, "groups": 1}
        neighbour = deployment(f"full-{number}", placement={"mode": "Fixed", "fixed": {"allocations": [allocation]}})
        await bench.client.create(neighbour)
        await bench.until(lambda: bool(bench.said(f"full-{number}").get("readyReplicas")), LONGEST)
    replay = Replay(address, [Request(each / RATE, 50, 20) for each in range(RATE * 1800)])
    running = asyncio.create_task(replay.run())
    watch = Watch(bench, name, replay, result)
    try:
        await SCENARIOS[what](bench, name, watch)
        await asyncio.sleep(AFTER)
        replay.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    _account(result, replay.outcomes, *watch.span)
    for each in [name, *([f"full-{number}"] if full else [])]:
        found = await bench.client.get(LLM_DEPLOYMENT, NAMESPACE, each)
        await bench.client.delete(LLM_DEPLOYMENT, NAMESPACE, each, uid=found["metadata"]["uid"])
    await bench.until(lambda: not bench.pods.store.all(), LONGEST)
    return result


def _account(result: Result, outcomes: list[Outcome], begin: float, end: float) -> None:
    """Every request that was sent, and the worst five seconds of the move."""
    result.requests, result.failed = len(outcomes), sum(bool(each.error) for each in outcomes)
    result.retried = sum(each.broken_at is not None for each in outcomes)
    result.errors = sorted({each.error[:160] for each in outcomes if each.error})[:3]
    during = [each for each in outcomes if begin <= each.sent < end]
    shares = []
    for first in during:
        some = [each for each in during if first.sent <= each.sent < first.sent + WINDOW]
        if first.sent + WINDOW <= end:
            shares.append(sum(map(_met, some)) / len(some))
    result.worst = round(min(shares), 3) if shares else None


def _met(outcome: Outcome) -> bool:
    first, token = outcome.time_to_first_token, outcome.time_per_output_token
    return not outcome.error and first is not None and first <= TTFT and (token is None or token <= TPOT)


def row(result: Result) -> str:
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.phases.items()) or "-"
    worst = "-" if result.worst is None else f"{result.worst:.0%}"
    decided = "-" if result.decided is None else f"{result.decided:.1f}"
    cells = [f"{result.scenario:<16}", f"{result.ended:<17}", f"{result.requests:>8}", f"{result.retried:>7}"]
    cells += [f"{result.failed:>6}", f"{decided:>7}", f"{result.extra_gpu_minutes:>9.2f}", f"{worst:>5}", phases]
    return "  ".join(cells)


HEAD: Final = "  ".join(
    [
        f"{'scenario':<16}",
        f"{'ended':<17}",
        "requests",
        "retried",
        "failed",
        "decided",
        "extra GPU",
        "worst",
        "seconds in each phase",
    ]
)


async def run(folder: Path, names: list[str], out: Path | None) -> list[Result]:
    kubeconfig = control.ask(folder, {"do": "status"})["kubeconfig"]
    results: list[Result] = []
    async with ApiClient(await auth.configuration(kubeconfig)) as api:
        bench = Moving(folder, KubeClient(api))
        watched = (bench.pods, bench.groups, bench.deployments)
        tasks = [asyncio.create_task(each.run()) for each in watched]
        for each in watched:
            await each.synced.wait()
        try:
            for number, name in enumerate(names):
                result = await scenario(bench, name, number)
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
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="default: all")
    parser.add_argument("--json", type=Path, help="file to add a JSON line per scenario to")
    arguments = parser.parse_args()
    wanted = arguments.scenario or list(SCENARIOS)
    settings = {"BERTH_METRICS_INTERVAL": "0.5", "BERTH_METRICS_WARM_UP": "0", "BERTH_RESYNC": "5"}
    settings["BERTH_DECISION_HOUR"] = "20"
    report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="berth-bench-") as state:
        os.environ["XDG_STATE_HOME"] = state
        pools = PoolOption("H100-SXM-80", 1, 2), PoolOption("A100-SXM-40", 1, 2)
        config = Config("bench-moves", pools=pools, settings=settings)
        with cluster.up(config, report, report) as started:
            results = asyncio.run(run(started.folder, wanted, arguments.json))
    print(
        "seconds; GPU minutes beyond those of the placement in force; attainment in the worst five seconds of the move"
    )
    print(HEAD)
    for result in results:
        print(row(result))
    sys.exit(1 if any(result.failed for result in results) else 0)


if __name__ == "__main__":
    main()
