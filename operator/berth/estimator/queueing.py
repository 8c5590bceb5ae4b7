"""Latency at p95 and capacity of one model copy for a traffic profile.

    latency(engine, profile, load, method="screen" | "simulate") -> Latency
    capacity(engine, profile, objectives, cache, method="simulate" | "screen") -> Capacity
    saturation(engine, profile) -> requests per second

`load` is what one group gets: requests per second, for closed traffic clients. Neither result depends on how many
groups there are: groups for a load are ceil(profile.load / capacity.load), with `balancing` for uneven shares.

The screen (2 ms for 16 loads) ranks candidates; the simulation (30 ms per load) judges finalists. Both are
deterministic: the simulation has one fixed seed and serves the same requests at every load and on every engine. Its
figures are upper confidence bounds: each quantile is taken one standard error higher, so that chance does not flatter
a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from berth.estimator.arrivals import closed_requests, open_requests
from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.latency import Bound, Capacity, Latency, Objectives, Quantiles, overloaded
from berth.estimator.screen import Screen
from berth.estimator.simulation import StepTable, serve
from berth.estimator.traffic import LEVELS, TrafficProfile

Method = Literal["screen", "simulate"]
Cache = MutableMapping[Hashable, Capacity]

_QUANTILES = (0.5, 0.95, 0.99)
_SEED = 20231116
_FEWEST, _MOST = 12_000, 96_000  # requests of one simulation
_MOST_CLIENTS = 12_000  # more are only a longer queue, which the screen tells as well
_LEVEL_SECONDS = 60.0  # simulated per minute level at half of saturation, within those bounds
_MOST_CHUNKS = 384_000  # of prompts in one simulation, each an iteration: bounds the work where prompts have many
_BATCHES = 64
_LOADS = 16
_PRECISION = 1.015  # ratio of a load that fails to one that holds at which the search ends
_TRIALS = 10
_FLATTEST = 0.02  # below this, latency does not depend on load as far as trials can tell
_AIM = 0.993  # p95 / objective that a trial aims at
_ALONE = 1e-6  # requests per second of a copy that serves one at a time


def latency(engine: EngineModel, profile: TrafficProfile, load: float, method: Method = "screen") -> Latency:
    """Of one copy under `load`; p95 is infinite and `stable` false where it cannot keep up.

    The screen also gives infinite quantiles to a stable load whose busy minutes alone exceed what the copy can serve.
    """
    if not 0 <= load < math.inf:
        raise ValueError(f"load: {load!r} must be a finite number of at least 0")
    if not fits(engine, profile):
        return overloaded()
    if method == "screen" or (profile.closed and load > _MOST_CLIENTS):
        return _screened(engine, profile, np.array([load]))[0]
    return _simulated(engine, profile, load)


def saturation(engine: EngineModel, profile: TrafficProfile) -> float:
    """Requests per second of a copy that is never without waiting requests; 0 if the longest fits into no KV cache."""
    return _screen(engine, profile.shape).saturation if fits(engine, profile) else 0.0


def fits(engine: EngineModel, profile: TrafficProfile) -> bool:
    """Whether the longest prompt with the largest requested answer can ever be admitted."""
    longest = profile.input_tokens.max + profile.output_tokens.max
    return math.ceil(longest / engine.block_tokens) <= engine.kv_tokens // engine.block_tokens


def capacity(
    engine: EngineModel,
    profile: TrafficProfile,
    objectives: Objectives,
    cache: Cache | None = None,
    method: Method = "simulate",
) -> Capacity:
    """Largest load of one copy that meets `objectives`, to 2 %; without objectives the largest stable one.

    `cache`, kept by the caller, remembers results by engine, shape of the profile, objectives and method. Engines are
    equal if their fields are: give `EngineModel.step` a value, such as a frozen dataclass, to share results between
    equal engines.
    """
    key = (engine, profile.shape, objectives, method)
    if cache is None:
        return _capacity(*key)
    if key not in cache:
        cache[key] = _capacity(*key)
    return cache[key]


def _capacity(engine: EngineModel, shape: TrafficProfile, objectives: Objectives, method: Method) -> Capacity:
    if not fits(engine, shape):
        return Capacity(0.0, 0.0, "kvRoom", overloaded())
    most = saturation(engine, shape)
    if shape.closed:
        patience = objectives.time_to_first_token
        largest = float(engine.max_batch_size + (math.ceil(most * patience) if patience < math.inf else 0))
        smallest = 1.0
    else:
        largest, smallest = 0.97 * most, 0.01 * most
    bracket = _Bracket(smallest, largest, shape.closed)
    _sweep(engine, shape, objectives, bracket)
    found = None
    if method == "simulate":
        start = bracket.holds or smallest
        bracket = _Bracket(smallest, largest, shape.closed)
        found = _search(engine, shape, objectives, bracket, start)
    found = found or latency(engine, shape, bracket.holds or smallest, method)
    return Capacity(bracket.holds, found.requests_per_second if bracket.holds else 0.0, bracket.limited_by, found)


@dataclass
class _Bracket:
    """The largest load known to hold and the smallest known to fail, each with its p95 / objective."""

    smallest: float
    largest: float
    whole: bool
    holds: float = 0.0
    fails: float = math.inf
    slack: float = 0.0
    excess: float = math.inf
    limited_by: Bound = "throughput"
    steepness: float = 0.0
    """By how much p95 rises with load between the last two trials, both in logarithms; 0 before there are two."""
    last: tuple[float, float] = (0.0, 0.0)

    def record(self, load: float, excess: float, bound: Bound) -> bool:
        """Whether `load` holds."""
        if excess <= 1:
            self.holds, self.slack = load, excess
        else:
            self.fails, self.excess = load, excess
        before, self.last = self.last, (load, excess)
        if 0 < before[0] != load and min(before[1], excess) > 0 and max(before[1], excess) < math.inf:
            rise = math.log(excess / before[1]) / math.log(load / before[0])
            self.steepness = max(rise, _FLATTEST)
        self.limited_by = "throughput" if self.holds >= self.largest else bound
        return excess <= 1

    @property
    def settled(self) -> bool:
        """Nothing worth trying is left."""
        if self.holds >= self.largest or self.fails <= self.smallest:
            return True
        if self.whole:
            return self.fails - self.holds <= 1
        near = self.holds > 0 and self.slack > _PRECISION ** -(self.steepness or 1.0)
        return near or self.fails <= self.holds * _PRECISION

    def next(self) -> float:
        """The load at which p95 is expected just below its objective, inside what is not known yet."""
        if self.holds and self.fails < math.inf:
            width = math.log(self.fails / self.holds)
            rise = math.log(min(self.excess, 2.0) / max(self.slack, 0.1))
            load = self.holds * math.exp(width * min(max(math.log(_AIM / max(self.slack, 0.1)) / rise, 0.1), 0.9))
        elif self.holds:
            load = self.holds * min(max(self._step(self.slack), _PRECISION), 4 if self.steepness else 1.4)
        else:
            load = self.fails * max(self._step(self.excess), 0.25 if self.steepness else 0.7)
        load = min(max(load, self.smallest), self.largest)
        return min(max(float(round(load)), self.holds + 1), max(self.fails - 1, 1)) if self.whole else load

    def _step(self, excess: float) -> float:
        """Factor on the load that brings `excess` to what is aimed at: where latency hardly depends on load, a large
        one.
        """
        logarithm = math.log(_AIM / min(max(excess, 1e-9), 1e9)) / (self.steepness or 2.0)
        return math.exp(min(max(logarithm, -10.0), 10.0))


def _sweep(engine: EngineModel, shape: TrafficProfile, objectives: Objectives, bracket: _Bracket) -> None:
    """By the screen: many loads at once, then as many between the two where the objectives begin to fail."""
    for _ in range(2):
        loads = np.geomspace(bracket.holds or bracket.smallest, min(bracket.fails, bracket.largest), _LOADS)
        loads = np.unique(np.rint(loads)) if bracket.whole else loads
        found = _screen(engine, shape).at(loads, (0.95,))
        for load, first, token in zip(loads, found.ttft[:, 0], found.tpot[:, 0], strict=True):
            if not bracket.record(float(load), *objectives.excess(float(first), float(token))):
                break
        else:
            return


def _search(
    engine: EngineModel, shape: TrafficProfile, objectives: Objectives, bracket: _Bracket, load: float
) -> Latency | None:
    """By simulation, starting from `load`; the latency at the largest load that holds."""
    best = None
    for trial in range(_TRIALS):
        if trial == _TRIALS - 1 and not bracket.holds:
            load = bracket.smallest
        found = latency(engine, shape, load, "simulate")
        if bracket.record(load, *objectives.excess(found.ttft.p95, found.tpot.p95)):
            best = found
        if bracket.settled:
            break
        load = bracket.next()
    return best


@lru_cache(maxsize=256)
def _screen(engine: EngineModel, shape: TrafficProfile) -> Screen:
    return Screen(engine, shape)


@lru_cache(maxsize=8)
def _table(engine: EngineModel, mean_context: float) -> StepTable:
    return StepTable(engine, mean_context)


def _screened(engine: EngineModel, profile: TrafficProfile, loads: Floats) -> list[Latency]:
    screen = _screen(engine, profile.shape)
    found = screen.at(loads, _QUANTILES)
    results = []
    for place, load in enumerate(loads.tolist()):
        throughput = float(found.throughput[place])
        utilisation = (throughput if profile.closed else load) / screen.saturation
        if utilisation >= 1 and not profile.closed:
            results.append(overloaded(utilisation))
            continue
        results.append(
            Latency(
                Quantiles(*found.ttft[place].tolist()),
                Quantiles(*found.tpot[place].tolist()),
                in_flight=float(found.in_flight[place]),
                utilisation=utilisation,
                requests_per_second=throughput,
                stable=True,
            )
        )
    return results


def _simulated(engine: EngineModel, profile: TrafficProfile, load: float) -> Latency:
    most = saturation(engine, profile)
    if profile.closed:
        clients = max(round(load), 1)
        requests = closed_requests(profile.shape, clients, _FEWEST + 3 * clients, _SEED)
        measured = slice(2 * clients, -clients)  # after all have started at once, before the last find others gone
    elif load < most:
        requests = open_requests(profile.shape, max(load, _ALONE), open_count(engine, profile, most), _SEED)
        measured = slice(None)
    else:
        return overloaded(load / most)
    table = _table(engine, profile.input_tokens.mean + profile.output_tokens.mean / 2)
    served = serve(engine, requests, table)
    arrival, admitted, first, last = (
        times[measured] for times in (served.arrival, served.admitted, served.first, served.last)
    )
    later_tokens = requests.output[measured] - 1
    several = later_tokens > 0
    ttft = first - arrival + engine.request_overhead
    tpot = (last - first)[several] / later_tokens[several]
    throughput = len(first) / float(np.ptp(first)) if profile.closed else load
    return Latency(
        _upper_quantiles(ttft),
        _upper_quantiles(tpot),
        in_flight=throughput * float((last - admitted).mean()),
        utilisation=throughput / most,
        requests_per_second=throughput,
        stable=True,
    )


def open_count(engine: EngineModel, profile: TrafficProfile, saturation: float) -> int:
    """Requests of one simulation of open traffic: enough to see each minute level, within the bounds on work."""
    chunks = max(profile.input_tokens.mean * (1 - profile.cached_input_fraction) / engine.max_num_tokens, 1.0)
    count = min(LEVELS * _LEVEL_SECONDS * saturation / 2, _MOST, _MOST_CHUNKS / chunks)
    return max(_FEWEST, round(count))


def _upper_quantiles(values: Floats) -> Quantiles:
    """Each of `_QUANTILES` of `values` in order of time, at a share higher by one standard error.

    The error of the share of values beyond a quantile comes from successive differences of batch means: queues
    correlate neighbours, and minute levels drift, which must not count as chance.
    """
    if not len(values):
        return Quantiles(0.0, 0.0, 0.0)  # nobody has a second token
    upper = []
    for share in _QUANTILES:
        beyond = values > np.quantile(values, share)
        means = np.array([batch.mean() for batch in np.array_split(beyond, min(_BATCHES, len(values)))])
        error = math.sqrt(float((np.diff(means) ** 2).sum()) / 2 / max(len(means) - 1, 1) / len(means))
        upper.append(float(np.quantile(values, min(share + error, (1 + share) / 2))))
    return Quantiles(*upper)
