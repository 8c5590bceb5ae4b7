"""What one model copy does at a load, measured on the plant of the simulated engine (`berth.engine.engines.plant`).

The plant is run once per copy and mix of lengths over a grid of loads; every slowness follows from that: an engine
whose steps take f times as long serves a load like one that is as fast serves f times the load, with times f as long.
Between loads everything is interpolated. Prompts of a minute that are longer than usual count as more load, by the
work they make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np

from berth.engine.engines.base import LoadError
from berth.engine.engines.plant import Job, Plant, PlantConfig, Refused
from berth.engine.engines.simulated import plant_config
from berth.simulation.traffic import Floats, Recorded

OVERHEAD: Final = 0.015
"""Seconds per request outside the engine."""
_REQUESTS: Final = 1200
"""Of a run near saturation; a quiet copy is known after fewer."""
_WARM: Final = 0.15
"""Share of a run's requests, the first ones, which find it too empty."""
_SHARES: Final = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.76, 0.83, 0.89, 0.94)
"""Loads against saturation."""
_QUANTILES: Final = np.linspace(0.0, 1.0, 201)
STEP_SUMS: Final = 5
"""Per second: iterations, and over them seconds, requests decoding, context, prompt tokens."""


class CannotRun(ValueError):
    """The copy does not fit, or its GPU lacks the precision; the engine would say so when it loads."""


@dataclass(frozen=True)
class Response:
    """Arrays over loads (requests per second of an engine with factor 1), ascending."""

    loads: Floats
    first: Floats
    """Quantiles of the time to the first token, (loads, quantiles), without the overhead outside the engine."""
    token: Floats
    """Quantiles of the time per output token."""
    in_flight: Floats
    sums: Floats
    """(loads, STEP_SUMS) per second."""
    saturation: float
    prompt_share: float
    """Share of the work of a request that its prompt makes."""


@dataclass(frozen=True)
class Felt:
    """One load grid of an engine of some slowness against objectives; everything per real second."""

    loads: Floats
    missed_first: Floats
    """Share of requests whose first token comes too late."""
    missed_token: Floats
    first_p95: Floats
    token_p95: Floats
    in_flight: Floats
    sums: Floats
    saturation: float
    curves: Floats
    """(loads, 3 + STEP_SUMS): missed first, missed token, in flight, sums."""

    def at(self, loads: Floats) -> Floats:
        """The curves at other loads, in between by straight lines; beyond the grid as at its ends."""
        after = np.clip(np.searchsorted(self.loads, loads), 1, len(self.loads) - 1)
        low, high = self.loads[after - 1], self.loads[after]
        share = np.clip((loads - low) / (high - low), 0.0, 1.0)[:, None]
        found: Floats = self.curves[after - 1] * (1 - share) + self.curves[after] * share
        return found


def felt(response: Response, slowness: float, first: float, token: float) -> Felt:
    """Objectives in seconds, infinite where there is none."""
    sums = response.sums / slowness  # per real second everything happens as much more slowly ...
    sums[:, 1] *= slowness  # ... but the seconds of a step are real ones
    late = np.array([_above(row, (first - OVERHEAD) / slowness) for row in response.first])
    slow = np.array([_above(row, token / slowness) for row in response.token])
    at_95 = round(0.95 * (len(_QUANTILES) - 1))
    return Felt(
        loads=response.loads / slowness,
        missed_first=late,
        missed_token=slow,
        first_p95=response.first[:, at_95] * slowness + OVERHEAD,
        token_p95=response.token[:, at_95] * slowness,
        in_flight=response.in_flight,
        sums=sums,
        saturation=response.saturation / slowness,
        curves=np.column_stack([late, slow, response.in_flight, sums]),
    )


def _above(quantiles: Floats, bound: float) -> float:
    """Share of values above `bound`."""
    if bound == math.inf:
        return 0.0
    return float(1 - np.interp(bound, quantiles, _QUANTILES, left=0.0, right=1.0))


class Responses:
    """Measured responses, by what they depend on; one plant run each."""

    def __init__(self, recorded: Recorded, max_requested: int, seed: int = 0) -> None:
        self._recorded = recorded
        self._max_requested = max_requested
        self._seed = seed
        self._known: dict[Any, Response | CannotRun] = {}

    def of(self, options: dict[str, Any], prompt_scale: float = 1.0) -> Response:
        """Of the copy that `options` describe, as the launcher gives them to the simulated engine. Raises CannotRun."""
        key = (tuple(sorted(options.items())), round(prompt_scale, 3))
        if key not in self._known:
            try:
                self._known[key] = self._measure(options, prompt_scale)
            except (LoadError, Refused) as error:
                self._known[key] = CannotRun(str(error))
        found = self._known[key]
        if isinstance(found, CannotRun):
            raise found
        return found

    def _measure(self, options: dict[str, Any], prompt_scale: float) -> Response:
        config, _, _ = plant_config({**options, "noise": 0.0}, pool="")
        random = Random(self._seed)  # noqa: S311  (a simulation)
        picks = [random.randrange(len(self._recorded.prompt)) for _ in range(_REQUESTS)]
        longest = config.kv_tokens - self._max_requested - config.block_tokens
        if longest < 1:
            raise LoadError(f"KV room of {config.kv_tokens} tokens is less than one answer of {self._max_requested}")
        jobs = []
        for number, pick in enumerate(picks):
            prompt = max(1, min(round(int(self._recorded.prompt[pick]) * prompt_scale), longest))
            answer = min(int(self._recorded.answer[pick]), self._max_requested)
            jobs.append(Job(number, prompt, answer, self._max_requested))
        everything = _run(config, jobs, None, self._seed)
        saturation = everything.throughput
        runs = [
            _run(config, jobs[: round(_REQUESTS * min(1.0, 0.2 + share))], share * saturation, self._seed)
            for share in _SHARES
        ]
        alone = sum(config.times.prefill_seconds(0, job.input_tokens) for job in jobs)
        busy = everything.seconds
        return Response(
            loads=np.array([share * saturation for share in _SHARES]),
            first=np.array([np.quantile(run.first, _QUANTILES) for run in runs]),
            token=np.array([np.quantile(run.token, _QUANTILES) for run in runs]),
            in_flight=np.array([run.in_flight for run in runs]),
            sums=np.array([run.sums for run in runs]),
            saturation=saturation,
            prompt_share=min(alone / busy, 0.95),
        )


@dataclass(frozen=True)
class _Run:
    first: Floats
    token: Floats
    in_flight: float
    sums: Floats
    throughput: float
    seconds: float
    """Time in engine iterations."""


def _run(config: PlantConfig, jobs: list[Job], rate: float | None, seed: int) -> _Run:
    """Serve `jobs` arriving by chance at `rate` per second; without a rate all wait from the beginning."""
    plant, random = Plant(config, seed), Random(seed + 1)  # noqa: S311  (a simulation)
    arrivals: dict[int, float] = {}
    at = 0.0
    for job in jobs:
        at += random.expovariate(rate) if rate else 0.0
        arrivals[job.id] = at
    firsts: dict[int, float] = {}
    lasts: dict[int, float] = {}
    clock, following = 0.0, 0
    sums = np.zeros(STEP_SUMS)
    area = 0.0
    while len(lasts) < len(jobs):
        while following < len(jobs) and arrivals[jobs[following].id] <= clock:
            plant.submit(jobs[following])
            following += 1
        step = plant.begin()
        if step is None:
            clock = arrivals[jobs[following].id]
            continue
        clock += step.seconds
        area += step.seconds * (plant.running + plant.waiting)
        sums += (1.0, step.seconds, step.decodes, step.context_tokens, step.prefill_tokens)
        outcome = plant.complete(step)
        firsts |= dict.fromkeys(outcome.first, clock)
        lasts |= dict.fromkeys(outcome.finished, clock)
    kept = jobs[round(_WARM * len(jobs)) :] if rate else jobs
    span = max(clock - (arrivals[jobs[0].id] if rate else 0.0), 1e-9)
    token = [(lasts[j.id] - firsts[j.id]) / (j.output_tokens - 1) for j in kept if j.output_tokens > 1]
    return _Run(
        first=np.array([firsts[job.id] - arrivals[job.id] for job in kept]),
        token=np.array(token or [0.0]),
        in_flight=area / span,
        sums=sums / span,
        throughput=len(jobs) / span,
        seconds=float(sums[1]),
    )
