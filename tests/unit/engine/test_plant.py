"""Laws of the plant: nobody is forgotten, room is never overbooked, time adds up."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.engine.engines.plant import Job, Plant, PlantConfig, Refused
from berth.engine.engines.step_times import StepTimes

# 10 ms a step, 1 us per token of context, 0.1 ms per prompt token.
TIMES = StepTimes(decode=((1, 0.01), (64, 0.02)), prefill=((0.0, 0.0), (1000, 0.1)), context=1e-6)


def plant(**changes: Any) -> Plant:
    seed = changes.pop("seed", 0)
    return Plant(PlantConfig(**{"times": TIMES, "kv_tokens": 3200, "noise": 0.0, **changes}), seed)


def run(plant: Plant, jobs: list[Job]) -> tuple[dict[int, list[float]], float]:
    """All jobs submitted at once; token times by job, and the end."""
    clock = 0.0
    tokens: dict[int, list[float]] = {job.id: [] for job in jobs}
    for job in jobs:
        plant.submit(job)
    while step := plant.begin():
        receivers = tuple(plant.decoding)
        clock += step.seconds
        outcome = plant.complete(step)
        for number in (*receivers, *outcome.first):
            tokens[number].append(clock)
    return tokens, clock


jobs_strategy = st.lists(
    st.tuples(st.integers(1, 900), st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=25
).map(lambda lengths: [Job(i, a, b, b + extra) for i, (a, b, extra) in enumerate(lengths)])


@given(jobs_strategy, st.integers(1, 8), st.sampled_from([64, 300, 8192]))
@settings(max_examples=60)
def test_every_job_gets_exactly_its_tokens_in_order(jobs: list[Job], batch: int, most: int) -> None:
    machine = plant(max_batch_size=batch, max_num_tokens=most)
    tokens, _ = run(machine, jobs)
    assert {number: len(times) for number, times in tokens.items()} == {job.id: job.output_tokens for job in jobs}
    firsts = [tokens[job.id][0] for job in jobs]
    assert firsts == sorted(firsts), "first come first served"
    assert (machine.waiting, machine.running, machine.kv_utilization) == (0, 0, 0.0)


@given(jobs_strategy, st.data())
@settings(max_examples=60)
def test_requested_maxima_never_overbook_the_room_and_cancelling_gives_it_back(jobs: list[Job], data: Any) -> None:
    machine = plant(kv_tokens=1920, max_batch_size=100)
    accepted = {}
    for job in jobs:
        if -(-(job.input_tokens + job.max_output_tokens) // 32) > 60:
            with pytest.raises(Refused, match="exceed the KV cache of 1920 tokens: shorten"):
                machine.submit(job)
        else:
            machine.submit(job)
            accepted[job.id] = job
    live: set[int] = set()
    while step := machine.begin():
        live |= set(step.admitted)
        reserved = sum(-(-(accepted[n].input_tokens + accepted[n].max_output_tokens) // 32) for n in live)
        assert reserved <= 60
        victim = data.draw(st.sampled_from(sorted(accepted)))
        if data.draw(st.booleans()):
            machine.cancel(victim)
            live.discard(victim)
        live -= set(machine.complete(step).finished)
    assert machine.waiting == 0
    assert machine.kv_utilization == 0.0


def test_a_job_alone_takes_what_the_table_says() -> None:
    tokens, end = run(plant(), [Job(0, 1000, 3, 3)])
    assert tokens[0][0] == pytest.approx(0.01 + 0.1)
    assert [b - a for a, b in pairwise(tokens[0])] == pytest.approx([0.01 + 1001e-6, 0.01 + 1002e-6])
    assert end == tokens[0][-1]


def test_cached_prompt_tokens_cost_room_but_no_time() -> None:
    tokens, _ = run(plant(), [Job(0, 1000, 1, 1, cached_tokens=900)])
    assert tokens[0][0] == pytest.approx(0.01 + 0.01)


def test_long_prompts_are_cut_and_later_parts_cost_what_the_whole_would() -> None:
    whole, _ = run(plant(), [Job(0, 1000, 1, 1)])
    cut, _ = run(plant(max_num_tokens=250), [Job(0, 1000, 1, 1)])
    assert cut[0][0] == pytest.approx(whole[0][0] + 3 * 0.01)  # four steps instead of one


def test_waits_for_room_that_the_requested_maximum_holds() -> None:
    short, _ = run(plant(kv_tokens=640), [Job(0, 300, 5, 10), Job(1, 300, 5, 10)])
    long, _ = run(plant(kv_tokens=640), [Job(0, 300, 5, 300), Job(1, 300, 5, 10)])
    assert short[1][0] == short[0][0]
    assert long[1][0] > long[0][-1]


def test_the_same_seed_gives_the_same_run_and_noise_keeps_the_mean() -> None:
    jobs = [Job(0, 10, 3000, 3000)]
    one, two, other = (run(plant(noise=0.1, seed=seed), jobs)[0][0] for seed in (1, 1, 2))
    assert one == two != other
    steps = [b - a for a, b in pairwise(one)]
    quiet = [b - a for a, b in pairwise(run(plant(), jobs)[0][0])]
    ratios = [noisy / exact for noisy, exact in zip(steps, quiet, strict=True)]
    assert statistics.mean(ratios) == pytest.approx(1.0, abs=0.01)
    assert statistics.stdev(ratios) == pytest.approx(0.1, rel=0.1)


def test_stalls_take_their_share_of_the_time() -> None:
    _, quiet = run(plant(), [Job(0, 10, 3000, 3000)])
    _, stalled = run(plant(stall_every=1.0, stall_seconds=0.5), [Job(0, 10, 3000, 3000)])
    assert stalled / quiet == pytest.approx(1.5, rel=0.25)


def test_a_hidden_factor_slows_every_step() -> None:
    _, plain = run(plant(), [Job(0, 10, 50, 50)])
    _, slow = run(plant(speed=1.2), [Job(0, 10, 50, 50)])
    assert slow == pytest.approx(1.2 * plain)


@pytest.mark.parametrize("job", [Job(0, 10, 5, 4), Job(0, 10, 0, 4), Job(0, 10, 1, 1, cached_tokens=10)])
def test_lengths_that_make_no_sense_are_errors(job: Job) -> None:
    with pytest.raises(ValueError, match="make no sense"):
        plant().submit(job)
