"""Asks the planner of the core, off the event loop: models take up to a second, leases and watches do not wait.

Most passes ask nothing: a decision that stands is read from status. The others are answered one after the other, and
what is computed for one is remembered for the next. A placement that serves is looked at with its measurements at each
pass; that is cheap but for a close look every quarter of an hour.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Final

from berth.api.gpupool import GPUPool
from berth.api.placement import Allocation
from berth.controller.arbiter import Arbiter
from berth.core.moves.asked import move_asked_for
from berth.core.moves.course import Course, convoy_in
from berth.core.moves.decision import Move
from berth.core.observed import Snapshot
from berth.core.placement.current import Current, Load, current
from berth.core.placement.decide import Decision, decide, kept
from berth.core.placement.evaluate import Memory
from berth.core.placement.question import question
from berth.core.placement.supply import Supply, supply_of
from berth.core.requests import Request
from berth.core.steering.steer import steer
from berth.core.steering.told import Kept, pace_of, situation_of, steered
from berth.core.wanted import readable_pools
from berth.errors import BerthError, InvalidSpec

_log = logging.getLogger(__name__)

_Name = tuple[str, str]
"""Namespace and name of a deployment."""
_RECENT_SECONDS: Final = 7200.0


class Planner:
    """Decisions for placement.mode Auto. `state_of` tells how a pool stands."""

    def __init__(self, arbiter: Arbiter, why_not_usable: Callable[[GPUPool], str | None]) -> None:
        self._arbiter = arbiter
        self._why_not_usable = why_not_usable
        self._memory = Memory()
        self._one_at_a_time = asyncio.Lock()
        self._kept: dict[_Name, Kept] = {}
        self._moving: dict[_Name, frozenset[str]] = {}
        """Pools that a move under way touches, or one that was just decided on."""

    async def decide(self, snapshot: Snapshot) -> Decision | None:
        """Where the deployment is to run; None where nobody asks: a fixed placement, or one that is being deleted."""
        metadata, spec = snapshot.deployment.metadata, snapshot.deployment.spec
        if spec.placement.mode != "Auto" or metadata.deletion_timestamp:
            return None
        try:
            decision = kept(snapshot)
            if decision is None:
                supplies = await self._supplies(snapshot)
                async with self._one_at_a_time:
                    decision = await asyncio.to_thread(decide, snapshot, supplies.values(), self._memory)
        except InvalidSpec as error:
            return Decision(None, refusal=error)
        try:
            return await self._steered(snapshot, decision)
        except Exception as error:  # what keeps groups alive does not wait for what makes them better
            if not isinstance(error, BerthError):
                _log.exception("measurements of %s/%s were not looked at", metadata.namespace, metadata.name)
            return decision

    async def _steered(self, snapshot: Snapshot, decision: Decision) -> Decision:
        """With what measurements say; as it is while there are none."""
        name, status = _name(snapshot), snapshot.raw.get("status") or {}
        if "calibration" in status and decision.allocation is not None:
            decision = replace(decision, status={"calibration": status["calibration"], **decision.status})
        convoy = convoy_in(snapshot)
        self._moving[name] = _pools(convoy.course) if convoy is not None else frozenset()
        measured = snapshot.measured
        if decision.allocation is None or measured is None or not measured.fresh:
            return decision
        supplies = await self._supplies(snapshot)
        if decision.allocation.pool not in supplies:
            return decision
        before = self._kept.get(name, Kept())
        situation = situation_of(
            snapshot,
            decision,
            question(snapshot.deployment),
            supplies,
            before,
            neighbours=self._neighbours(name, decision.allocation.pool, snapshot.now * pace_of(measured)),
        )
        if self._one_at_a_time.locked() and (situation.state.failing_over or situation.state.changing):
            return decision  # a lost group is not kept waiting by somebody else's models
        async with self._one_at_a_time:
            # Counted and claimed in one go: a pool that becomes slow is left by all at the same moment otherwise.
            others = Counter(pool for other, pools in self._moving.items() if other != name for pool in pools)
            state = replace(situation.state, moves_by_pool=others)
            found = await asyncio.to_thread(steer, replace(situation, state=state), self._memory)
            if isinstance(found.verdict, Move):
                self._moving[name] = _pools(found.verdict)
        self._kept[name] = Kept(found.day, found.reviewed, found.calibration)
        return steered(decision, situation, found, status)

    def _neighbours(self, name: _Name, pool: str, now: float) -> float | None:
        """By how much the groups of others on the pool became slower within the last hours, as a logarithm."""
        changes = [
            place.change
            for other, each in self._kept.items()
            if other != name
            for place in each.calibration.places
            if place.place.pool == pool and now - place.at < _RECENT_SECONDS
        ]
        return median(changes) if changes else None

    def stays(self, namespace: str, name: str) -> None:
        """The deployment does not move after all: the place of the move that was decided on is for others."""
        self._moving.pop((namespace, name), None)

    def forget(self, namespace: str, name: str) -> None:
        """The deployment is gone."""
        self._kept.pop((namespace, name), None)
        self._moving.pop((namespace, name), None)

    async def _supplies(self, snapshot: Snapshot) -> Mapping[str, Supply]:
        pools = readable_pools(snapshot.pools)
        return {name: await self._supply(pool, snapshot) for name, pool in pools.items()}

    async def move_asked_for(self, snapshot: Snapshot, asked: Request) -> Move:
        """The move that a person asks for. Raises InvalidSpec."""
        supplies = await self._supplies(snapshot)
        async with self._one_at_a_time:
            return await asyncio.to_thread(move_asked_for, snapshot, asked, supplies.values(), self._memory)

    async def current(self, snapshot: Snapshot, allocation: Allocation, load: Load) -> Current | None:
        """What the placement in force is expected to do with a load; None where the models cannot tell."""
        pool = readable_pools(snapshot.pools).get(allocation.pool)
        if pool is None:
            return None
        try:
            supply = await self._supply(pool, snapshot)
        except InvalidSpec:
            return None
        async with self._one_at_a_time:
            return await asyncio.to_thread(current, snapshot.deployment, allocation, supply, load, self._memory)

    async def _supply(self, pool: GPUPool, snapshot: Snapshot) -> Supply:
        """The pool as it stands, without what the deployment's own groups take: they would make room for others."""
        resource = pool.spec.resource_name
        nodes = self._arbiter.nodes_of(pool)
        if pool.spec.gpu_budget is None:
            await self._arbiter.refresh(resource, nodes)
        used = self._arbiter.used(resource, nodes, without=frozenset(group.uid for group in snapshot.groups))
        namespace = snapshot.deployment.metadata.namespace
        allowance = self._arbiter.allowance(namespace, snapshot.deployment.metadata.uid)
        return supply_of(pool, namespace, nodes, used, self._why_not_usable(pool), allowance)


def _pools(move: Move | Course) -> frozenset[str]:
    return frozenset({move.start.pool, move.to.pool})


def _name(snapshot: Snapshot) -> _Name:
    metadata = snapshot.deployment.metadata
    return metadata.namespace, metadata.name
