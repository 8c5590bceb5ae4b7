"""The event-compressed simulation against one that makes every iteration."""

from dataclasses import replace

import numpy as np
import pytest

from berth.estimator.arrivals import Requests
from berth.estimator.engine_model import EngineModel
from berth.estimator.simulation import Served, StepTable, serve
from tests.support.engines import ENGINES, h100_fp8
from tests.support.replay import Measured, Trace, read_trace, replay

HOUR = read_trace()
QUANTILES = (50, 95, 99)


def part(rate: float, count: int, start: int = 6000) -> Trace:
    cut = slice(start, start + count)
    seconds = HOUR.seconds[cut] - HOUR.seconds[start]
    return Trace(seconds * (count / seconds[-1] / rate), HOUR.prompt[cut], HOUR.output[cut])


def simulated(engine: EngineModel, trace: Trace, requested: int, *, cached: float = 0.0, clients: int = 0) -> Served:
    arrival = np.where(np.arange(len(trace.prompt)) < clients, 0.0, np.inf) if clients else trace.seconds
    already = np.minimum((trace.prompt * cached).astype(np.int64), trace.prompt - 1)
    requests = Requests(arrival, trace.prompt, already, trace.output, trace.prompt + requested)
    return serve(engine, requests, StepTable(engine, mean_context=1260))


def assert_alike(engine: EngineModel, trace: Trace, found: Served, truth: Measured, tolerance: float = 0.015) -> None:
    ttft = found.first - found.arrival + engine.request_overhead
    later = np.maximum(trace.output - 1, 1)
    several = trace.output > 1
    tpot = ((found.last - found.first) / later)[several]
    assert np.percentile(ttft, QUANTILES) == pytest.approx(np.percentile(truth.ttft, QUANTILES), rel=tolerance)
    assert np.percentile(tpot, QUANTILES) == pytest.approx(np.percentile(truth.tpot[several], QUANTILES), rel=tolerance)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("H100 TP2 FP8", 3.4),
        ("H100 TP2 FP8", 7.0),
        ("H100 TP1 FP8", 1.1),
        ("A100-40 TP4 BF16", 0.8),
        ("A100-40 TP8 BF16", 2.5),
    ],
)
def test_agrees_with_the_replay(name: str, rate: float) -> None:
    trace = part(rate, 400)

    assert_alike(
        ENGINES[name], trace, simulated(ENGINES[name], trace, 1024), replay(ENGINES[name], trace, 1024), tolerance=0.02
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"max_num_tokens": 512, "max_batch_size": 64},
        {"max_batch_size": 3},
        {"kv_tokens": 16_000, "block_tokens": 128},
        {"max_num_tokens": 300, "max_batch_size": 2, "kv_tokens": 15_104},
    ],
    ids=["chunked prompts", "small batch", "little KV room", "all of them"],
)
def test_agrees_with_the_replay_where_limits_bind(changes: dict[str, int]) -> None:
    engine = replace(h100_fp8(2), **changes)  # type: ignore[arg-type]
    trace = part(0.9, 250)

    assert_alike(engine, trace, simulated(engine, trace, 900), replay(engine, trace, 900))


def test_agrees_with_the_replay_when_prompts_are_cached() -> None:
    engine, trace = h100_fp8(1), part(1.5, 300)

    assert_alike(engine, trace, simulated(engine, trace, 1024, cached=0.7), replay(engine, trace, 1024, cached=0.7))


def test_agrees_with_the_replay_for_closed_clients() -> None:
    engine, trace = h100_fp8(2), part(1.0, 400)

    assert_alike(
        engine,
        trace,
        simulated(engine, trace, 1024, clients=24),
        replay(engine, trace, 1024, clients=24),
        tolerance=0.03,
    )


def test_one_request_alone_takes_its_prompt_and_its_steps() -> None:
    engine = h100_fp8(1)
    trace = Trace(np.array([5.0]), np.array([1000]), np.array([101]))
    served = simulated(engine, trace, 1024)
    zero, one = np.zeros(1), np.ones(1)
    prompt = engine.step(zero, zero, 1000 * one, 500_500 * one)[0]
    steps = sum(engine.step(one, (1000.0 + n) * one, zero, zero)[0] for n in range(1, 101))

    assert served.first[0] == pytest.approx(5 + prompt, rel=0.005)
    assert served.last[0] - served.first[0] == pytest.approx(steps, rel=1e-3)


def test_memory_reserved_for_the_largest_answer_keeps_others_out() -> None:
    engine = replace(h100_fp8(1), kv_tokens=4096)
    two = Trace(np.array([0.0, 0.0]), np.array([1000, 1000]), np.array([50, 50]))
    together, apart = simulated(engine, two, 1024), simulated(engine, two, 2048)

    assert together.admitted[1] == 0
    assert apart.admitted[1] == apart.last[0]
