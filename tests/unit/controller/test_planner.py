"""Deployments that decide at the same moment, with the real models: no more than a pool can bear begin to move."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from berth import labels
from berth.api.llmdeployment import LLMDeployment
from berth.api.replicagroup import GroupAllocation
from berth.controller.arbiter import Arbiter
from berth.controller.planner import Planner
from berth.core.measurement.histogram import Attained
from berth.core.measurement.measured import GroupMeasured, Measured
from berth.core.measurement.samples import Tally
from berth.core.measurement.windows import Batch, batch_index, windows
from berth.core.moves.decision import Hold, Move, Verdict
from berth.core.moves.rules import MOVES_PER_POOL
from berth.core.observed import Group, Member, Snapshot
from berth.core.placement.question import spec_hash
from berth.core.placement.supply import Supply
from berth.core.steering.day import Day
from berth.core.steering.told import Kept
from tests.unit.placement.cases import BF16, deployment, supply

HOUR, NOW = 3600.0, 86_400_000.0
TRAFFIC = {
    "requestsPerSecond": "5",
    "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
    "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
}
SINGLE = {**BF16, "tensorParallel": 1, "pipelineParallel": 1}
SUPPLIES = {"dear": supply("dear", price="9.90"), "cheap": supply("cheap", price="0.90")}


class Pools(Planner):
    """Knows how its pools stand without asking an arbiter."""

    async def _supplies(self, snapshot: Snapshot) -> Mapping[str, Supply]:
        return SUPPLIES


def planner() -> Pools:
    class Unasked(Arbiter):
        def __init__(self) -> None:
            """Whatever is asked of it fails."""

    return Pools(Unasked(), lambda _pool: None)


def named(wanted: LLMDeployment, name: str) -> LLMDeployment:
    return wanted.model_copy(update={"metadata": wanted.metadata.model_copy(update={"name": name, "uid": name})})


def standing(name: str) -> Snapshot:
    """Serves on the dear pool for a day, and all is well there."""
    wanted = named(deployment(model="llama-3.1-8b-instruct", variants=[SINGLE], traffic=TRAFFIC), name)
    allocation = {"pool": "dear", "variant": "bf16", "groups": 1, "precision": "bf16", "kvPrecision": "bf16"}
    placement = {"allocations": [allocation], "groupsForTraffic": 1, "specHash": spec_hash(wanted.spec)}
    leader = Member(f"{name}-0", f"{name}-0", 0, 1.0, "Running", "dear-0", ready=True, serving=True, token_restarts=0)
    shape = GroupAllocation(pool="dear", variant="bf16")
    group = Group("g0", f"{name}-g0", 0, 1, labels.COMMITTED, shape, "r", 1, 1.0, "dear", members=(leader,))
    met = Attained(300, 298, 298)
    minute = Tally(group_seconds=60, requests=300, readings=6, first_token_met=met, per_token_met=met)
    hour = windows((Batch(batch_index(NOW) - age, 60, minute) for age in range(60)), NOW)
    return Snapshot(
        deployment=wanted,
        raw={"status": {"placement": placement}},
        groups=(group,),
        stray_incarnations={},
        answers={},
        children={},
        pools={"dear": {}, "cheap": {}},
        shortages={},
        missing_claims=frozenset(),
        now=NOW,
        measured=Measured(NOW, (GroupMeasured("g0", "dear", "r", hour, NOW, serving=True),), hour),
    )


async def decided(planner: Pools, names: list[str]) -> list[Verdict]:
    found = await asyncio.gather(*(planner.decide(standing(name)) for name in names))
    verdicts = [each.steering.verdict for each in found if each is not None and each.steering is not None]
    assert len(verdicts) == len(names)
    return verdicts


async def test_of_many_that_would_leave_a_pool_at_once_only_as_many_decide_to_as_may() -> None:
    planning, names = planner(), [f"d{number}" for number in range(MOVES_PER_POOL + 1)]
    day = Day()
    for hour in range(25):
        day = day.seen(NOW - (24 - hour) * HOUR, 5.0, HOUR)
    for name in names:
        planning._kept["team", name] = Kept(day)
    verdicts = await decided(planning, names)
    moving = [name for name, each in zip(names, verdicts, strict=True) if isinstance(each, Move)]
    held = Counter(each.reason for each in verdicts if isinstance(each, Hold))
    assert (len(moving), held) == (MOVES_PER_POOL, {"PoolBusy": len(names) - MOVES_PER_POOL})

    planning.stays("team", moving[0])
    for name in names:
        planning._kept["team", name] = Kept(day)
    waiting = [name for name in names if name not in moving]
    again = await decided(planning, waiting)
    assert sum(isinstance(each, Move) for each in again) == 1, "the place of the one that stays"
