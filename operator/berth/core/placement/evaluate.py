"""What is believed of a layout: memory, capacity and latency of one group. The planner decides on nothing else.

`Evaluation` is that belief as a protocol, so that the search can be proved against any; `Estimates` is the real one,
the performance and queueing models of `berth.estimator`. Everything it computes is remembered in a `Memory` that the
caller keeps: capacity of a group does not depend on the number of groups, so a second plan costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, Protocol, TypeVar

from berth.core.accept import backend_of
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.core.placement.supply import Supply
from berth.estimator import performance, queueing
from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.latency import Capacity, Latency
from berth.estimator.memory import Fit
from berth.estimator.performance import Factors
from berth.estimator.queueing import Method

Value = TypeVar("Value")
Slowness = Callable[[Layout], float]
"""Factor on the step times of a layout, learned from measurements."""

_FULL: Final = 1e6
"""Requests in flight that are as many as fit, whatever fits."""
_GRID: Final = 0.03
"""Factors are rounded to this ratio, so that what was computed for one is remembered for its likes."""


class Evaluation(Protocol):
    """Of one group; loads are requests per second, for closed traffic clients."""

    def fit(self, layout: Layout) -> Fit:
        """Whether it fits, and its room for KV."""

    def capacity(self, layout: Layout, method: Method) -> Capacity:
        """The largest load that meets the objectives."""

    def latency(self, layout: Layout, load: float, method: Method) -> Latency:
        """At a load."""

    def factors(self, layout: Layout, in_flight: float) -> Factors:
        """Where the time of a step goes with so many requests in service."""

    def throughput_band(self, layout: Layout) -> tuple[float, float]:
        """Low and high capacity as multiples of the expected one."""


class Remembered(MutableMapping[Hashable, Value], Generic[Value]):
    """A dictionary that forgets what was not asked for longest once it holds `most` entries."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[Hashable, Value] = {}

    def __getitem__(self, key: Hashable) -> Value:
        value = self._entries.pop(key)
        self._entries[key] = value
        return value

    def __setitem__(self, key: Hashable, value: Value) -> None:
        self._entries.pop(key, None)
        self._entries[key] = value
        while len(self._entries) > self._most:
            del self._entries[next(iter(self._entries))]

    def __delitem__(self, key: Hashable) -> None:
        del self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Hashable]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class Memory:
    """Results of earlier plans, by everything they depend on; losing it costs time only."""

    engines: Remembered[EngineModel] = field(default_factory=lambda: Remembered(512))
    fits: Remembered[Fit] = field(default_factory=lambda: Remembered(4096))
    capacities: Remembered[Capacity] = field(default_factory=lambda: Remembered(8192))
    latencies: Remembered[Latency] = field(default_factory=lambda: Remembered(8192))


class Estimates:
    """The estimator's belief for one question, `slowness` included. Not for several threads at once."""

    def __init__(
        self,
        question: Question,
        supplies: Mapping[str, Supply],
        memory: Memory,
        slowness: Slowness | None = None,
    ) -> None:
        self._question = question
        self._gpus = {name: supply.gpu for name, supply in supplies.items()}  # no nodes: estimates are kept for long
        self._memory = memory
        self._slowness = slowness
        self._copies: dict[Layout, performance.Candidate] = {}
        prompt, answer = question.traffic.input_tokens, question.traffic.output_tokens
        self._tokens_per_request = round(prompt.mean + answer.max)

    def fit(self, layout: Layout) -> Fit:
        copy = self._copy(layout)
        key = copy, self._tokens_per_request
        if key not in self._memory.fits:
            self._memory.fits[key] = copy.fit(self._tokens_per_request)
        return self._memory.fits[key]

    def capacity(self, layout: Layout, method: Method) -> Capacity:
        question = self._question
        return queueing.capacity(
            self.engine(layout), question.traffic, question.objectives, self._memory.capacities, method
        )

    def latency(self, layout: Layout, load: float, method: Method) -> Latency:
        traffic = self._question.traffic.shape
        engine = self.engine(layout)
        key = engine, traffic, load, method
        if key not in self._memory.latencies:
            self._memory.latencies[key] = queueing.latency(engine, traffic, load, method)
        return self._memory.latencies[key]

    def factors(self, layout: Layout, in_flight: float) -> Factors:
        prompt, answer = self._question.traffic.input_tokens, self._question.traffic.output_tokens
        count = round(min(max(in_flight, 1.0), _FULL))  # without bound where more is asked than can be served
        return performance.factors(self._copy(layout), count, prompt.mean, answer.mean, answer.max)

    def throughput_band(self, layout: Layout) -> tuple[float, float]:
        prompt, answer = self._question.traffic.input_tokens, self._question.traffic.output_tokens
        known = performance.performance(self._copy(layout), float("inf"), prompt.mean, answer.mean, answer.max)
        rate = known.output_tokens_per_second
        return rate.low / rate.mid, rate.high / rate.mid

    def _copy(self, layout: Layout) -> performance.Candidate:
        known = self._copies.get(layout)
        if known is None:
            variant = next(v for v in self._question.variants if v.name == layout.variant)
            known = self._copies[layout] = performance.Candidate(
                model=self._question.model,
                gpu=self._gpus[layout.pool],
                tensor_parallel=layout.tensor_parallel,
                pipeline_parallel=layout.pipeline_parallel,
                precision=variant.precision,
                kv_precision=variant.effective_kv_precision,
                backend=backend_of(self._question.deployment, variant),
                max_batch_size=layout.max_batch_size,
                max_num_tokens=layout.max_num_tokens,
            )
        return known

    def engine(self, layout: Layout) -> EngineModel:
        """One object per copy and slowness: equal engines share what queueing remembers of them."""
        copy = self._copy(layout)
        steps = round(math.log(self._slowness(layout)) / _GRID) if self._slowness is not None else 0
        key = copy, steps
        if key not in self._memory.engines:
            engine = performance.engine_model(copy)
            self._memory.engines[key] = replace(engine, step=_Slower(engine.step, math.exp(steps * _GRID)))
        return self._memory.engines[key]


@dataclass(frozen=True)
class _Slower:
    """Step times by a factor."""

    step: Callable[[Floats, Floats, Floats, Floats], Floats]
    factor: float

    def __call__(self, decodes: Floats, context: Floats, prefill: Floats, pairs: Floats) -> Floats:
        return self.factor * self.step(decodes, context, prefill, pairs)
