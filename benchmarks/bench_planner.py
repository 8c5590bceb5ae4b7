"""The planner: time cold and warm, what batch limits and pruning cost against brute force, p95 against replays.

    python -m benchmarks.bench_planner [--questions N]

Run from the repository root. Four pools (H100, H200, A100 with 80 and 40 GB), a 70B and an 8B model with two variants
each, and random traffic and objectives around a recorded hour. Brute force sizes every layout with a grid of batch
limits and with pipeline stages that the planner leaves out, by the same screen; the chosen placement is then replayed
with the requests of the recorded hour, one iteration at a time, which shares no code with the queueing model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from berth.api.gpupool import parse_gpupool
from berth.api.llmdeployment import parse_llmdeployment
from berth.core.nodes import NodeView
from berth.core.placement.choose import TIE, Answer, choose
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import BATCH_SIZES, TOKEN_BUDGETS, Layout, tensor_parallels
from berth.core.placement.question import Question, question
from berth.core.placement.size import Candidate, size, uneven
from berth.core.placement.supply import Supply, supply_of
from berth.estimator import performance
from berth.estimator.engine_model import EngineModel
from tests.support.replay import fleet, read_trace

PRICES = {"h100": ("H100-SXM-80", "2.99"), "h200": ("H200-SXM-141", "3.79"), "a100-80": ("A100-SXM-80", "1.79"),
          "a100-40": ("A100-SXM-40", "1.29")}  # fmt: skip
MODELS = ("llama-3.1-70b-instruct", "llama-3.1-8b-instruct")
MAX_REQUESTED = 1024
SEED = 7
NODES = 8


def pools() -> dict[str, Supply]:
    """Four pools of eight nodes in two zones."""
    found = {}
    for name, (gpu, price) in PRICES.items():
        spec = {"gpu": gpu, "nodeSelector": {"pool": name}, "resourceName": "nvidia.com/gpu", "gpusPerNode": 8}
        manifest = {"metadata": {"name": name}, "spec": {**spec, "pricePerGPUHour": price}}
        nodes = [
            NodeView(
                f"{name}-{index}",
                {"pool": name, "topology.kubernetes.io/zone": "ab"[index % 2]},
                gpu_capacity=8,
                gpu_allocatable=8,
                cpu_millicores=256_000,
                memory_bytes=2**42,
            )
            for index in range(NODES)
        ]
        found[name] = supply_of(parse_gpupool(manifest), "bench", nodes, {})
    return found


def asked(model: str, rate: float, first: float, token: float, prefer: str = "Cost") -> Question:
    source = {"persistentVolumeClaim": {"claimName": "models"}}
    fp8 = {"name": "fp8", "precision": "fp8", "kvPrecision": "fp8", "source": source}
    bf16 = {"name": "bf16", "precision": "bf16", "source": source}
    traffic = {
        "requestsPerSecond": f"{rate:.3f}",
        "inputTokens": {"mean": 1155, "p95": 4083, "p99": 4200, "max": 14050},
        "outputTokens": {"mean": 211, "p95": 451, "maxRequested": MAX_REQUESTED},
        "peakToMean": "1.4",
        "peakInputToMean": "1.24",
        "peakOutputToMean": "0.65",
    }
    objectives = {
        "timeToFirstToken": {"p95": f"{first * 1e3:.0f}ms"},
        "timePerOutputToken": {"p95": f"{token * 1e3:.0f}ms"},
        "availability": "0.999",
        "prefer": prefer,
    }
    spec = {"model": {"name": model, "variants": [fp8, bf16]}, "traffic": traffic, "objectives": objectives}
    return question(parse_llmdeployment({"metadata": {"name": "bench", "namespace": "bench"}, "spec": spec}))


def questions(count: int) -> Iterator[Question]:
    rng = random.Random(SEED)
    for index in range(count):
        rate = 10 ** rng.uniform(-0.5, 1.3) * (1 if index % 2 == 0 else 4)
        yield asked(MODELS[index % 2], rate, rng.uniform(0.5, 3), rng.uniform(0.02, 0.08))


@dataclass(frozen=True)
class Timed:
    answer: Answer
    seconds: float


def timed(wanted: Question, supplies: dict[str, Supply], memory: Memory) -> Timed:
    start = time.process_time()
    answer = choose(wanted, supplies.values(), Estimates(wanted, supplies, memory))
    return Timed(answer, time.process_time() - start)


def everything(wanted: Question, supplies: dict[str, Supply], memory: Memory) -> list[Candidate]:
    """Every layout with a grid of batch limits, and with stages inside a node, by the screen."""
    evaluation = Estimates(wanted, supplies, memory)
    found = []
    for supply, variant in product(supplies.values(), wanted.variants):
        if supply.gpu.why_not(variant.precision, "pytorch", variant.effective_kv_precision):
            continue
        for tensor, stages in product(tensor_parallels(wanted.model, supply), (1, 2)):
            if tensor * stages > 8:
                continue
            for batch, tokens in product(BATCH_SIZES[1::2], TOKEN_BUDGETS):
                layout = Layout(supply.name, variant.name, tensor, stages, batch, tokens)
                found.append(size(wanted, supply, layout, evaluation))
    return [candidate for candidate in found if not candidate.rejected and candidate.available]


def cost(candidate: Candidate | None) -> float:
    return candidate.cost.per_hour if candidate is not None and candidate.cost is not None else float("inf")


def times(supplies: dict[str, Supply]) -> None:
    wanted = asked(MODELS[0], 5.4, 1.5, 0.05)
    cold = [timed(wanted, supplies, Memory()).seconds for _ in range(5)]
    memory = Memory()
    timed(wanted, supplies, memory)
    warm = [timed(wanted, supplies, memory).seconds for _ in range(20)]
    other = [timed(asked(MODELS[0], rate, 1.5, 0.05), supplies, memory).seconds for rate in (4.0, 4.7, 5.9, 6.6, 7.5)]
    counts = timed(wanted, supplies, memory).answer.candidates
    print(f"four pools, two variants: {len(counts)} candidates, {sum(not each.rejected for each in counts)} possible")
    print(f"processor time: cold {statistics.median(cold) * 1e3:.0f} ms (worst {max(cold) * 1e3:.0f}), goal 1000 ms")
    print(f"                warm {statistics.median(warm) * 1e3:.0f} ms (worst {max(warm) * 1e3:.0f}), goal 50 ms")
    print(f"                other load, same profile {statistics.median(other) * 1e3:.0f} ms")


def regret(supplies: dict[str, Supply], count: int) -> None:
    memory = Memory()
    extra, infeasible, simulated = [], 0, []
    for wanted in questions(count):
        found = timed(wanted, supplies, memory).answer
        best = min((cost(each) for each in everything(wanted, supplies, memory)), default=float("inf"))
        simulated.append(sum(each.method == "simulate" for each in found.candidates))
        if found.chosen is None:
            infeasible += best < float("inf")
            continue
        extra.append(cost(found.chosen) / best - 1)
    print(f"\n{count} questions against brute force over batch limits and stages (screened, so slightly optimistic)")
    print(f"cost above the cheapest: median {statistics.median(extra):.1%}, worst {max(extra):.1%}; ties are {TIE:.0%}")
    print(f"called infeasible although the screen finds a placement: {infeasible}; simulated per question: "
          f"{statistics.mean(simulated):.1f}")  # fmt: skip


def replayed(supplies: dict[str, Supply], count: int) -> None:
    """The chosen placement's group under its share of the recorded hour."""
    hour = read_trace()
    memory = Memory()
    print("\np95 promised for one group at its share of the planned load, and what a replay of the recorded hour gets")
    print(f"{'placement':34}{'req/s':>7}{'TTFT':>18}{'TPOT':>22}")
    ratios: list[float] = []
    for wanted in questions(count):
        chosen = timed(wanted, supplies, memory).answer.chosen
        if chosen is None or chosen.latency is None:
            continue
        share = wanted.traffic.load / chosen.groups * uneven(chosen.groups)
        got = fleet(engine(wanted, supplies, chosen.layout), hour, share, MAX_REQUESTED)
        first, token = float(np.percentile(got.ttft, 95)), float(np.nanpercentile(got.tpot, 95))
        promised = chosen.latency
        ratios += [promised.ttft_p95 / first, promised.tpot_p95 / token]
        name = f"{wanted.model.name} {chosen.layout} x {chosen.groups}"
        print(
            f"{name:34}{share:7.2f}{promised.ttft_p95:9.2f} {first:6.2f} s"
            f"{promised.tpot_p95 * 1e3:12.1f} {token * 1e3:6.1f} ms"
        )
    off = [abs(ratio - 1) for ratio in ratios]
    print(f"median error {statistics.median(off):.1%}, lowest {min(ratios):.2f}, highest {max(ratios):.2f}")


def engine(wanted: Question, supplies: dict[str, Supply], layout: Layout) -> EngineModel:
    variant = next(variant for variant in wanted.variants if variant.name == layout.variant)
    copy = performance.Candidate(
        wanted.model,
        supplies[layout.pool].gpu,
        layout.tensor_parallel,
        layout.pipeline_parallel,
        variant.precision,
        variant.effective_kv_precision,
        max_batch_size=layout.max_batch_size,
        max_num_tokens=layout.max_num_tokens,
    )
    return performance.engine_model(copy)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=4, help="random questions (about 20 s each)")
    count = parser.parse_args(arguments).questions
    supplies = pools()
    times(supplies)
    regret(supplies, count)
    replayed(supplies, min(count, 6))


if __name__ == "__main__":
    main()
