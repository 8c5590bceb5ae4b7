"""One pass over one GPUPool: what it has and what is free, written to its status when that changed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from berth import labels
from berth.api.common import readable
from berth.api.gpupool import GPUPool, GPUPoolStatus, parse_gpupool
from berth.controller.arbiter import Arbiter
from berth.controller.nodewatch import NodeWatch
from berth.controller.shard import Shard
from berth.controller.statuses import StatusWriter
from berth.controller.world import Key, World
from berth.core.conditions import Condition, frozen_condition, merge
from berth.core.pools import PoolState, nodes_of, pool_status, why_not_usable
from berth.core.wanted import readable_pools
from berth.errors import InvalidSpec
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import Object

REFRESH_SECONDS = 60.0
"""How often what others have on the pool's nodes is looked at again."""


class PoolReconciler:
    """Passes over pools; `clock` gives Unix seconds."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        arbiter: Arbiter,
        watch: NodeWatch,
        shard: Shard,
        clock: Callable[[], float],
    ) -> None:
        self._statuses = StatusWriter(client)
        self._watch = watch
        self._world = world
        self._arbiter = arbiter
        self._shard = shard
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """Bring the pool's status up to date; returns when to look again, in seconds."""
        raw = self._world.pools.store.get(None, key.name)
        if raw is None or not self._shard.takes(raw):
            return None
        stored = readable(GPUPoolStatus, raw.get("status"))
        generation = int(raw["metadata"].get("generation", 1))
        try:
            pool = parse_gpupool(raw)
        except InvalidSpec as error:
            condition = Condition("Accepted", False, error.reason, str(error))
            merged = merge([condition], stored.get("conditions") or (), generation, self._clock())
            await self._write(raw, {**stored, "conditions": merged})
            return None
        if pool.spec.gpu_budget is None:
            await self._arbiter.refresh(pool.spec.resource_name, self._arbiter.nodes_of(pool))
        state = self.state(pool)
        frozen = frozen_condition(self._watch.frozen([pool.metadata.name]))
        state = replace(state, conditions=(*state.conditions, frozen))
        await self._write(raw, state.status(stored, generation, self._clock()))
        return REFRESH_SECONDS

    def state(self, pool: GPUPool) -> PoolState:
        """The pool as of now, from the local copies."""
        everything = self._arbiter.all_nodes(pool.spec.resource_name)
        used = self._arbiter.used(pool.spec.resource_name, nodes_of(pool, everything))
        return pool_status(pool, self._everybody(), everything, used)

    def why_not_usable(self, pool: GPUPool) -> str | None:
        """Why nothing may be planned in the pool; what is taken has no part in that."""
        others = ((other, self._arbiter.nodes_of(other)) for other in self._everybody())
        return why_not_usable(pool, self._arbiter.nodes_of(pool), others)

    def _everybody(self) -> Collection[GPUPool]:
        return readable_pools({raw["metadata"]["name"]: raw for raw in self._world.pools.store.all()}).values()

    async def _write(self, raw: Object, status: Object) -> None:
        if status == (raw.get("status") or {}):
            return
        metadata = raw["metadata"]
        body = {
            "apiVersion": labels.API_VERSION,
            "kind": "GPUPool",
            "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
            "status": status,
        }
        try:
            await self._statuses.write(body)
        except NotFound:
            return
