"""The parts of a simulation, one by one: traffic, responses of plants, pools, what is counted."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from berth.engine.engines.plant import Job, Plant, PlantConfig
from berth.engine.engines.simulated import plant_config
from berth.simulation.response import OVERHEAD, CannotRun, Response, Responses, felt
from berth.simulation.traffic import Swing, changed, minutes_of
from berth.simulation.world import Event, World, chance_failures, hidden_factors
from tests.unit.simulation.cases import DAY, hour, pool

OPTIONS = {
    "parameters_b": 8.03, "precision": "bf16", "gpu": "H100-SXM-80", "tensor_parallel": 1, "weight_gib": 15.0,
    "kv_bytes_per_token": 131072, "max_batch_size": 32, "max_num_tokens": 2048,
}  # fmt: skip


def test_minutes_repeat_the_record_at_the_load_that_is_asked_for() -> None:
    minutes = minutes_of(hour(), 3 * DAY, 12.0)
    assert len(minutes) == 3 * DAY
    assert float(minutes.rate.mean()) == pytest.approx(12.0, rel=0.01)
    assert float((minutes.prompt * minutes.rate).sum() / minutes.rate.sum()) == pytest.approx(1.0, rel=0.01)


def test_a_day_has_the_busiest_hour_that_is_asked_for() -> None:
    rate = minutes_of(hour(), DAY, 10.0, Swing(1.5, at_hour=9)).rate.reshape(24, 60).mean(axis=1)
    assert float(rate.max() / rate.mean()) == pytest.approx(1.5, rel=0.03)
    assert int(rate.argmax()) in (8, 9)


def test_a_lasting_change_begins_when_it_does() -> None:
    flat = minutes_of(hour(), DAY)
    grown = changed(flat, 600, rate=2.0, prompt=1.5)
    assert np.array_equal(grown.rate[:600], flat.rate[:600])
    assert np.allclose(grown.rate[600:], 2 * flat.rate[600:])
    assert set(grown.scale.tolist()) == {1.0, 1.5}


@pytest.fixture(scope="module")
def response() -> Response:
    return Responses(hour(), 1024).of(OPTIONS)


def test_more_load_and_slower_steps_never_help(response: Response) -> None:
    assert np.all(np.diff(response.loads) > 0)
    for bound in (1.0, 1.3):
        table = felt(response, bound, 0.5, 0.02)
        assert table.missed_token[0] <= table.missed_token[-1]
        assert table.missed_first[0] <= table.missed_first[-1]
    fast, slow = felt(response, 1.0, 0.5, 0.02), felt(response, 1.3, 0.5, 0.02)
    for load in np.linspace(0.1, 0.6, 6) * response.saturation:
        assert np.interp(load, slow.loads, slow.token_p95) >= np.interp(load, fast.loads, fast.token_p95)
        assert np.interp(load, slow.loads, slow.missed_token) >= np.interp(load, fast.loads, fast.missed_token)


def test_between_loads_everything_is_on_straight_lines_and_beyond_them_as_at_the_ends(response: Response) -> None:
    table = felt(response, 1.1, 0.5, 0.02)
    loads = np.array([0.0, *table.loads, *(0.3 * table.loads[:-1] + 0.7 * table.loads[1:]), 2 * table.saturation])
    found = table.at(loads)
    curves = [table.missed_first, table.missed_token, table.in_flight, *table.sums.T]
    assert np.allclose(found.T, [np.interp(loads, table.loads, curve) for curve in curves])


@pytest.mark.parametrize("slowness", [0.8, 1.25])
def test_a_slow_engine_is_what_the_plant_says_of_one(response: Response, slowness: float) -> None:
    """Nothing is run again for another slowness; the plant itself agrees with what follows from the law of time."""
    load = 0.5 * response.saturation
    table = felt(response, slowness, math.inf, math.inf)
    found = serve_plant(slowness, load)
    assert np.interp(load, table.loads, table.token_p95) == pytest.approx(found[1], rel=0.12)
    assert np.interp(load, table.loads, table.first_p95) == pytest.approx(found[0] + OVERHEAD, rel=0.25)
    assert np.interp(load, table.loads, table.in_flight) == pytest.approx(found[2], rel=0.12)


def serve_plant(slowness: float, rate: float) -> tuple[float, float, float]:
    """p95 of first token and of time per token, and mean in flight, of another sample of the recorded requests."""
    config, _, _ = plant_config({**OPTIONS, "noise": 0.0}, pool="")
    config = PlantConfig(
        config.times, config.kv_tokens, config.max_batch_size, config.max_num_tokens, speed=slowness, noise=0.0
    )
    plant, random, record = Plant(config), Random(99), hour()
    at, arrivals, jobs = 0.0, {}, []
    for number in range(1500):
        at += random.expovariate(rate)
        pick = random.randrange(len(record.prompt))
        answer = min(int(record.answer[pick]), 1024)
        jobs.append(Job(number, int(record.prompt[pick]), answer, 1024))
        arrivals[number] = at
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    clock, following, area = 0.0, 0, 0.0
    while len(last) < len(jobs):
        while following < len(jobs) and arrivals[following] <= clock:
            plant.submit(jobs[following])
            following += 1
        step = plant.begin()
        if step is None:
            clock = arrivals[following]
            continue
        clock += step.seconds
        area += step.seconds * (plant.running + plant.waiting)
        outcome = plant.complete(step)
        first |= dict.fromkeys(outcome.first, clock)
        last |= dict.fromkeys(outcome.finished, clock)
    waits = [first[job.id] - arrivals[job.id] for job in jobs]
    tokens = [(last[j.id] - first[j.id]) / (j.output_tokens - 1) for j in jobs if j.output_tokens > 1]
    return float(np.quantile(waits, 0.95)), float(np.quantile(tokens, 0.95)), area / clock


def test_a_copy_that_does_not_load_says_so() -> None:
    responses = Responses(hour(), 1024)
    for broken in ({"weight_gib": 141.0}, {"precision": "fp8", "gpu": "A100-SXM-80"}):
        with pytest.raises(CannotRun):
            responses.of({**OPTIONS, **broken})


def test_prices_speed_and_outages_hold_for_as_long_as_they_last() -> None:
    events = (
        Event("slow", 10, pool="a", value=1.5, lasts=10),
        Event("price", 5, pool="a", value=1.0),
        Event("pool", 30, pool="a", lasts=5),
        Event("metrics", 40, lasts=2),
    )
    world = World({"a": pool("a")}, {"a": 1.2}, events)
    seen = {}
    for minute in (0, 5, 12, 25, 32, 40, 50):
        world.advance(minute)
        seen[minute] = (round(world.slowness("a"), 2), world.price("a"), world.down("a"), world.silent("x"))
    assert seen[0] == (1.2, 2.99, False, False)
    assert seen[12] == (1.8, 1.0, False, False)
    assert seen[25] == (1.2, 1.0, False, False)
    assert seen[32][2] is True
    assert seen[40] == (1.2, 1.0, False, True)
    assert seen[50] == (1.2, 1.0, False, False)


def test_chance_is_the_same_for_the_same_seed() -> None:
    assert hidden_factors("ab", 0.25, 1) == hidden_factors("ba", 0.25, 1) != hidden_factors("ab", 0.25, 2)
    assert all(0.75 <= each <= 1.25 for each in hidden_factors("abcdefgh", 0.25, 3).values())
    failures = chance_failures(pool("a"), 8, 365 * DAY, 1)
    assert failures == chance_failures(pool("a"), 8, 365 * DAY, 1)
    assert 30 < len(failures) < 100  # 8 nodes, one failure each per 47 days
