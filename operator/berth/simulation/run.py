"""The clock of a simulation: deployments, pools, traffic and faults, and what came of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from berth.api.gpupool import GPUPool
from berth.api.placement import Allocation
from berth.core.placement.evaluate import Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.simulation.baseline import Baseline, best_fixed, oracle
from berth.simulation.operator import Operator, plant_options
from berth.simulation.response import Response, Responses
from berth.simulation.service import Service
from berth.simulation.traffic import Minutes, Recorded
from berth.simulation.world import Event, World

TICK: Final = 5
"""Minutes between two looks."""


@dataclass(frozen=True)
class Sample:
    """One deployment at one moment, for pictures. Minutes since the beginning."""

    minute: int
    requests_per_second: float
    groups: int
    gpus: int
    cost_per_hour: float
    pool: str
    misses: float
    """Share of the last hour's requests that missed an objective; the worse of the two."""


@dataclass
class Course:
    """One deployment over the whole time."""

    name: str
    asked: Question
    operator: Operator
    minutes: Minutes
    samples: list[Sample] = field(default_factory=list)

    @property
    def attained(self) -> tuple[float, float]:
        """Shares of requests whose first token came in time, and whose tokens did."""
        told = self.operator.service.told
        requests = max(told.requests, 1.0)
        return 1 - told.missed_first / requests, 1 - told.missed_token / requests

    @property
    def worst_hour(self) -> float:
        """Smallest share of an hour's requests that met both objectives, as the worse of the two tells."""
        hours = [(n, max(first, token)) for n, first, token in self.operator.service.told.hours if n > 0]
        return min((1 - missed / n for n, missed in hours), default=1.0)


class Simulation:
    """Runs deployments on a world. Everything follows from the arguments."""

    def __init__(
        self,
        pools: Mapping[str, GPUPool],
        recorded: Recorded,
        *,
        hidden: Mapping[str, float] | None = None,
        events: Iterable[Event] = (),
        seed: int = 0,
        memory: Memory | None = None,
        responses: dict[int, Responses] | None = None,
    ) -> None:
        self.world = World(dict(pools), hidden or {}, tuple(sorted(events, key=lambda event: event.at)))
        self.courses: list[Course] = []
        self._recorded, self._seed = recorded, seed
        self._memory = memory or Memory()
        self._responses = responses if responses is not None else {}
        """By largest requested answer; shared by simulations of the same record."""

    def add(
        self,
        name: str,
        asked: Question,
        minutes: Minutes,
        *,
        allocation: Allocation | None = None,
        decides: bool = True,
    ) -> Course:
        """A deployment; with `decides` False it stays with `allocation` for ever."""
        most = round(asked.traffic.output_tokens.max)
        responses = self._responses.setdefault(most, Responses(self._recorded, most))

        @cache
        def response_of(layout: Layout, scale: float) -> Response:
            return responses.of(plant_options(asked, layout, self.world.pools), scale)

        bounds = asked.objectives.time_to_first_token, asked.objectives.time_per_output_token
        lengths = float(self._recorded.prompt.mean()), float(self._recorded.answer.mean())
        seed = zlib.crc32(f"{self._seed} {name}".encode())
        service = Service(minutes, bounds, lengths, response_of, seed)
        operator = Operator(
            name,
            asked,
            self.world,
            service,
            self._memory,
            allocation=allocation,
            decides=decides,
            seed=seed,
        )
        course = Course(name, asked, operator, minutes)
        self.courses.append(course)
        return course

    def baselines(self) -> dict[str, tuple[Baseline, ...]]:
        """By deployment: the best fixed placement and the oracle, where there are such."""
        found = {}
        for course in self.courses:
            responses = self._responses[round(course.asked.traffic.output_tokens.max)]
            both = (way(course.asked, self.world, course.minutes, responses) for way in (best_fixed, oracle))
            found[course.name] = tuple(each for each in both if each is not None)
        return found

    def run(self, minutes: int, *, sampled: int = 15, done: Callable[[int], object] = lambda _minutes: None) -> None:
        """From the beginning; a sample of each deployment every `sampled` minutes (0: none). `done` is told the minutes
        that are over for each deployment, one after the other."""
        for start in range(0, minutes, TICK):
            self.world.advance(start)
            self._faults(start)
            stop = min(start + TICK, minutes)
            for course in self.courses:
                course.operator.tick(start, stop)
                if sampled and start % sampled == 0:
                    course.samples.append(self._sample(course, start))
                done(stop - start)

    def _faults(self, start: int) -> None:
        """Groups and nodes that are lost in the tick that begins."""
        for event in self.world.events:
            if event.at < start or event.at >= start + TICK:
                continue
            hit = [course for course in self.courses if event.deployment in ("", course.name)]
            if event.kind == "group":
                for course in hit:
                    course.operator.lose(max(1, round(event.value)), start)
            elif event.kind == "node":
                self._lose_node(event, start)
            elif event.kind == "pool":
                for node in self._nodes_in_use(event.pool):
                    for course in self.courses:
                        course.operator.lose(0, start, node)
            elif event.kind == "slow" and event.deployment:
                for course in hit:
                    course.operator.slow_down(event.value)

    def _lose_node(self, event: Event, start: int) -> None:
        nodes = sorted(self._nodes_in_use(event.pool))
        among = max(event.among, len(nodes), 1)
        struck = zlib.crc32(f"{self._seed} {event.at} {event.pool}".encode()) % among
        if struck < len(nodes):
            for course in self.courses:
                course.operator.lose(0, start, nodes[struck])

    def _nodes_in_use(self, pool: str) -> set[str]:
        return {
            node
            for course in self.courses
            for group in course.operator.groups
            if group.layout.pool == pool
            for node in group.nodes
        }

    def _sample(self, course: Course, minute: int) -> Sample:
        groups = list(course.operator.groups)
        routed = [group for group in groups if group.routed]
        price = sum((self.world.price(group.layout.pool) or 0.0) * group.layout.gpus for group in groups)
        return Sample(
            minute,
            float(course.minutes.rate[minute : minute + TICK].mean()),
            len(routed),
            sum(group.layout.gpus for group in groups),
            price,
            routed[0].layout.pool if routed else "",
            course.operator.service.misses(),
        )
