"""Production's decisions for one deployment, carried out with the times they take.

The decisions are `berth.core.steering.steer` and the planner, as the operator calls them; moves go through the
operator's own state machine (`mover`). The rest is shortened to what matters over days: a group loads for some minutes,
a lost one comes back where there is room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from berth.api.placement import Allocation
from berth.core.calibration.learn import Calibration
from berth.core.capacity import Demand
from berth.core.moves import rules
from berth.core.moves.decision import Advise, Hold, Move
from berth.core.moves.machine import Ended, Result
from berth.core.moves.underway import course_of
from berth.core.placement.choose import choose
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.layouts import Layout
from berth.core.placement.question import Question
from berth.core.placement.supply import Supply
from berth.core.render.repository import simulated_options
from berth.core.steering.day import Day
from berth.core.steering.policy import policy_of
from berth.core.steering.reading import Reading
from berth.core.steering.steer import Reviewed, Situation, Steering, steer
from berth.simulation.lazy import Lazy
from berth.simulation.mover import Moving, carry_out
from berth.simulation.response import CannotRun
from berth.simulation.service import Group, Service
from berth.simulation.world import World

LOAD_MINUTES: Final = 5
"""From reservation to the first token."""
RUNNING_TWICE_MINUTES: Final = 20
"""That a move is expected to take."""
LOST_MINUTES: Final = 60
"""For which a group that is lost and not replaced holds everything else back; recovery.window."""
LOST_SECONDS: Final = 10.0
"""Until a lost group gets no requests."""


@dataclass(frozen=True)
class Done:
    """Something worth telling. Minutes since the beginning."""

    at: int
    what: str
    words: str


@dataclass
class Tally:
    """What it came to."""

    gpu_minutes: float = 0.0
    cost: float = 0.0
    moves: list[tuple[int, Move, Result]] = field(default_factory=list)
    scalings: list[tuple[int, int, int]] = field(default_factory=list)
    """(minute, groups before, after)."""
    failures: int = 0
    survived: int = 0
    """Failures after which at least the needed groups served."""
    waits: int = 0
    """Minutes in which groups were wanted that found no room."""
    advised: int = 0
    done: list[Done] = field(default_factory=list)
    holds: dict[str, int] = field(default_factory=dict)


class Operator:
    """One deployment under Berth. `decides` False keeps the first placement for ever."""

    def __init__(
        self,
        name: str,
        asked: Question,
        world: World,
        service: Service,
        memory: Memory,
        *,
        allocation: Allocation | None = None,
        decides: bool = True,
        seed: int = 0,
    ) -> None:
        self.name, self.asked, self.world, self.service = name, asked, world, service
        self.tally = Tally()
        self.calibration = Calibration()
        self.steering: Steering | None = None
        self._memory, self._decides = memory, decides
        self._random = Random(f"{seed} {name}")  # noqa: S311  (a simulation)
        self._groups: list[Group] = []
        self._moving: Moving | None = None
        self._waits_since: int | None = None
        """What the world was like (`World.changes`) when there was no room for the first placement."""
        self._day = Day()
        self._reviewed: Reviewed | None = None
        self._ended: list[float] = []
        self._cost_moves_from = 0.0
        self._taken_back: set[str] = set()
        self._changed_at = 0.0
        self._lost_at = -LOST_MINUTES
        self._numbers = 0
        self.allocation = allocation
        self.for_traffic = allocation.groups if allocation else 0

    # --- time ---------------------------------------------------------------------------------------------------------
    def tick(self, start: int, stop: int) -> None:
        """Minutes `start` to `stop`: what is due, what users feel, one look."""
        if self.allocation is None:
            self._place(start)
        self._fill_up(start)
        self._progress(start)
        self.service.serve(self._groups, start, stop, self.world.slowness)
        self._pay(stop - start)
        if self._decides and self.allocation is not None:
            self._look(stop)

    def lose(self, count: int, minute: int, node: str | None = None) -> None:
        """Groups fail: those on `node`, else some by chance."""
        serving = [group for group in self._groups if group.routed and group.lost_at is None]
        hit = [group for group in serving if node in group.nodes] if node else []
        if node is None and serving:
            hit = self._random.sample(serving, min(count, len(serving)))
        if not hit:
            return
        self.tally.failures += 1
        self._lost_at = minute
        rate = float(self.service.minutes.rate[min(minute, len(self.service.minutes) - 1)])
        for group in hit:
            self.service.told.failed += rate * group.share * LOST_SECONDS
            self._remove(group)
        left = len([group for group in serving if group not in hit])
        needed = max(self.asked.spec.replica_groups.min_available, min(self.for_traffic, len(serving)))
        self.tally.survived += left >= needed
        self._say(minute, "failure", f"{len(hit)} of {len(serving)} groups lost, {left} left, {needed} needed")

    def slow_down(self, factor: float) -> None:
        """One group becomes slower than its peers, for good."""
        serving = [group for group in self._groups if group.routed]
        if serving:
            serving[0].slow = factor

    @property
    def pools_of_move(self) -> frozenset[str]:
        """That a move under way touches."""
        return frozenset((self._moving.course.start.pool, self._moving.course.to.pool) if self._moving else ())

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(self._groups)

    # --- carrying out -------------------------------------------------------------------------------------------------
    def _place(self, minute: int) -> None:
        """The first decision, as the planner makes it; one that found no room stands until there is other room."""
        if self._waits_since == self.world.changes:
            self.tally.waits += 1
            return
        self._waits_since = None
        supplies = self._supplies()
        allowed = self.asked.spec.placement.pools
        offered = [supply for name, supply in supplies.items() if not allowed or name in allowed]
        answer = choose(self.asked, offered, Estimates(self.asked, supplies, self._memory))
        chosen = answer.chosen
        if chosen is None or chosen.waits:
            self._waits_since = self.world.changes
            self.tally.waits += 1
            return
        self.allocation, self.for_traffic = chosen.layout.allocation(chosen.groups), chosen.groups_for_traffic
        self._changed_at = minute * 60.0
        self._say(minute, "placed", f"{chosen.layout} x {chosen.groups}: {answer.words}")

    def _fill_up(self, minute: int) -> None:
        """As many groups as are wanted, where there is room; one less at a time."""
        allocation = self.allocation
        if allocation is None or self._moving is not None:
            return
        mine = [group for group in self._groups if group.routed]
        while len(mine) > allocation.groups:
            self._remove(mine.pop())
        while len(mine) < allocation.groups:
            group = self._start(Layout.of(allocation), minute)
            if group is None:
                self.tally.waits += 1
                break
            mine.append(group)

    def _start(self, layout: Layout, minute: int, *, routed: bool = True) -> Group | None:
        """None where there is no room, or the engine does not load."""
        try:
            self.service.response(layout)
        except CannotRun:
            return None
        nodes = self.world.take(layout.pool, self._demand(layout))
        if nodes is None:
            return None
        self._numbers += 1
        group = Group(f"g{self._numbers}", layout, nodes, minute + (LOAD_MINUTES if minute else 0), routed=routed)
        self._groups.append(group)
        return group

    def _remove(self, group: Group) -> None:
        self._groups.remove(group)
        demand = self._demand(group.layout)
        self.world.give_back(group.layout.pool, group.nodes, demand.gpus_per_member)

    def _demand(self, layout: Layout) -> Demand:
        return self.asked.demand(layout, self.world.told(layout.pool))

    def _begin(self, move: Move, minute: int) -> None:
        spec = self.asked.spec
        reading = self.service.reading(minute * 60.0, self._groups)
        load, misses = (reading.slow.requests_per_second, reading.slow.misses) if reading is not None else (None, None)
        self._moving = Moving(move, course_of(move, spec, minute * 60.0, load, misses), spec, minute)
        self.world.moving.update(self.pools_of_move)
        self._say(minute, "move", f"{move.cause}: {move.reason}")
        self._progress(minute)

    def _progress(self, minute: int) -> None:
        moving = self._moving
        if moving is None:
            return
        ended = carry_out(
            moving,
            self._groups,
            minute,
            look=lambda: (self._read(minute), max(self.for_traffic, self.asked.spec.replica_groups.min_available)),
            remove=self._remove,
            start=lambda layout: self._start(layout, minute, routed=False),
            flipped=self.service.forget_windows,
        )
        if ended is not None:
            self._end(moving.move, ended, minute)

    def _end(self, move: Move, ended: Ended, minute: int) -> None:
        self.world.moving.subtract(self.pools_of_move)
        self._moving = None
        for group in self._groups:
            group.move_id, group.role, group.move_record = "", "", ""
            group.flipped_at, group.move_result = None, ""
        if ended.result == "Completed":
            self.allocation, self.for_traffic = move.to, move.decision.groups_for_traffic
            self._changed_at = minute * 60.0
            self._reviewed = None
        elif ended.result == "RolledBack":
            self._taken_back.add(move.placement_hash)
        self._ended.append(minute * 60.0)
        self._cost_moves_from = minute * 60.0 + move.cooldown
        self.tally.moves.append((minute, move, ended.result))
        self._say(minute, ended.result, ended.reason)

    def _read(self, minute: int) -> Reading | None:
        """What is measured; of a move under way apart what its groups are like."""
        if self.world.silent(self.name):
            return None
        return self.service.reading(minute * 60.0, self._groups, self._trial())

    def _trial(self) -> list[Group]:
        """Groups that a move has brought."""
        to = Layout.of(self._moving.move.to).shape if self._moving is not None else None
        return [group for group in self._groups if group.move_record and group.layout.shape == to]

    def _pay(self, minutes: int) -> None:
        for group in self._groups:
            self.tally.gpu_minutes += group.layout.gpus * minutes
            price = self.world.price(group.layout.pool)
            self.tally.cost += (price or 0.0) * group.layout.gpus * minutes / 60

    # --- deciding -----------------------------------------------------------------------------------------------------
    def _look(self, minute: int) -> None:
        allocation = self.allocation
        assert allocation is not None
        now = minute * 60.0
        mine = [group for group in self._groups if group.routed]
        starting = [group for group in mine if group.serves_from > minute]
        short = len(mine) < allocation.groups
        reading = self._read(minute)
        spec = self.asked.spec
        situation = Situation(
            now=now,
            uid=self.name,
            asked=self.asked,
            supplies=self._supplies(),
            in_force=allocation,
            groups_for_traffic=self.for_traffic,
            policy=policy_of(spec),
            past=rules.Past(tuple(self._ended[-10:]), self._cost_moves_from, frozenset(self._taken_back)),
            state=rules.State(
                failing_over=short and not starting and minute - self._lost_at < LOST_MINUTES,
                changing=bool(starting),
                waiting=short,
                moving=self._moving is not None,
                moves_by_pool=self._moves_of_others(),
            ),
            reading=reading,
            day=self._day,
            calibration=self.calibration,
            changed_at=self._changed_at,
            scales=spec.scaling.mode == "Auto",
            nodes=tuple(node for group in mine for node in group.nodes),
            trial=self._moving.move.to if self._moving is not None else None,
            reviewed=self._reviewed,
            running_twice=RUNNING_TWICE_MINUTES * 60.0,
        )
        found = steer(situation, self._memory)
        self.steering = found
        self._day, self.calibration, self._reviewed = found.day, found.calibration, found.reviewed
        if found.sized.groups != allocation.groups:
            self.tally.scalings.append((minute, allocation.groups, found.sized.groups))
            self._say(minute, "scaled", f"{allocation.groups} -> {found.sized.groups} groups: {found.scaled}")
            self.allocation = allocation.model_copy(update={"groups": found.sized.groups})
            self._changed_at = now
        self.for_traffic = found.sized.for_traffic
        verdict = found.verdict
        if isinstance(verdict, Hold):
            self.tally.holds[verdict.reason] = self.tally.holds.get(verdict.reason, 0) + 1
        elif isinstance(verdict, Advise):
            if found.weighed is not None and not self.tally.advised:
                self._say(minute, "advised", verdict.move.reason)
            self.tally.advised += found.weighed is not None
        else:
            self._begin(verdict, minute)

    def _moves_of_others(self) -> Mapping[str, int]:
        mine = set(self.pools_of_move)
        return {pool: count - (pool in mine) for pool, count in self.world.moving.items()}

    def _supplies(self) -> Mapping[str, Supply]:
        held: dict[str, list[tuple[str, int]]] = {}
        for group in self._groups:
            each = self._demand(group.layout).gpus_per_member
            held.setdefault(group.layout.pool, []).extend((node, each) for node in group.nodes)
        namespace = self.asked.deployment.metadata.namespace or "default"
        return Lazy(
            tuple(sorted(self.world.pools)), lambda pool: self.world.supply(pool, namespace, held.get(pool, ()))
        )

    def _say(self, minute: int, what: str, words: str) -> None:
        self.tally.done.append(Done(minute, what, words))


def plant_options(asked: Question, layout: Layout, pools: Mapping[str, Any]) -> dict[str, Any]:
    """What the launcher would tell the simulated engine of this copy."""
    variant = next(variant for variant in asked.variants if variant.name == layout.variant)
    return simulated_options(asked.model, variant, layout.allocation(1), pools[layout.pool].spec.gpu)
