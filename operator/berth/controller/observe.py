"""The first step of a pass: everything it will decide on, read once. No decision is made here.

The LLMDeployment is read fresh, unless the server told it just now. A member that is missing from the local copy is
asked for by name before anybody may call it lost: a pod that lost its label leaves a label-selected watch just like one
that was deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from berth import labels
from berth.api.common import read
from berth.api.llmdeployment import LLMDeployment
from berth.controller import parse
from berth.controller.copies import Copies
from berth.controller.nodewatch import NodeWatch
from berth.controller.world import Key, World
from berth.core.disruption import nodes_of, overlapping_budgets
from berth.core.nodes import NodeView, node_view
from berth.core.observed import Answer, Group, Shortage, Snapshot
from berth.core.render.names import pod_name
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import LLM_DEPLOYMENT, PERSISTENT_VOLUME_CLAIM, POD, Object

CLAIM_SECONDS = 60.0
NO_CLAIM_SECONDS = 2.0
"""How long a claim is taken to be there, or missing, as it was seen: deployments share one, passes come in rows."""
MOST_CLAIMS = 10_000


class Observer:
    """Makes snapshots. `clock` gives Unix seconds."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        watch: NodeWatch,
        copies: Copies,
        granted: Callable[[str], Sequence[Object]],
        clock: Callable[[], float],
    ) -> None:
        """`granted` gives the groups of a deployment that were just made: no pass may make others for their slots."""
        self._client = client
        self._granted = granted
        self._copies = copies
        self._claims: dict[tuple[str, str], tuple[bool, float]] = {}
        """Whether a claim was there, and when that was seen."""
        self._world = world
        self._watch = watch
        self._clock = clock

    async def read(self, key: Key) -> Object | None:
        """The LLMDeployment as it is now; None if it is gone."""
        known = self._copies.get(key)
        if known is not None:
            return known
        try:
            found = await self._client.get(LLM_DEPLOYMENT, key.namespace, key.name)
        except NotFound:
            self._copies.drop(key)
            return None
        self._copies.tell(found)
        return found

    async def snapshot(self, raw: Object, answers: Mapping[str, Answer], shortages: Mapping[int, Shortage]) -> Snapshot:
        """Raises InvalidSpec if the stored object cannot be read by this release."""
        deployment, readable = read(LLMDeployment, raw)
        uid = deployment.metadata.uid
        groups = await self._groups(uid)
        return Snapshot(
            deployment=deployment,
            raw=readable,
            groups=groups,
            stray_incarnations=self._stray_incarnations(uid, groups),
            answers=answers,
            children=self._world.children_of(uid),
            pools={pool["metadata"]["name"]: pool for pool in self._world.pools.store.all()},
            shortages=shortages,
            missing_claims=await self._missing_claims(deployment),
            now=self._clock(),
            nodes=self._nodes(groups),
            facts=self._watch.facts(node for group in groups for node in nodes_of(group)),
            frozen=self._watch.frozen({group.pool for group in groups}),
            foreign_budgets=self._foreign_budgets(deployment),
        )

    def _foreign_budgets(self, deployment: LLMDeployment) -> tuple[str, ...]:
        budgets = self._world.foreign_budgets_in(deployment.metadata.namespace)
        pods = (pod["metadata"].get("labels") or {} for pod in self._world.pods_of(deployment.metadata.uid))
        return overlapping_budgets(budgets, pods)

    def _nodes(self, groups: Sequence[Group]) -> dict[str, NodeView]:
        """Nodes of the groups; one that nobody can read is as good as unknown."""
        views = {}
        for name in {node for group in groups for node in nodes_of(group)}:
            raw = self._world.nodes.store.get(None, name)
            if raw is not None:
                with suppress(ValueError):
                    views[name] = node_view(raw, "")
        return views

    async def _groups(self, uid: str) -> tuple[Group, ...]:
        pods = defaultdict(list)
        for pod in self._world.pods_of(uid):
            owner = parse.owner_of(pod, "ReplicaGroup")
            pods[owner["uid"] if owner else ""].append(pod)
        groups = []
        for replica_group in (*self._world.groups_of(uid), *self._granted(uid)):
            owner = parse.owner_of(replica_group, "LLMDeployment")
            assert owner is not None, "found by its owner"
            members = pods[replica_group["metadata"]["uid"]]
            members += await self._strayed(replica_group, members)
            groups.append(parse.group(replica_group, owner, members))
        return tuple(sorted(groups, key=lambda group: (group.group, group.incarnation)))

    def _stray_incarnations(self, uid: str, groups: Sequence[Group]) -> Mapping[int, int]:
        known = {group.uid for group in groups}
        found: dict[int, int] = {}
        for pod in self._world.pods_of(uid):
            owner = parse.owner_of(pod, "ReplicaGroup")
            if owner is None or owner["uid"] not in known:
                slot, incarnation = parse.incarnation(pod)
                found[slot] = max(found.get(slot, 0), incarnation)
        return found

    async def _strayed(self, replica_group: Object, members: list[Object]) -> list[Object]:
        """Members of a committed or retiring group that exist although the local copy lacks them."""
        metadata, spec = replica_group["metadata"], replica_group["spec"]
        made = parse.lifecycle(replica_group) in (labels.COMMITTED, labels.RETIRING)
        if not made or len(members) >= spec["members"]:
            return []
        present = {pod["metadata"]["name"] for pod in members}
        found = []
        for index in range(spec["members"]):
            name = pod_name(metadata["name"], index)
            if name in present:
                continue
            try:
                pod = await self._client.get(POD, metadata["namespace"], name)
            except NotFound:
                continue
            owner = parse.owner_of(pod, "ReplicaGroup")
            if owner is not None and owner["uid"] == metadata["uid"]:
                found.append(pod)
        return found

    async def _missing_claims(self, deployment: LLMDeployment) -> frozenset[str]:
        sources = (variant.source.persistent_volume_claim for variant in deployment.spec.model.variants)
        claims = {source.claim_name for source in sources if source is not None}
        namespace = deployment.metadata.namespace
        return frozenset([claim for claim in claims if not await self._claim_exists(namespace, claim)])

    async def _claim_exists(self, namespace: str, name: str) -> bool:
        found, at = self._claims.get((namespace, name), (False, float("-inf")))
        if 0 <= self._clock() - at < (CLAIM_SECONDS if found else NO_CLAIM_SECONDS):
            return found
        try:
            await self._client.get(PERSISTENT_VOLUME_CLAIM, namespace, name)
            found = True
        except NotFound:
            found = False
        if len(self._claims) > MOST_CLAIMS:
            self._claims.clear()
        self._claims[namespace, name] = found, self._clock()
        return found
