"""Queueing model against replays of a recorded hour: error of p95, what each way of planning promises and gets, time.

    python -m benchmarks.bench_queueing [--replay]

Run from the repository root. p95 at fixed loads is compared with the golden replays of the unit tests (`--replay` makes
them anew); the loads that each way of planning chooses are replayed here. Ways of planning, for 1.5 s and 50 ms at p95:

    mean       largest rate at which the mean time per output token of the closed form meets 50 ms, times 0.75
    Poisson    this model, told that all minutes are alike
    screen     this model, screened
    simulated  this model, simulated
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from berth.estimator.engine_model import EngineModel
from berth.estimator.latency import Objectives
from berth.estimator.queueing import capacity, latency
from berth.estimator.trace import profile_of
from berth.estimator.traffic import TrafficProfile
from tests.support.engines import ENGINES
from tests.support.golden_replays import MAX_REQUESTED, make_all, read
from tests.support.replay import fleet, read_trace

OBJECTIVES = Objectives(time_to_first_token=1.5, time_per_output_token=0.05)
HOUR = read_trace()
PROFILE = profile_of(HOUR.seconds, HOUR.prompt, HOUR.output, MAX_REQUESTED)
STEADY = replace(PROFILE, peak_to_mean=1.0, peak_input_to_mean=1.0, peak_output_to_mean=1.0)
SIX_FIGURES = replace(
    PROFILE,
    input_tokens=replace(PROFILE.input_tokens, p99=None),
    output_tokens=replace(PROFILE.output_tokens, p99=None),
    peak_input_to_mean=None,
    peak_output_to_mean=None,
)


def by_means(engine: EngineModel, profile: TrafficProfile) -> float:
    """Three quarters of the largest rate whose mean time per output token meets the objective."""
    prompt, answer = profile.input_tokens.mean, profile.output_tokens.mean
    slots = min(engine.max_batch_size, int(engine.kv_tokens / (prompt + profile.output_tokens.max)))
    running = np.arange(1, slots + 1, dtype=float)
    context = running * (prompt + answer / 2)
    decode = engine.step(running, context, 0 * running, 0 * running)
    mixed = engine.step(running, context, np.full(slots, prompt), np.full(slots, prompt**2 / 2))
    per_token = decode + (running - 1) * (mixed - decode) / answer
    rate = running / (answer * decode + running * (mixed - decode))
    return 0.75 * float(rate[per_token <= OBJECTIVES.time_per_output_token].max())


def errors(cases: list[dict[str, object]]) -> None:
    models: dict[str, Callable[[EngineModel, float], tuple[float, float]]] = {}
    for name, profile, method in (
        ("simulated", PROFILE, "simulate"),
        ("screen", PROFILE, "screen"),
        ("six figures", SIX_FIGURES, "simulate"),
        ("Poisson", STEADY, "simulate"),
    ):
        models[name] = lambda engine, rate, profile=profile, method=method: (
            (found := latency(engine, profile, rate, method)).ttft_p95,
            found.tpot_p95,
        )
    print("p95 of model / p95 of replay (time to first token, time per output token)\n")
    print(f"{'engine':18}{'req/s':>6}{'replay':>17}" + "".join(f"{name:>15}" for name in models))
    ratios: dict[str, list[float]] = {name: [] for name in models}
    for case in cases:
        engine, rate = ENGINES[str(case["engine"])], float(str(case["rate"]))
        first, token = (case[key][1] for key in ("ttft", "tpot"))  # type: ignore[index]
        row = f"{case['engine']:18}{rate:6.2f}{first:8.2f} s{token * 1e3:4.0f} ms"
        for name, model in models.items():
            found = model(engine, rate)
            ratios[name] += [found[0] / first, found[1] / token]
            row += f"{found[0] / first:9.2f} {found[1] / token:5.2f}"
        print(row)
    for name, values in ratios.items():
        print(
            f"{name}: median error {statistics.median(abs(v - 1) for v in values):.1%}, "
            f"lowest {min(values):.2f}, highest {max(values):.2f}"
        )


def promises() -> None:
    print("\nload chosen for p95 1.5 s and 50 ms, and p95 that a replay at that load gets\n")
    print(f"{'engine':18}" + "".join(f"{way:>28}" for way in ("mean", "Poisson", "screen", "simulated")))
    for name, engine in ENGINES.items():
        loads = (
            by_means(engine, PROFILE),
            capacity(engine, STEADY, OBJECTIVES).load,
            capacity(engine, PROFILE, OBJECTIVES, method="screen").load,
            capacity(engine, PROFILE, OBJECTIVES).load,
        )
        row = f"{name:18}"
        for load in loads:
            got = fleet(engine, HOUR, load, MAX_REQUESTED)
            first, token = np.percentile(got.ttft, 95), np.nanpercentile(got.tpot, 95)
            row += f"{load:8.2f}/s {first:7.2f} s {token * 1e3:5.0f} ms"
        print(row)


def times() -> None:
    engine = ENGINES["H100 TP2 FP8"]
    print("\nprocessor time, H100 TP2 FP8")
    for name, call in (
        ("latency by screen", lambda: latency(engine, PROFILE, 3.0)),
        ("latency by simulation", lambda: latency(engine, PROFILE, 3.0, "simulate")),
        ("capacity by screen", lambda: capacity(engine, PROFILE, OBJECTIVES, method="screen")),
        ("capacity by simulation", lambda: capacity(engine, PROFILE, OBJECTIVES)),
    ):
        call()
        spent = []
        for _ in range(5):
            start = time.process_time()
            call()
            spent.append(time.process_time() - start)
        print(f"{name:24}{statistics.median(spent) * 1e3:8.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replay", action="store_true", help="make the golden replays anew (a minute) and compare")
    fresh = list(make_all()) if parser.parse_args().replay else read()
    if fresh != read():
        print("the golden replays differ from fresh ones: python -m tests.support.golden_replays\n")
    errors(fresh)
    promises()
    times()
