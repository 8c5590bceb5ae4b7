"""Decisions against engines that their models do not know: causes, false moves, cost and attainment, fleets.

    python -m benchmarks.bench_decisions [--worlds N] [--days D] [--fleet N]

Run from the repository root. Engines are the simulated engine's plant with step times of published measurements and an
error of up to 25 % per pool that nothing tells the decisions about; requests are a recorded hour, again and again,
under a day's swing. Decisions are the operator's (`berth.core.steering`). Costs are compared with the best placement
that never changes and with an oracle that changes every hour for nothing; both know the plants and the future.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.bench_planner import MAX_REQUESTED, MODELS, PRICES, asked, questions
from berth.core.calibration.diagnose import Cause, diagnose
from berth.core.calibration.learn import Calibration
from berth.core.placement.evaluate import Memory
from berth.simulation.baseline import best_fixed, oracle
from berth.simulation.response import Responses
from berth.simulation.run import Course, Simulation
from berth.simulation.traffic import Recorded, Swing, minutes_of
from berth.simulation.world import Event, hidden_factors
from tests.support.replay import read_trace
from tests.unit.calibration.test_plants import CAUSES, drawn
from tests.unit.simulation.cases import pool

DAY = 1440
ERROR = 0.25
SWING = 1.3
EQUAL = ("H100-SXM-80", "2.99", 4)
"""GPU, price and number of pools that do not differ in what is known of them."""
MEMORY = Memory()
RESPONSES: dict[int, Responses] = {}


def causes(plants: int) -> None:
    """What is named when one thing goes wrong, and what calibration does to the prediction at another load."""
    right: Counter[Cause] = Counter()
    asked_for: Counter[Cause] = Counter()
    before, after = [], []
    for number in range(plants):
        plant, usual = drawn(number)
        cause = CAUSES[number % len(CAUSES)]
        rate = plant.worse if cause == "Overload" else 1.0
        prompt = plant.worse if cause == "LongerPrompts" else 1.0
        slow = plant.worse if cause == "SlowPool" else 1.0
        first = plant.worse if cause == "SlowGroup" else slow
        groups = {f"g{each}": plant.level(first if each == 1 else slow, rate, prompt, seed=each) for each in (1, 2, 3)}
        found = diagnose(groups, "p", usual, math.log(rate), math.log(prompt))
        asked_for[cause] += 1
        right[cause] += found.cause == cause
        belief = Calibration().learned(plant.place, usual, 0.0).belief(plant.place, 0.0)
        later = plant.off(1.6)
        before.append(abs(math.expm1(later)))
        after.append(abs(math.expm1(later - belief.mean)))
    print(f"{plants} random engines, one thing wrong by 1.35 to 1.6: right cause named")
    print("  " + ", ".join(f"{cause} {right[cause]} of {asked_for[cause]}" for cause in CAUSES))
    print(f"error of the step time at 1.6 times the load: median {statistics.median(before):.1%} as predicted, "
          f"{statistics.median(after):.1%} after an hour; worst {max(before):.0%} and {max(after):.0%}")  # fmt: skip


def simulated(
    pools: Mapping[str, tuple[str, str]],
    hour: Recorded,
    days: int,
    load: float,
    hidden: Mapping[str, float],
    events: Sequence[Event] = (),
    seed: int = 0,
    *,
    first: float = 1.5,
    token: float = 0.05,
) -> tuple[Simulation, Course]:
    found = {name: pool(name, gpu, price, nodes=8) for name, (gpu, price) in pools.items()}
    simulation = Simulation(found, hour, hidden=hidden, events=events, seed=seed, memory=MEMORY, responses=RESPONSES)
    minutes = minutes_of(hour, days * DAY, load, Swing(SWING))
    # Without an availability target: baselines have none, and spare groups are not what is compared.
    wanted = replace(asked(MODELS[0], load, first, token), availability=None)
    course = simulation.add("chat", wanted, minutes)
    simulation.run(days * DAY)
    return simulation, course


def false_moves(hour: Recorded, worlds: int, days: int) -> None:
    """Pools that are the same, in truth too, though not as the models have it."""
    gpu, price, count = EQUAL
    pools = {f"p{number}": (gpu, price) for number in range(count)}
    moves, scalings = [], []
    for seed in range(worlds):
        factor = random.Random(seed).uniform(1 - ERROR, 1 + ERROR)
        _, course = simulated(pools, hour, days, 5.4, dict.fromkeys(pools, factor), seed=seed)
        moves.append(len(course.operator.tally.moves) * 30 / days)
        scalings.append(len(course.operator.tally.scalings) / days)
    print(f"\n{worlds} worlds of {count} equal pools, {days} days: false moves in 30 days at most {max(moves):.1f}, "
          f"on average {statistics.mean(moves):.2f}; changes of the number of groups a day "
          f"{statistics.mean(scalings):.2f}")  # fmt: skip


def regret(hour: Recorded, worlds: int, days: int) -> None:
    """Four kinds of pools with errors of their own, random load and objectives."""
    print(f"\n{worlds} worlds of four kinds of GPUs, each up to {ERROR:.0%} off, {days} days")
    print(f"{'':4}{'load':>6} {'TTFT':>7} {'TPOT':>7} {'worst h':>8} {'moves':>6} {'scaled':>7} "
          f"{'cost/fixed':>11} {'cost/oracle':>12}")  # fmt: skip
    fixed, best, attained = [], [], []
    for seed, wanted in enumerate(questions(2 * worlds)):
        if seed % 2:  # the other model of `questions`
            continue
        load, bounds = wanted.traffic.load, wanted.objectives
        simulation, course = simulated(
            PRICES, hour, days, load, hidden_factors(PRICES, ERROR, seed), seed=seed,
            first=bounds.time_to_first_token, token=bounds.time_per_output_token,
        )  # fmt: skip
        if course.operator.allocation is None:
            print(f"{seed:4} {load:5.1f}  nothing meets the objectives")
            continue
        responses = RESPONSES[MAX_REQUESTED]
        ratios = []
        for way in (best_fixed, oracle):
            found = way(course.asked, simulation.world, course.minutes, responses)
            ratios.append(course.operator.tally.cost / found.cost if found and found.cost else math.nan)
        fixed.append(ratios[0])
        best.append(ratios[1])
        attained.append(min(course.attained))
        tally = course.operator.tally
        print(f"{seed:4} {load:5.1f} {course.attained[0]:8.2%}{course.attained[1]:8.2%} {course.worst_hour:8.1%} "
              f"{len(tally.moves):6} {len(tally.scalings):7} {ratios[0]:11.2f} {ratios[1]:12.2f}")  # fmt: skip
    print(f"objectives met over the whole time in {sum(each >= 0.95 for each in attained)} of {len(attained)}; cost "
          f"against the best fixed placement median {statistics.median(fixed):.2f}, worst {max(fixed):.2f}; "
          f"against the oracle median {statistics.median(best):.2f}")  # fmt: skip


def slow_pool(hour: Recorded, worlds: int) -> None:
    """A pool becomes slow: how long until it is left, and what users felt meanwhile."""
    gpu, price, _ = EQUAL
    pools = {"p0": (gpu, price), "p1": (gpu, price)}
    left, worst, moves = [], [], []
    for seed in range(worlds):
        events = [Event("slow", 2 * DAY, pool="p0", value=random.Random(seed).uniform(1.5, 2.5))]
        _, course = simulated(pools, hour, 4, 5.4, {}, events, seed=seed)
        found = [at for at, _, _ in course.operator.tally.moves if at > 2 * DAY]
        moves.append(len(course.operator.tally.moves))
        worst.append(course.worst_hour)
        left.append((found[0] - 2 * DAY) / 60 if found else math.inf)
    known = [each for each in left if each < math.inf]
    print(f"\na pool becomes 1.5 to 2.5 times slower, {worlds} worlds: left in {len(known)}, after "
          f"{statistics.median(known) if known else math.nan:.1f} h (median); moves at most {max(moves)}; "
          f"worst hour {min(worst):.1%} within the objectives")  # fmt: skip


def fleet(hour: Recorded, count: int) -> None:
    """How long a day of many deployments takes."""
    found = {name: pool(name, gpu, price, nodes=count) for name, (gpu, price) in PRICES.items()}
    simulation = Simulation(found, hour, hidden=hidden_factors(PRICES, ERROR, 1), memory=MEMORY, responses=RESPONSES)
    rng = random.Random(1)
    start = time.process_time()
    for number in range(count):
        load = 5.4 * 4 ** rng.uniform(-1, 1)
        minutes = minutes_of(hour, DAY, load, Swing(SWING, rng.uniform(0, 24)))
        simulation.add(f"chat-{number}", asked(MODELS[0], load, 1.5, 0.05), minutes)
    simulation.run(DAY, sampled=0)
    seconds = time.process_time() - start
    met = sum(min(course.attained) >= 0.95 for course in simulation.courses)
    tallies = [course.operator.tally for course in simulation.courses]
    moves, changes = (
        sum(len(found) for found in each)
        for each in zip(*((tally.moves, tally.scalings) for tally in tallies), strict=True)
    )
    print(f"\n{count} deployments x 24 h: {seconds:.0f} s of one core; {met} met their objectives, "
          f"{moves} moves, {changes} changes of the number of groups")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plants", type=int, default=50, help="random engines for the causes")
    parser.add_argument("--worlds", type=int, default=3, help="random worlds of each kind (about a minute each)")
    parser.add_argument("--days", type=int, default=10, help="days of each world")
    parser.add_argument("--fleet", type=int, default=50, help="deployments of the fleet")
    options = parser.parse_args(arguments)
    trace = read_trace()
    hour = Recorded(trace.seconds, trace.prompt, trace.output)
    causes(options.plants)
    false_moves(hour, options.worlds, options.days)
    slow_pool(hour, options.worlds)
    regret(hour, options.worlds, options.days)
    fleet(hour, options.fleet)


if __name__ == "__main__":
    main()
