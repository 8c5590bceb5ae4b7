"""What Berth is compared with: the best placement that never changes, and an oracle that knows everything.

Both are chosen knowing the plants, the whole traffic and every fault to come. The fixed one is the cheapest that meets
the objectives over the whole time. The oracle takes each hour the cheapest that meets them in that hour, with moves
that cost nothing and take no time: no operator can do better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from berth.core.moves.rules import ALLOWED_MISSES
from berth.core.placement.layouts import Layout, in_one_node
from berth.core.placement.question import Question
from berth.simulation.operator import plant_options
from berth.simulation.response import CannotRun, Response, Responses, felt
from berth.simulation.traffic import Floats, Minutes
from berth.simulation.world import World

MOST_GROUPS: Final = 24


@dataclass(frozen=True)
class Baseline:
    """What a way of placing comes to."""

    name: str
    attained: tuple[float, float]
    worst_hour: float
    cost: float
    gpu_hours: float
    placement: str = ""


@dataclass(frozen=True)
class _Way:
    """One layout with a number of groups, minute by minute."""

    layout: Layout
    groups: int
    late: Floats
    slow: Floats
    price: Floats
    """Of a minute."""


def best_fixed(asked: Question, world: World, minutes: Minutes, responses: Responses) -> Baseline | None:
    """None if no placement that never changes meets the objectives."""
    requests = minutes.rate
    found: tuple[float, _Way] | None = None
    for way in _ways(asked, world, minutes, responses):
        late, slow = _shares(requests, way)
        cost = float(way.price.sum())
        if max(late, slow) <= ALLOWED_MISSES and (found is None or cost < found[0]):
            found = (cost, way)
    if found is None:
        return None
    cost, way = found
    late, slow = _shares(requests, way)
    gpu_hours = way.layout.gpus * way.groups * len(minutes) / 60
    hourly = _hourly(requests, np.maximum(way.late, way.slow))
    name = f"{way.layout} x {way.groups}"
    return Baseline("best fixed", (1 - late, 1 - slow), 1 - float(hourly.max()), cost, gpu_hours, name)


def oracle(asked: Question, world: World, minutes: Minutes, responses: Responses) -> Baseline | None:
    """None if some hour can be served by nothing."""
    ways = list(_ways(asked, world, minutes, responses))
    hours = len(minutes) // 60
    if not ways or not hours:
        return None
    requests = minutes.rate
    missed = np.array([np.maximum(_hourly(requests, w.late), _hourly(requests, w.slow))[:hours] for w in ways])
    price = np.array([w.price[: hours * 60].reshape(hours, 60).sum(axis=1) for w in ways])
    gpus = np.array([way.layout.gpus * way.groups for way in ways])
    meets = missed <= ALLOWED_MISSES
    costs = np.where(meets, price, np.inf)
    # An hour that nothing serves well enough gets what serves it best.
    chosen = np.where(meets.any(axis=0), costs.argmin(axis=0), missed.argmin(axis=0))
    each = np.arange(hours)
    rates = requests[: hours * 60].reshape(hours, 60).sum(axis=1)
    late = np.array([_hourly(requests, way.late)[:hours] for way in ways])[chosen, each]
    slow = np.array([_hourly(requests, way.slow)[:hours] for way in ways])[chosen, each]
    total = float(rates.sum())
    return Baseline(
        "oracle",
        (1 - float((late * rates).sum()) / total, 1 - float((slow * rates).sum()) / total),
        1 - float(missed[chosen, each].max()),
        float(price[chosen, each].sum()),
        float(gpus[chosen].sum()),
    )


def _ways(asked: Question, world: World, minutes: Minutes, responses: Responses) -> Iterator[_Way]:
    """Every layout in one node that loads, with every number of groups up to one that is plenty."""
    slowness = {pool: _over_time(world, pool, len(minutes)) for pool in world.pools}
    world.advance(0)
    allowed = asked.spec.placement.pools or tuple(world.pools)
    limit = asked.limits.gpus or 10**6
    for pool in allowed:
        supply = world.supply(pool, "default")
        for variant in asked.variants:
            for layout in in_one_node(asked.model, supply, variant):
                try:
                    response = responses.of(plant_options(asked, layout, world.pools))
                except CannotRun:
                    continue
                per_gpu = _prices(world, pool, len(minutes))
                for groups in range(max(1, asked.fewest), min(MOST_GROUPS, asked.most, limit // layout.gpus) + 1):
                    late, slow = _missed(asked, response, minutes, slowness[pool], groups)
                    yield _Way(layout, groups, late, slow, per_gpu * layout.gpus * groups / 60)
                    if late.max() < ALLOWED_MISSES and slow.max() < ALLOWED_MISSES:
                        break


def _missed(
    asked: Question, response: Response, minutes: Minutes, slowness: Floats, groups: int
) -> tuple[Floats, Floats]:
    bounds = asked.objectives.time_to_first_token, asked.objectives.time_per_output_token
    share = response.prompt_share
    load = minutes.rate / groups * (share * minutes.prompt * minutes.scale + (1 - share) * minutes.answer)
    late, slow = np.zeros(len(minutes)), np.zeros(len(minutes))
    for factor in np.unique(slowness):
        here = slowness == factor
        table = felt(response, float(factor), *bounds)
        late[here] = np.interp(load[here], table.loads, table.missed_first)
        slow[here] = np.interp(load[here], table.loads, table.missed_token)
        late[here & (load > table.saturation)] = 1.0
    return late, slow


def _over_time(world: World, pool: str, count: int) -> Floats:
    return _by_minute(world, count, lambda: world.slowness(pool))


def _prices(world: World, pool: str, count: int) -> Floats:
    return _by_minute(world, count, lambda: world.price(pool) or 0.0)


def _by_minute(world: World, count: int, value: Callable[[], float]) -> Floats:
    """Of something that changes only when an event begins or ends."""
    edges = sorted({0, *(edge for edge in world.edges if edge < count)})
    found = np.zeros(count)
    for edge in edges:
        world.advance(edge)
        found[edge:] = value()
    world.advance(0)
    return found


def _shares(requests: Floats, way: _Way) -> tuple[float, float]:
    total = float(requests.sum())
    return float((way.late * requests).sum()) / total, float((way.slow * requests).sum()) / total


def _hourly(requests: Floats, missed: Floats) -> Floats:
    """Share of the requests of each whole hour, or of all where there is none."""
    hours = max(len(requests) // 60, 1)
    kept = slice(0, hours * 60)
    n = requests[kept].reshape(hours, -1)
    m = (requests * missed)[kept].reshape(hours, -1)
    return np.asarray(m.sum(axis=1) / np.maximum(n.sum(axis=1), 1e-9))
