"""The registry of Berth's write sequences, for tests that interrupt each of them after each write.

A sequence prepares a settled world, acts on it as a user or as fate would, and tells when Berth has finished. A new
kind of write sequence gets an entry here and is then interrupted like the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.integration.controller.conftest import Site
from tests.support.cluster import eventually

Step = Callable[[Site, str], Awaitable[None]]
"""Gets the site and the name of its pool."""


@dataclass(frozen=True)
class WriteSequence:
    name: str
    prepare: Step
    act: Step
    finished: Step


SEQUENCES: list[WriteSequence] = []


def _register(name: str, prepare: Step, act: Step, finished: Step) -> None:
    SEQUENCES.append(WriteSequence(name, prepare, act, finished))


async def _nothing(site: Site, pool: str) -> None:
    """Nothing to prepare."""


async def _one_group(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=1))
    await site.settled(timeout=90)


async def _two_groups(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=2))
    await site.settled(timeout=90)


async def _create(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, groups=1))


async def _create_over_two_nodes(site: Site, pool: str) -> None:
    await site.cluster.create(site.deployment(pool, tp=8, pp=2, groups=1))


def _scale_to(groups: int) -> Step:
    async def scale(site: Site, pool: str) -> None:
        wanted = site.deployment(pool, groups=groups)["spec"]["placement"]
        await site.patch({"spec": {"placement": wanted}})

    return scale


async def _update(site: Site, pool: str) -> None:
    await site.patch({"spec": {"pod": {"env": [{"name": "REVISION", "value": "two"}]}}})


async def _lose_a_pod(site: Site, pool: str) -> None:
    for pod in await site.pods():
        await site.cluster.delete("pods", pod["metadata"]["name"], site.namespace, grace=0)


async def _delete(site: Site, pool: str) -> None:
    await site.cluster.delete("llmdeployments", "llama", site.namespace)


async def _cordon_its_node(site: Site, pool: str) -> None:
    (pod,) = await site.pods()
    await site.cluster.patch("nodes", pod["spec"]["nodeName"], None, {"spec": {"unschedulable": True}})


async def _settled(site: Site, pool: str) -> None:
    await site.settled(timeout=120)


async def _replaced(site: Site, pool: str) -> None:
    async def second_life_serves() -> bool:
        found = await site.get()
        groups = [each for each in found.get("status", {}).get("groups", ()) if each.get("state") == "Serving"]
        assert [each["incarnation"] for each in groups] == [2], groups
        assert len(await site.pods()) == 1
        return True

    await eventually(second_life_serves, timeout=120)
    await site.settled(timeout=120)


async def _gone(site: Site, pool: str) -> None:
    async def nothing_left() -> bool:
        left = [
            each["metadata"]["name"]
            for kind in ("pods", "replicagroups", "services", "poddisruptionbudgets")
            for each in await site.cluster.list(kind, site.namespace)
        ]
        assert not left, left
        return True

    await eventually(nothing_left, timeout=120)


_register("create", _nothing, _create, _settled)
_register("create-over-two-nodes", _nothing, _create_over_two_nodes, _settled)
_register("scale-up", _one_group, _scale_to(2), _settled)
_register("scale-down", _two_groups, _scale_to(1), _settled)
_register("update", _one_group, _update, _replaced)
_register("failover", _one_group, _lose_a_pod, _replaced)
_register("leave-a-node", _one_group, _cordon_its_node, _replaced)
_register("delete", _one_group, _delete, _gone)
