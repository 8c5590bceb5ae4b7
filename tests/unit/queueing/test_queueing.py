import math
from dataclasses import replace

import numpy as np
import pytest

from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.latency import Capacity, Objectives
from berth.estimator.queueing import Method, capacity, latency, open_count, saturation
from berth.estimator.traffic import TokenLengths, TrafficProfile
from tests.support.engines import ENGINES, a100_40_bf16, h100_fp8

PROMPTS, ANSWERS = (
    TokenLengths(1155, 4083, 14050, field="inputTokens"),
    TokenLengths(211, 451, 1024, field="outputTokens"),
)
CONVERSATION = TrafficProfile(PROMPTS, ANSWERS, 5.4, peak_input_to_mean=1.24, peak_output_to_mean=0.65)
STEADY = replace(CONVERSATION, peak_to_mean=1.0, peak_input_to_mean=1.0, peak_output_to_mean=1.0)
CLIENTS = TrafficProfile(PROMPTS, ANSWERS, concurrency=64)
OBJECTIVES = Objectives(time_to_first_token=1.5, time_per_output_token=0.05)
METHODS: tuple[Method, ...] = ("screen", "simulate")


def constant(seconds: float, *, batch: int = 64) -> EngineModel:
    """An engine whose steps take `seconds` whatever they hold."""

    def step(decodes: Floats, context: Floats, prefill: Floats, pairs: Floats) -> Floats:
        return np.full(np.broadcast(decodes, context, prefill, pairs).shape, seconds)

    return EngineModel(step, 10_000_000, batch, 8192, request_overhead=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_request_alone_takes_its_prompt_and_its_steps(method: Method) -> None:
    engine = h100_fp8(1)
    alone = latency(engine, CONVERSATION, 0, method)
    one, zero = np.ones(1), np.zeros(1)
    prompt = engine.step(zero, zero, 4083 * one, 4083 * 4084 / 2 * one)[0]
    step = engine.step(one, 1300 * one, zero, zero)[0]

    assert alone.ttft_p95 == pytest.approx(engine.request_overhead + prompt, rel=0.05)
    assert alone.tpot_p95 == pytest.approx(step, rel=0.03)
    assert alone.in_flight < 0.01
    assert alone.stable


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("prompt", "answer"), [(1, 1), (1, 100), (3, 211), (1155, 211)])
def test_requests_that_are_all_alike_are_no_special_case(prompt: int, answer: int, method: Method) -> None:
    alike = TrafficProfile(
        TokenLengths(prompt, prompt, prompt, field="inputTokens"),
        TokenLengths(answer, answer, answer, field="outputTokens"),
        5.4,
    )
    found = latency(h100_fp8(1), alike, 0.5, method)

    assert 0 < found.ttft_p95 < 10
    assert math.isfinite(found.tpot_p95)


@pytest.mark.parametrize("method", METHODS)
def test_answers_of_one_token_wait_for_no_further_one(method: Method) -> None:
    single = TrafficProfile(TokenLengths(1155, 4083, 14050), TokenLengths(1, 1, 1), 5.4)
    busy = latency(h100_fp8(2), single, 3, method)

    assert busy.ttft_p95 > 0
    assert busy.tpot_p95 == 0


def test_the_screen_of_a_single_server_is_the_textbook_queue() -> None:
    """One slot and constant steps: M/G/1 in rate and utilisation, so P(busy) is the load whatever the lengths."""
    engine = constant(0.01, batch=1)
    most = saturation(engine, STEADY)

    assert most == pytest.approx(1 / (211 * 0.01), rel=0.01)
    assert latency(engine, STEADY, 0.6 * most).in_flight == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_with_constant_steps_and_room_for_all_the_number_in_flight_is_littles_law(method: Method) -> None:
    found = latency(constant(0.01, batch=512), STEADY, 20.0, method)

    assert found.in_flight == pytest.approx(20 * 211 * 0.01, rel=0.05)
    assert found.tpot == pytest.approx((0.01, 0.01, 0.01), rel=1e-3)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_the_screen_agrees_with_the_simulation_under_poisson_arrivals(name: str, share: float) -> None:
    load = share * saturation(ENGINES[name], STEADY)
    screened, simulated = (latency(ENGINES[name], STEADY, load, method) for method in METHODS)

    assert screened.tpot_p95 == pytest.approx(simulated.tpot_p95, rel=0.1)
    assert screened.ttft_p95 == pytest.approx(simulated.ttft_p95, rel=0.2)
    assert screened.in_flight == pytest.approx(simulated.in_flight, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_overload_has_no_finite_latency(method: Method) -> None:
    found = latency(h100_fp8(2), CONVERSATION, 20.0, method)

    assert not found.stable
    assert found.ttft_p95 == found.tpot_p95 == math.inf
    assert found.utilisation > 1


@pytest.mark.parametrize("method", METHODS)
def test_a_request_longer_than_the_kv_cache_is_never_served(method: Method) -> None:
    engine = replace(h100_fp8(1), kv_tokens=15_000)
    found = capacity(engine, CONVERSATION, OBJECTIVES, method=method)

    assert not latency(engine, CONVERSATION, 0.1, method).stable
    assert (found.load, found.limited_by) == (0, "kvRoom")
    assert saturation(engine, CONVERSATION) == 0


@pytest.mark.parametrize("load", [math.nan, -1.0, math.inf])
def test_a_load_that_is_no_load_is_refused(load: float) -> None:
    with pytest.raises(ValueError, match=r"load: .* must be a finite number of at least 0"):
        latency(h100_fp8(1), CONVERSATION, load)


@pytest.mark.parametrize("objective", [math.nan, 0.0, -1.0])
def test_an_objective_that_cannot_be_is_refused_by_name(objective: float) -> None:
    with pytest.raises(ValueError, match="time_per_output_token"):
        Objectives(1.0, objective)


@pytest.mark.parametrize("method", METHODS)
def test_capacity_is_where_the_objective_is_just_met(method: Method) -> None:
    engine = h100_fp8(2)
    found = capacity(engine, CONVERSATION, OBJECTIVES, method=method)

    assert found.limited_by == "timePerOutputToken"
    assert found.latency.meets(OBJECTIVES)
    assert found.latency == latency(engine, CONVERSATION, found.load, method)
    assert not latency(engine, CONVERSATION, 1.04 * found.load, method).meets(OBJECTIVES)


@pytest.mark.parametrize("above_idle", [1.02, 1.06, 1.15, 1.4])
def test_capacity_is_found_where_latency_hardly_depends_on_load(above_idle: float) -> None:
    engine, most = h100_fp8(8), saturation(h100_fp8(8), CONVERSATION)
    idle = latency(engine, CONVERSATION, 0.01 * most, "simulate").ttft.p95
    wanted = Objectives(time_to_first_token=above_idle * idle)
    found = capacity(engine, CONVERSATION, wanted)

    assert found.load > 0
    assert found.latency.meets(wanted)
    assert not latency(engine, CONVERSATION, 1.1 * found.load, "simulate").meets(wanted)


def test_without_objectives_throughput_is_the_limit() -> None:
    found = capacity(h100_fp8(2), CONVERSATION, Objectives(), method="screen")

    assert found.limited_by == "throughput"
    assert found.load == pytest.approx(saturation(h100_fp8(2), CONVERSATION), rel=0.05)


def test_an_objective_that_hardly_any_load_misses_leaves_no_capacity() -> None:
    found = capacity(h100_fp8(1), CONVERSATION, Objectives(time_per_output_token=0.02))

    assert (found.load, found.requests_per_second, found.limited_by) == (0, 0, "timePerOutputToken")
    assert found.latency.tpot_p95 > 0.02


@pytest.mark.parametrize("engine", [h100_fp8(2), a100_40_bf16(4)], ids=["H100", "A100"])
def test_a_tighter_objective_or_a_harder_profile_never_gives_more_capacity(engine: EngineModel) -> None:
    def load(profile: TrafficProfile = CONVERSATION, **limits: float) -> float:
        asked = {"time_to_first_token": 1.5, "time_per_output_token": 0.06} | limits
        return capacity(engine, profile, Objectives(**asked), method="screen").load

    usual = load()
    assert load(time_per_output_token=0.045) <= usual <= load(time_per_output_token=0.09)
    assert load(time_to_first_token=1.0) <= usual <= load(time_to_first_token=4.0)
    assert load(replace(CONVERSATION, peak_to_mean=1.8)) < usual < load(STEADY)
    assert load(replace(CONVERSATION, output_tokens=TokenLengths(211, 451, 4096))) <= usual
    assert load(replace(CONVERSATION, cached_input_fraction=0.5)) > usual


def test_capacity_is_remembered_for_any_amount_of_the_same_traffic() -> None:
    cache: dict[object, Capacity] = {}
    little, much = (
        capacity(h100_fp8(2), replace(CONVERSATION, requests_per_second=rate), OBJECTIVES, cache, "screen")
        for rate in (0.5, 50.0)
    )

    assert little is much
    assert len(cache) == 1
    assert capacity(h100_fp8(1), CONVERSATION, OBJECTIVES, cache, "screen") is not much


@pytest.mark.parametrize("method", METHODS)
def test_closed_clients_wait_for_room_when_there_are_more_than_fit(method: Method) -> None:
    engine = h100_fp8(1)
    few, many = (latency(engine, CLIENTS, clients, method) for clients in (8, 64))

    assert few.in_flight == pytest.approx(8, rel=0.05)
    assert few.requests_per_second < many.requests_per_second <= 1.1 * saturation(engine, CLIENTS)
    assert many.in_flight < 30
    assert many.ttft_p95 > 5 * few.ttft_p95
    assert many.stable


def test_screen_and_simulation_agree_for_closed_clients() -> None:
    screened, simulated = (latency(h100_fp8(2), CLIENTS, 32, method) for method in METHODS)

    assert screened.requests_per_second == pytest.approx(simulated.requests_per_second, rel=0.06)
    assert screened.tpot.p50 == pytest.approx(simulated.tpot.p50, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_capacity_of_closed_traffic_is_a_whole_number_of_clients(method: Method) -> None:
    engine = h100_fp8(2)
    found = capacity(engine, CLIENTS, OBJECTIVES, method=method)

    assert found.load == int(found.load) >= 1
    assert found.latency.meets(OBJECTIVES)
    assert not latency(engine, CLIENTS, found.load + 1, method).meets(OBJECTIVES)


def test_the_simulation_gives_the_same_answer_twice() -> None:
    once, again = (latency(h100_fp8(2), CONVERSATION, 3.0, "simulate") for _ in range(2))

    assert once == again


@pytest.mark.parametrize(("longest", "chunks"), [(14050, 1), (120_000, 4), (2_000_000, 200)])
def test_prompts_of_many_chunks_are_simulated_with_fewer_requests(longest: int, chunks: int) -> None:
    prompts = TokenLengths(8192 * chunks, 8192 * chunks * 1.2, longest, field="inputTokens")
    profile = replace(STEADY, input_tokens=prompts)

    count = open_count(constant(0.001), profile, saturation=1e6)

    assert count == {1: 96_000, 4: 96_000, 200: 12_000}[chunks]


def test_quick_copies_are_simulated_longer_but_none_without_end() -> None:
    counts = [open_count(constant(0.001), STEADY, saturation) for saturation in (0.01, 20.0, 1e9)]

    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (12_000, 96_000)
