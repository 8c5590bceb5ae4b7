"""Asks the planner of the core, off the event loop: models take up to a second, leases and watches do not wait.

Most passes ask nothing: a decision that stands is read from status. The others are answered one after the other, and
what is computed for one is remembered for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from berth.api.gpupool import GPUPool
from berth.controller.arbiter import Arbiter
from berth.core.observed import Snapshot
from berth.core.placement.decide import Decision, decide, kept
from berth.core.placement.evaluate import Memory
from berth.core.placement.supply import Supply, supply_of
from berth.core.plan import readable_pools
from berth.core.pools import PoolState
from berth.errors import InvalidSpec


class Planner:
    """Decisions for placement.mode Auto. `state_of` tells how a pool stands."""

    def __init__(self, arbiter: Arbiter, state_of: Callable[[GPUPool], PoolState]) -> None:
        self._arbiter = arbiter
        self._state_of = state_of
        self._memory = Memory()
        self._one_at_a_time = asyncio.Lock()

    async def decide(self, snapshot: Snapshot) -> Decision | None:
        """Where the deployment is to run; None where nobody asks: a fixed placement, or one that is being deleted."""
        metadata, spec = snapshot.deployment.metadata, snapshot.deployment.spec
        if spec.placement.mode != "Auto" or metadata.deletion_timestamp:
            return None
        decision = kept(snapshot)
        if decision is not None:
            return decision
        try:
            supplies = [await self._supply(pool, snapshot) for pool in readable_pools(snapshot.pools).values()]
            async with self._one_at_a_time:
                return await asyncio.to_thread(decide, snapshot, supplies, self._memory)
        except InvalidSpec as error:
            return Decision(None, refusal=error)

    async def _supply(self, pool: GPUPool, snapshot: Snapshot) -> Supply:
        """The pool as it stands, without what the deployment's own groups take: they would make room for others."""
        resource = pool.spec.resource_name
        nodes = self._arbiter.nodes_of(pool)
        if pool.spec.gpu_budget is None:
            await self._arbiter.refresh(resource, nodes)
        used = self._arbiter.used(resource, nodes, without=frozenset(group.uid for group in snapshot.groups))
        namespace = snapshot.deployment.metadata.namespace
        return supply_of(pool, namespace, nodes, used, self._state_of(pool).why_not_usable)
