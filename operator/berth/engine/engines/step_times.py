"""Step times of one model copy, from tables of published measurements (`step_times.json`, one entry per source).

A table holds what `benchmarks/distill_step_times.py` drew from published rows: the time of a decode step by requests in
flight, what each token of context adds, and what processing a prompt adds. `choose` takes the table nearest to the
copy that is wanted and scales it by bandwidth and compute, and says so in words. Nothing here is shared with the
estimator: a plant that repeats the planner's formulas could not show where they are wrong.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

Knots = tuple[tuple[float, float], ...]

PIPELINE_BUBBLE: Final = 1.1
"""Loss of a full pipeline; published losses are 0-49 % (NVIDIA blog 2024-10, TP against PP on H200), unvalidated."""


@dataclass(frozen=True, slots=True)
class GPU:
    """Data-sheet figures: usable memory GiB, bandwidth TB/s, dense TFLOPS at 16 and 8 bit (8 bit: FP8 or INT8)."""

    memory: float
    bandwidth: float
    flops16: float
    flops8: float


# NVIDIA data sheets of H100, H200, A100 and L40S; memory as processes see it.
GPUS: Final = {
    "H100-SXM-80": GPU(79.6, 3.35, 989, 1979),
    "H100-PCIe-80": GPU(79.6, 2.0, 756, 1513),
    "H100-NVL-94": GPU(93.1, 3.9, 835, 1671),
    "H200-SXM-141": GPU(139.8, 4.8, 989, 1979),
    "A100-SXM-80": GPU(79.2, 2.039, 312, 624),
    "A100-SXM-40": GPU(39.4, 1.555, 312, 624),
    "A100-PCIe-80": GPU(79.2, 1.935, 312, 624),
    "A100-PCIe-40": GPU(39.4, 1.555, 312, 624),
    "L40S-48": GPU(44.5, 0.864, 362, 733),
}
WEIGHT_BYTES: Final = {"fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4-awq": 0.53, "int4-gptq": 0.53}
"""Bytes per weight; 4-bit weights carry a 16-bit scale and zero per group of 128."""

RESERVE_GIB: Final = 4.0
"""Per GPU for runtime, CUDA graphs and activations. Older runtimes took 5.5-6.5, newer 1.5-2.5."""
KV_SHARE: Final = 0.95
"""Share of what is left that an engine gives to the KV cache."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The model copy that is wanted; billions of parameters, bytes of KV cache per token of the whole copy."""

    active_parameters_b: float
    precision: str
    gpu: str
    tensor_parallel: int
    pipeline_parallel: int
    kv_bytes_per_token: float


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One iteration = decode_seconds(requests, their context) + prefill_seconds of each prompt part in it."""

    decode: Knots
    """(requests in flight, seconds) ascending."""
    prefill: Knots
    """(prompt tokens, seconds added) ascending, from (0, 0)."""
    context: float
    """Seconds per token of context of all requests together."""
    stages: int = 1

    def decode_seconds(self, requests: int, context: float) -> float:
        """With a pipeline the requests run in `stages` batches, each in another stage at the same time."""
        seconds = interpolate(self.decode, max(1.0, requests / self.stages)) + self.context * context / self.stages
        return seconds * PIPELINE_BUBBLE if self.stages > 1 else seconds

    def prefill_seconds(self, start: int, end: int) -> float:
        """Processing prompt tokens start..end; later parts attend to earlier ones, hence the difference."""
        seconds = interpolate(self.prefill, end) - interpolate(self.prefill, start)
        return seconds * PIPELINE_BUBBLE / self.stages if self.stages > 1 else seconds

    def scaled(self, *, decode: float, context: float, prefill: float, stages: int) -> StepTimes:
        return StepTimes(
            tuple((x, y * decode) for x, y in self.decode),
            tuple((x, y * prefill) for x, y in self.prefill),
            self.context * context,
            stages,
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Step times of one published set-up and where they come from."""

    name: str
    copy: Copy
    times: StepTimes
    source: str
    rows: int


def interpolate(knots: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear through the knots; beyond the ends the outermost piece goes on, never below 0."""
    if len(knots) == 1:
        return knots[0][1]
    index = min(max(bisect_right(knots, x, key=lambda knot: knot[0]), 1), len(knots) - 1)
    (x0, y0), (x1, y1) = knots[index - 1], knots[index]
    return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))


@lru_cache(maxsize=1)
def tables() -> tuple[Table, ...]:
    """All tables of `step_times.json`."""
    entries = json.loads(Path(__file__).with_name("step_times.json").read_text())["tables"]
    return tuple(
        Table(
            name=entry["name"],
            copy=Copy(**entry["copy"]),
            times=StepTimes(
                decode=tuple((x, y) for x, y in entry["decode"]),
                prefill=((0.0, 0.0), *((x, y) for x, y in entry["prefill"])),
                context=entry["context"],
            ),
            source=entry["source"],
            rows=entry["rows"],
        )
        for entry in entries
    )


def choose(wanted: Copy) -> tuple[StepTimes, str]:
    """Step times for a copy and a note on where they come from.

    Nearest = the smallest scaling; another GPU, precision or tensor parallelism counts as a factor of its own, because
    kernels and links differ in ways that no ratio shows. Raises ValueError for an unknown GPU or precision, and for
    one that the GPU does not have.
    """
    if wanted.gpu not in GPUS:
        raise ValueError(f"gpu {wanted.gpu!r} is unknown to the simulated engine: use one of {', '.join(GPUS)}")
    if wanted.precision not in WEIGHT_BYTES:
        raise ValueError(f"precision {wanted.precision!r} is unknown: use one of {', '.join(WEIGHT_BYTES)}")
    if wanted.precision == "fp8" and wanted.gpu.startswith("A100"):
        raise ValueError(f"fp8 cannot run on {wanted.gpu}: use bf16 or int4-awq")
    table = min(tables(), key=lambda each: _distance(each.copy, wanted))
    decode, context, prefill = _factors(table.copy, wanted)
    times = table.times.scaled(decode=decode, context=context, prefill=prefill, stages=wanted.pipeline_parallel)
    note = f"{table.name} ({table.source}, {table.rows} rows)"
    if abs(decode - 1) > 0.005 or abs(prefill - 1) > 0.005:
        note += f", scaled: decode x{decode:.2f}, prefill x{prefill:.2f}"
    return times, note


def kv_room(copy: Copy, weight_gib: float) -> int:
    """Tokens of KV cache the copy has room for; 0 or less: it does not fit.

    Every GPU loses its share of the weights and a reserve; what is left holds the cache, split over all GPUs.
    """
    gpus = copy.tensor_parallel * copy.pipeline_parallel
    left = GPUS[copy.gpu].memory * gpus - weight_gib - RESERVE_GIB * gpus
    return math.floor(KV_SHARE * left * 2**30 / copy.kv_bytes_per_token)


def _factors(have: Copy, want: Copy) -> tuple[float, float, float]:
    """Decode by weights read, context by KV read, prefill by compute: ratios want / have."""
    mine, theirs = GPUS[want.gpu], GPUS[have.gpu]
    bandwidth = (theirs.bandwidth * have.tensor_parallel) / (mine.bandwidth * want.tensor_parallel)
    compute = (flops(have) * have.tensor_parallel) / (flops(want) * want.tensor_parallel)
    parameters = want.active_parameters_b / have.active_parameters_b
    weights = parameters * WEIGHT_BYTES[want.precision] / WEIGHT_BYTES[have.precision]
    return (
        weights * bandwidth,
        want.kv_bytes_per_token / have.kv_bytes_per_token * bandwidth,
        parameters * compute,
    )


def flops(copy: Copy) -> float:
    """4-bit weights are multiplied in 16 bit."""
    gpu = GPUS[copy.gpu]
    return gpu.flops8 if copy.precision in ("fp8", "int8") else gpu.flops16


def _distance(have: Copy, want: Copy) -> float:
    decode, _, prefill = _factors(have, want)
    distance = abs(math.log(decode)) + abs(math.log(prefill))
    distance += 1.0 if have.gpu.split("-")[0] != want.gpu.split("-")[0] else 0.0
    distance += 0.2 if have.gpu != want.gpu else 0.0
    distance += 0.4 if WEIGHT_BYTES[have.precision] != WEIGHT_BYTES[want.precision] else 0.0
    return distance + 0.3 * abs(math.log2(have.tensor_parallel / want.tensor_parallel))
