"""Pools, a deployment and a recorded hour for simulations; what is learned of plants and models is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from berth.api.gpupool import GPUPool, parse_gpupool
from berth.core.placement.evaluate import Memory
from berth.core.placement.question import question
from berth.simulation.response import Responses
from berth.simulation.run import Course, Simulation
from berth.simulation.traffic import Recorded, Swing, minutes_of
from berth.simulation.world import Event
from tests.support.replay import read_trace
from tests.unit.placement.cases import BF16, FP8, deployment

DAY = 1440
HOUR = 60
MEMORY = Memory()
RESPONSES: dict[int, Responses] = {}
CHAT = {
    "requestsPerSecond": "5.4",
    "inputTokens": {"mean": 1155, "p95": 4083, "p99": 4200, "max": 14050},
    "outputTokens": {"mean": 211, "p95": 451, "maxRequested": 1024},
    "peakInputToMean": "1.24",
    "peakOutputToMean": "0.65",
}


@cache
def hour() -> Recorded:
    trace = read_trace()
    return Recorded(trace.seconds, trace.prompt, trace.output)


def pool(name: str, gpu: str = "H100-SXM-80", price: str = "2.99", nodes: int = 4) -> GPUPool:
    spec = {"gpu": gpu, "nodeSelector": {"pool": name}, "resourceName": "nvidia.com/gpu", "gpusPerNode": 8}
    manifest = {"metadata": {"name": name}, "spec": {**spec, "pricePerGPUHour": price}, "status": {"nodes": nodes}}
    return parse_gpupool(manifest)


def simulated(pools: Sequence[GPUPool], days: float, **options: Any) -> Course:
    """One deployment of a 70B under Berth for so many days of the recorded hour; options as in `simulated_together`."""
    return simulated_together(["chat"], pools, days, **options)[0]


def simulated_together(
    names: Sequence[str],
    pools: Sequence[GPUPool],
    days: float,
    *,
    hidden: Mapping[str, float] | None = None,
    events: Sequence[Event] = (),
    load: float = 5.4,
    swing: float = 1.0,
    seed: int = 0,
    **spec: Any,
) -> list[Course]:
    """So many of them, on the same pools."""
    asked = question(
        deployment(
            variants=(FP8, BF16),
            traffic={**CHAT, "requestsPerSecond": f"{load}"},
            objectives={
                "timeToFirstToken": {"p95": "1500ms"},
                "timePerOutputToken": {"p95": "50ms"},
                **spec.pop("objectives", {}),
            },
            placement={"moves": {"mode": "Auto"}, **spec.pop("placement", {})},
            **spec,
        )
    )
    simulation = Simulation(
        {each.metadata.name: each for each in pools}, hour(), hidden=hidden, events=events, seed=seed,
        memory=MEMORY, responses=RESPONSES,
    )  # fmt: skip
    minutes = round(days * DAY)
    for name in names:
        simulation.add(name, asked, minutes_of(hour(), minutes, load, Swing(swing)))
    simulation.run(minutes)
    return simulation.courses
