"""The demonstration from the first line to the last: a cluster comes up, and act after act plays on it.

An act is a coroutine on a `Stage` that says what it does and sees; `_tell` has their order.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from berth.api.common import seconds
from berth.core.placement.tell import describe
from berth.errors import BerthError
from berth.kube.kinds import Object
from berth.local import cluster, sandbox
from berth.local.config import DEFAULT_POOLS, Config, PoolOption
from berth.local.demo import report, trace
from berth.local.demo.client import Outcome, Replay
from berth.local.demo.stage import Stage, opened
from berth.local.screen import Screen, own_command
from berth.local.triton_env import CHECKOUT
from berth.serving.prober import TritonProber

SAMPLE: Final = CHECKOUT / "manifests" / "samples" / "llama-70b.yaml"
SERVING_LIMIT: Final = 120.0
FAILURE_AT: Final = 1 / 3
"""Of the replay: the queues are those of a running service by then."""
AFTERMATH: Final = 15.0
"""Seconds that count as the time of the failure."""
BEFORE, DURING, AFTER = "answered before the failure", f"in flight at it, or sent in {AFTERMATH:.0f}s", "sent later"
OTHERS_SHOWN: Final = 3


POOLS: Final = (*DEFAULT_POOLS, PoolOption("H200-SXM-141", 1, 8))
H200_PRICE: Final = "5.99"
"""Made up: there is no list price of this type where the others come from."""
SETTINGS: Final = {"BERTH_DECISION_HOUR": "30", "BERTH_METRICS_INTERVAL": "1", "BERTH_RESYNC": "5"}
"""An hour of Berth's decisions is over in half a minute, so that a move can be watched."""
CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "placement": {"mode": "Auto", "moves": {"mode": "Auto", "cooldown": "1m"}},
    "scaling": {"mode": "Auto", "min": 2, "max": 2},
}
"""To the sample: moves are allowed, to any pool, and the number of groups stays, so that each act shows one thing."""
SLOWER: Final = 3.0
WELL_FOR: Final = 15.0
"""Seconds of traffic before the pool becomes slow, and after the move."""
MOVE_LIMIT: Final = 150.0
MOVE_LENGTH: Final = 100.0
"""Seconds that all of it takes, about."""


def run(name: str, screen: Screen, *, keep: bool, length: float, move: bool = True) -> None:
    """Replays `length` seconds of the trace, then lets a pool become slow unless `move` is False.

    The cluster ends afterwards unless `keep`. Raises BerthError.
    """
    screen.title("Llama-3.1-70B on three pools of simulated GPUs; Triton, Kubernetes, clients and failures are real")
    with cluster.up(Config(name, pools=POOLS, settings=SETTINGS), screen.step, screen.working) as started:
        pod = asyncio.run(_tell(started.folder, screen, length, move))
        if keep:
            started.keep()
    _say_what_next(name, pod if keep else None, screen)


async def _tell(folder: Path, screen: Screen, length: float, move: bool) -> str:
    """All acts; the name of a pod that serves at the end."""
    deployment: Object = yaml.safe_load(SAMPLE.read_text())
    deployment["spec"] |= CHANGES
    async with opened(folder, screen, deployment) as stage:
        await stage.price("h200", H200_PRICE)
        await _place(stage)
        address = await _serve(stage)
        await _survive_a_killed_server(stage, address, deployment["spec"]["objectives"], length)
        if move:
            await _leave_a_slow_pool(stage, address, deployment["spec"]["objectives"])
        name: str = max(stage.leaders.items())[1]["metadata"]["name"]
        return name


# --- acts -------------------------------------------------------------------------------------------------------------


async def _place(stage: Stage) -> None:
    """Berth chooses GPUs, and says why these."""
    await stage.apply()
    stage.screen.step(f"applied {SAMPLE.relative_to(CHECKOUT)}, with two groups that may move to any pool")
    await stage.until(lambda: stage.condition("Placed"), SERVING_LIMIT)
    placement = stage.status["placement"]
    stage.screen.step(f"placed: {report.choice(placement['allocations'][0], placement)}: {placement['reason']}")
    for line in report.others(stage.status.get("candidates") or (), OTHERS_SHOWN):
        stage.screen.detail(line)


async def _serve(stage: Stage) -> str:
    """Until every group serves and the Service knows; the address of the Service."""
    wanted = sum(allocation["groups"] for allocation in stage.status["placement"]["allocations"])
    await stage.until(lambda: len(stage.leaders) == wanted and stage.condition("Ready"), SERVING_LIMIT)
    for group, pod in sorted(stage.leaders.items()):
        stage.screen.step(f"{group} serves on {pod['spec']['nodeName']}: a token came out of it")
    address = await stage.service(wanted, SERVING_LIMIT)
    stage.screen.step(f"the Service answers at {address} (gRPC)")
    return address


async def _survive_a_killed_server(stage: Stage, address: str, objectives: Mapping[str, Any], length: float) -> None:
    """Traffic, SIGKILL to a server in the middle of it, and what clients saw."""
    requests = [request for request in trace.requests() if request.at <= length]
    replay = Replay(address, requests)
    stage.screen.step(
        f"replaying {len(requests)} requests of the {trace.SOURCE} over {replay.connections} kept connections"
    )
    async with stage.load(replay, length):
        await asyncio.sleep(length * FAILURE_AT)
        killed_at = await _kill_a_server(stage, replay)
    stage.screen.step(f"replay ended: {replay.tokens} tokens")
    wanted = seconds(objectives["timeToFirstToken"]["p95"]), seconds(objectives["timePerOutputToken"]["p95"])

    def part(outcome: Outcome) -> str:
        if outcome.last is not None and outcome.last < killed_at:
            return BEFORE
        return DURING if outcome.sent < killed_at + AFTERMATH else AFTER

    parts = [(name, [each for each in replay.outcomes if part(each) == name]) for name in (BEFORE, DURING, AFTER)]
    stage.screen.plain()
    stage.screen.plain("measured at the clients, on simulated hardware:")
    for line in report.latency_table(parts, wanted):
        stage.screen.plain(f"  {line}")
    stage.screen.plain(f"what clients noticed: {report.noticed(replay.outcomes)}")
    for each in [each for each in replay.outcomes if each.error][:OTHERS_SHOWN]:
        stage.screen.plain(f"  failed: {each.error}")
    summary = stage.status["summary"]
    stage.screen.plain(f"{stage.deployment_name} says: {summary['ready']} {summary['placement']}, {summary['message']}")


async def _leave_a_slow_pool(stage: Stage, address: str, objectives: Mapping[str, Any]) -> None:
    """A pool becomes slow under traffic, Berth moves, and what clients saw of it."""
    screen, before = stage.screen, stage.status["placement"]
    pool = before["allocations"][0]["pool"]
    screen.plain()
    screen.step(f"more of the trace; an hour of Berth's decisions is over in {SETTINGS['BERTH_DECISION_HOUR']} s here")
    replay = Replay(address, trace.endless(MOVE_LIMIT * 2))
    async with stage.load(replay, MOVE_LENGTH):
        await asyncio.sleep(WELL_FOR)
        slow_at = replay.now()
        stage.slow_down(pool, SLOWER)
        screen.fault(f"every step on pool {pool} takes {SLOWER:.0f} times as long from now on")
        await stage.until(lambda: "current" in stage.moves, MOVE_LIMIT)
        to = stage.moves["current"]["to"][0]
        screen.step(f"{replay.now() - slow_at:.0f}s later Berth is sure, and moves to {describe(to)}")
        await stage.until(lambda: (stage.moves.get("current") or {}).get("phase") == "Judging", MOVE_LIMIT)
        moved_at = replay.now()
        screen.step("the new groups get the requests; the old ones are kept until the new ones are judged")
        await stage.until(lambda: bool(stage.moves.get("recent")), MOVE_LIMIT)
        ended = stage.moves["recent"][0]
        screen.step(f"move {ended['result'].lower()}: {ended['reason']}")
        await asyncio.sleep(WELL_FOR)
        replay.stop()

    def part(outcome: Outcome) -> str:
        if outcome.sent >= moved_at:
            return f"on {to['pool']}"
        return f"on {pool}" if outcome.last is not None and outcome.last < slow_at else f"{pool} is slow"

    names = (f"on {pool}", f"{pool} is slow", f"on {to['pool']}")
    parts = [(name, [each for each in replay.outcomes if part(each) == name]) for name in names]
    wanted = seconds(objectives["timeToFirstToken"]["p95"]), seconds(objectives["timePerOutputToken"]["p95"])
    after = stage.status["placement"]
    screen.plain()
    screen.plain("measured at the clients, on simulated hardware:")
    for line in report.latency_table(parts, wanted):
        screen.plain(f"  {line}")
    screen.plain(f"before: {report.choice(before['allocations'][0], before)}")
    screen.plain(f"after:  {report.choice(after['allocations'][0], after)}")
    screen.plain(f"what clients noticed: {report.noticed(replay.outcomes)}")
    for each in [each for each in replay.outcomes if each.error][:OTHERS_SHOWN]:
        screen.plain(f"  failed: {each.error}")


async def _kill_a_server(stage: Stage, replay: Replay) -> float:
    """SIGKILL to the Triton of the first group, and what Berth makes of it. The moment of it on the replay's clock."""
    group, pod = min(stage.leaders.items())
    in_flight = await _in_flight(pod["status"]["podIP"])
    process = _server_of(stage.cluster(), pod)
    killed_at = replay.now()
    sandbox.send([process], signal.SIGKILL)
    stage.screen.fault(f"killed the Triton server of {group} (process {process}), {in_flight} requests in flight")
    await stage.until(lambda: group not in stage.leaders, SERVING_LIMIT)
    stage.screen.step(f"{group} gets no new requests: traffic cut after {replay.now() - killed_at:.1f}s")
    await stage.until(lambda: group in stage.leaders and stage.states.get(group) == "Serving", SERVING_LIMIT)
    stage.screen.step(f"{group} serves again after {replay.now() - killed_at:.1f}s")
    return killed_at


# --- helpers ----------------------------------------------------------------------------------------------------------


async def _in_flight(address: str) -> int:
    prober = TritonProber()
    try:
        return (await prober.progress(address)).in_flight
    finally:
        await prober.close()


def _server_of(status: Mapping[str, Any], pod: Object) -> int:
    """Process of the Triton server in a pod."""
    name = pod["metadata"]["name"]
    found = next(each for node in status["nodes"] for each in node["pods"] if each["name"] == name)
    for process in sandbox.marked(found["mark"]):
        if Path(f"/proc/{process}/comm").read_text().strip() == "tritonserver":
            return process
    raise BerthError(f"no Triton server runs in pod {name}")


def _say_what_next(name: str, pod: str | None, screen: Screen) -> None:
    """`pod`: one that serves, where the cluster stays."""
    berth = own_command()
    if pod:
        lines = [
            (f"{berth} local kubectl --name {name} get llmd,replicagroups,pods", "what runs"),
            (f"{berth} local kubectl --name {name} describe llmd llama-70b", "what was decided, and what happened"),
            (f"{berth} local status --name {name}", "nodes, and addresses of Services"),
            (f"{berth} local fault --name {name} {pod} --hang", "freeze an engine whose health stays good, and watch"),
            (f"{berth} local nodes --name {name} kill h100-1", "take a node's power, and watch"),
            (f"{berth} local down --name {name}", "end it all"),
        ]
    else:
        samples = SAMPLE.parent.relative_to(CHECKOUT)
        lines = [
            ("make demo KEEP=1", "the same, and the cluster stays for you"),
            (f"{berth} local up", "an empty cluster, for your own experiments"),
            (
                f"{berth} plan -f {samples / SAMPLE.name} --pools {samples / 'pools.yaml'}",
                "what was considered, and why",
            ),
        ]
    screen.plain()
    screen.plain("next:")
    width = max(len(command) for command, _ in lines)
    for command, why in lines:
        screen.plain(f"  {command:<{width}}  {why}")
