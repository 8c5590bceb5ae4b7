"""A move of the simulation goes through the production machine: each of its ends, on groups made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from berth.api.placement import Allocation
from berth.core.measurement.samples import StepMoments
from berth.core.moves.course import Course
from berth.core.moves.machine import Ended
from berth.core.placement.layouts import Layout
from berth.core.placement.question import spec_hash
from berth.core.steering.reading import Reading, Span
from berth.simulation.mover import Moving, carry_out
from berth.simulation.service import Group
from tests.unit.placement.cases import BF16, FP8, deployment

HERE = Allocation(pool="h100", variant="fp8", tensor_parallel=2, groups=2)
THERE = Allocation(pool="a100", variant="bf16", tensor_parallel=8, groups=2)
SPEC = deployment(variants=(FP8, BF16)).spec
LOADS = 3
"""Minutes."""


class Scene:
    """Two groups that serve, a move that begins at minute 0, and as many new groups as there is `room` for."""

    def __init__(self, misses: float = 0.0, room: int = 2, **course: Any) -> None:
        self.misses, self.room, self.flips = misses, room, 0
        self.groups = [Group(f"g{n}", Layout.of(HERE), (), serves_from=0) for n in range(2)]
        begun = Course("id", HERE, THERE, "Cost", "saves", 0.0, spec_hash(SPEC), needed=2, load=5.0, misses=0.01)
        self.moving = Moving(None, replace(begun, **course), SPEC, begun=0)  # type: ignore[arg-type]  # only its course counts here
        self.fewest = self.most = 2

    def start(self, layout: Layout) -> Group | None:
        if self.room <= 0:
            return None
        self.room -= 1
        group = Group(f"n{self.room}-{self.minute}", layout, (), serves_from=self.minute + LOADS, routed=False)
        self.groups.append(group)
        return group

    def look(self) -> tuple[Reading, int]:
        span = Span(3600.0, 5.0, 10.0, 1000.0, 200.0, self.misses, 400.0)
        return Reading(self.minute * 60.0, span, span, {}, StepMoments()), 2

    def flipped(self) -> None:
        self.flips += 1

    def until_over(self, before: Callable[[int], None] = lambda _minute: None) -> Ended:
        for self.minute in range(60):
            before(self.minute)
            ended = carry_out(
                self.moving, self.groups, self.minute, self.look, self.groups.remove, self.start, self.flipped
            )
            serving = [g for g in self.groups if g.routed and g.serves_from <= self.minute]
            self.fewest, self.most = min(self.fewest, len(serving)), max(self.most, len(self.groups))
            if ended is not None:
                return ended
        raise AssertionError("it does not end")

    def pools(self) -> list[str]:
        return sorted(group.layout.pool for group in self.groups if group.routed)


def test_new_groups_load_take_the_requests_and_are_kept() -> None:
    scene = Scene(misses=0.0)
    ended = scene.until_over()
    assert (ended.result, scene.pools()) == ("Completed", ["a100", "a100"])
    assert len(scene.groups) == 2
    assert scene.fewest == 2


def test_what_is_worse_is_given_back() -> None:
    scene = Scene(misses=0.6)
    ended = scene.until_over()
    assert (ended.result, scene.pools()) == ("RolledBack", ["h100", "h100"])
    assert len(scene.groups) == 2
    assert scene.fewest == 2
    assert "60.0%" in ended.reason


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_it_is_abandoned_at_the_deadline(room: int) -> None:
    scene = Scene(room=room)
    ended = scene.until_over()
    assert (ended.result, scene.pools()) == ("Abandoned", ["h100", "h100"])
    assert "no capacity by the deadline" in ended.reason
    assert scene.minute == 20


def test_new_groups_that_are_lost_while_they_are_judged_are_not_kept() -> None:
    scene = Scene(misses=0.055)  # too close to tell: it is judged until the deadline

    def lose(minute: int) -> None:
        if minute == LOADS + 2:
            scene.groups.remove(next(group for group in scene.groups if group.layout.pool == "a100"))

    ended = scene.until_over(lose)
    assert (ended.result, scene.pools()) == ("Abandoned", ["h100", "h100"])
    assert "1 of 2 needed groups serve" in ended.reason


@pytest.mark.parametrize(("misses", "ends"), [(0.0, ("Completed", "a100")), (0.6, ("RolledBack", "h100"))])
def test_without_surge_groups_change_places_one_by_one_there_and_back(misses: float, ends: tuple[str, str]) -> None:
    scene = Scene(misses, room=9, swap=True, leaves=1)
    ended = scene.until_over()
    assert (ended.result, set(scene.pools())) == (ends[0], {ends[1]})
    assert (scene.fewest, scene.most, scene.flips) == (1, 2, 1)


def test_without_surge_and_room_they_change_back_at_the_deadline() -> None:
    scene = Scene(room=0, swap=True, leaves=1)

    def room_again(minute: int) -> None:
        scene.room = 1 if minute == 45 else scene.room

    ended = scene.until_over(room_again)
    assert (ended.result, scene.pools()) == ("Abandoned", ["h100"])
    assert "no room" in ended.reason
