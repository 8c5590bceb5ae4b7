"""Many deployments ask one arbiter for nodes, in any order, while groups end and pods of others come and go.

The arbiter is the real one; the cluster is three stores. Never more is given away than there is, a group gets all its
nodes or none, nobody waits for ever, and a restart forgets no turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth import labels
from berth.api.gpupool import parse_gpupool
from berth.controller.arbiter import HOLD_SECONDS, ON_NODES, ONE_BY_ONE, Arbiter, Claim
from berth.controller.world import BY_DEPLOYMENT, deployment_key, owner_uid
from berth.core.capacity import Demand
from berth.core.observed import Shortage
from berth.core.spread import SpreadGoal
from berth.errors import Transient
from berth.kube.client import Listing
from berth.kube.reflector import Store

GPUS = 8
LABELS = {"pool": "h100"}
POOL = parse_gpupool(
    {
        "apiVersion": labels.API_VERSION,
        "kind": "GPUPool",
        "metadata": {"name": "h100", "uid": "pool"},
        "spec": {
            "gpu": "H100-SXM-80",
            "nodeSelector": LABELS,
            "resourceName": "nvidia.com/gpu",
            "gpusPerNode": GPUS,
        },
    }
)


@dataclass
class Room:
    """Nodes, ReplicaGroups and pods of others; time passes when a test says so."""

    nodes: int = 3
    now: float = 0.0
    groups: Store = field(default_factory=lambda: Store({BY_DEPLOYMENT: owner_uid}))
    pods: Store = field(default_factory=Store)
    quiet: set[str] = field(default_factory=set)
    """Nodes that give no sign of life any more."""
    others: dict[str, int] = field(default_factory=dict)
    """GPUs that pods of others take, by node."""
    listings: list[str] = field(default_factory=list)
    """Field selectors of what was asked for."""
    versions: list[str] = field(default_factory=list)
    """Which version each answer had to have at least."""
    version: int = 5
    """Of the API server."""
    before_list: Callable[[str], Awaitable[object]] | None = None
    """What goes on before pods of a node are listed, once."""
    after_list: Callable[[str], Awaitable[object]] | None = None
    """The same, while the answer is on its way."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        node_store = Store()
        for index in range(self.nodes):
            node = {
                "metadata": {
                    "name": f"n{index}",
                    "uid": f"n{index}",
                    "resourceVersion": "1",
                    "labels": {"pool": "h100"},
                },
                "status": {
                    "capacity": {"nvidia.com/gpu": str(GPUS)},
                    "allocatable": {"nvidia.com/gpu": str(GPUS), "cpu": "64", "memory": "1Ti"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
            node_store.put(("", f"n{index}"), node)
        self._world: Any = SimpleNamespace(
            nodes=SimpleNamespace(store=node_store),
            groups=SimpleNamespace(store=self.groups, has_seen=lambda version: True),
            groups_of=lambda uid: self.groups.by_index(BY_DEPLOYMENT, uid),
            pods=SimpleNamespace(store=self.pods, version="5"),
            sees=lambda pod: False,
            selectors_of_others=lambda: (None,),
        )
        self.restart()

    def restart(self) -> None:
        """Another process: whatever only the old one remembered is lost."""
        self.arbiter = Arbiter(
            self,  # type: ignore[arg-type]
            self._world,
            lambda: self.now,
            heard_since=lambda node, _at: node not in self.quiet,
        )

    # --- what the arbiter needs of the API ----------------------------------------------------------------------------
    async def create(self, group: dict[str, Any]) -> dict[str, Any]:
        group["metadata"] |= {"uid": str(next(self._numbers)), "resourceVersion": "1"}
        self.groups.put(("ns", group["metadata"]["name"]), group)
        return group

    async def list(self, kind: object, *, field_selector: str, not_older_than: str = "", **_any: object) -> Listing:
        self.listings.append(field_selector)
        self.versions.append(not_older_than)
        if not_older_than and int(not_older_than) > self.version:
            raise Transient("Too large resource version")
        name = field_selector.removeprefix("spec.nodeName=")
        if (meanwhile := self.before_list) is not None:
            self.before_list = None
            await meanwhile(name)
        names = [name] if name in self.others else sorted(self.others) if field_selector == ON_NODES else []
        found = [self._pod_of_others(each) for each in names if self.others[each]]
        if (meanwhile := self.after_list) is not None:
            self.after_list = None
            await meanwhile(name)
        return Listing(found, str(self.version))

    def _pod_of_others(self, node: str) -> dict[str, Any]:
        limits = {"resources": {"limits": {"nvidia.com/gpu": str(self.others[node])}}}
        return {"metadata": {"uid": f"others-{node}"}, "spec": {"nodeName": node, "containers": [limits]}}

    # --- what tests do ------------------------------------------------------------------------------------------------
    def ask(
        self,
        name: str,
        members: int,
        gpus: int,
        *,
        urgent: bool = False,
        waited: float = 0.0,
        doubted: frozenset[str] = frozenset(),
    ) -> Shortage | None:
        """One claim of deployment `name`; what it gets is called after it."""
        claim = Claim(
            key=deployment_key("ns", name),
            owner_uid=name,
            group=0,
            pool=POOL,
            demand=Demand(members, gpus),
            spread=SpreadGoal("topology.kubernetes.io/zone", 1, 0),
            inherits_from=frozenset(),
            own_check=True,
            why_not=None,
            make=lambda nodes: replica_group(name, nodes, members, gpus),
            urgent=urgent,
            waited=waited,
            doubted=dict.fromkeys(doubted, 1.0),
        )
        answer = asyncio.run(self.arbiter.reserve(claim))
        self.check()
        return answer

    def end(self, name: str) -> None:
        """Its group is gone, and it asks for nothing."""
        self.groups.put(("ns", name), None)
        self.arbiter.forget(deployment_key("ns", name))

    def holds(self, name: str) -> bool:
        return self.groups.get("ns", name) is not None

    def check(self) -> None:
        taken: dict[str, int] = {}
        for group in self.groups.all():
            planned, members = group["spec"]["plannedNodes"], group["spec"]["members"]
            assert len(set(planned)) == members, "all its nodes or none"
            for node in planned:
                each = group["spec"]["allocation"]["tensorParallel"] // members
                taken[node] = taken.get(node, 0) + each
        assert all(gpus <= GPUS for gpus in taken.values()), f"given away twice: {taken}"


def replica_group(name: str, nodes: tuple[str, ...], members: int, gpus: int) -> dict[str, Any]:
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "ReplicaGroup",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "labels": {labels.LIFECYCLE: labels.RESERVED},
            "ownerReferences": [
                {"apiVersion": labels.API_VERSION, "kind": "LLMDeployment", "uid": name, "controller": True}
            ],
        },
        "spec": {
            "group": "g0",
            "members": members,
            "allocation": {"pool": "h100", "tensorParallel": members * gpus},
            "plannedNodes": list(nodes),
        },
    }


@settings(max_examples=40)
@given(
    small=st.lists(st.tuples(st.integers(2, 4), st.integers(2, 9)), min_size=6, max_size=10),
    order=st.randoms(use_true_random=False),
    step=st.sampled_from([5.0, 45.0, 300.0]),
)
def test_a_stream_of_small_groups_never_starves_a_large_one(
    small: list[tuple[int, int]], order: Any, step: float
) -> None:
    """Each small one is followed by another as soon as it ends; the large one asks for two whole nodes of three.

    It has them as soon as everything on the nodes it keeps has ended twice: what stood there, and what it lent.
    """
    longest = max(life for _, life in small)
    patience = 5 + int(HOLD_SECONDS / step) + 2 * longest + 3
    room, left = Room(), {}
    steps = 0
    while not room.holds("large"):
        steps += 1
        assert steps <= patience, f"starved: {[group['metadata']['name'] for group in room.groups.all()]}"
        room.now += step
        for name in [name for name, until in left.items() if until <= steps]:
            room.end(name)
            del left[name]
        asking = [(f"small-{index}", 1, gpus) for index, (gpus, _) in enumerate(small)]
        if steps > 5:
            asking.append(("large", 2, GPUS))
        order.shuffle(asking)
        for name, members, gpus in asking:
            if not room.holds(name) and room.ask(name, members, gpus) is None and name != "large":
                left[name] = steps + small[int(name[6:])][1]


def test_what_is_idle_while_a_large_one_waits_is_lent_once_and_what_comes_free_is_kept() -> None:
    room = Room(nodes=2)
    assert room.ask("long", 1, 4) is None
    assert room.ask("short", 1, 8) is None
    assert isinstance(room.ask("large", 2, 8), Shortage)
    kept = room.ask("first", 1, 2)
    assert kept is not None
    assert "kept for ns/large g0, which waits longer" in kept.reason + kept.message
    room.now += HOLD_SECONDS
    assert room.ask("first", 1, 2) is None, "4 GPUs were idle"
    room.end("first")
    room.end("short")
    assert isinstance(room.ask("second", 1, 3), Shortage), "of what is lent 2 are left"
    assert room.ask("third", 1, 2) is None
    room.end("long")
    assert isinstance(room.ask("second", 1, 3), Shortage)
    room.end("third")
    assert room.ask("large", 2, 8) is None


def test_what_was_there_already_goes_before_growth() -> None:
    room = Room(nodes=1)
    assert room.ask("old", 1, 4) is None
    assert isinstance(room.ask("large", 1, 8), Shortage)
    room.end("old")
    assert room.ask("old", 1, 4, urgent=True) is None, "a lost group has its GPUs back"


def test_turns_survive_a_restart() -> None:
    room = Room(nodes=1)
    assert room.ask("old", 1, 8) is None
    assert isinstance(room.ask("first", 1, 8), Shortage)
    room.now += 30
    assert isinstance(room.ask("second", 1, 8), Shortage)
    room.restart()
    assert isinstance(room.ask("second", 1, 8, waited=0), Shortage)
    assert isinstance(room.ask("first", 1, 8, waited=30), Shortage)
    room.groups.put(("ns", "old"), None)
    assert isinstance(room.ask("second", 1, 8), Shortage)
    assert room.ask("first", 1, 8) is None


demands = st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 8]))


@settings(max_examples=40)
@given(
    wanted=st.lists(demands, min_size=2, max_size=5),
    fate=st.lists(st.tuples(st.sampled_from(["ask", "ask", "end", "others", "wait", "restart"]), st.integers(0, 9))),
    order=st.randoms(use_true_random=False),
)
def test_whoever_competes_in_the_end_everybody_was_served(
    wanted: list[tuple[int, int]], fate: list[tuple[str, int]], order: Any
) -> None:
    """No deadlock: whatever came before, as long as those that hold nodes end some day, all get their turn."""
    room = Room()
    names = [f"d{index}" for index in range(len(wanted))]
    for event, number in fate:
        name = names[number % len(names)]
        if event == "ask" and not room.holds(name):
            room.ask(name, *wanted[names.index(name)])
        elif event == "end":
            room.end(name)
        elif event == "others":
            node = f"n{number % 3}"
            free = GPUS - sum(
                group["spec"]["allocation"]["tensorParallel"] // group["spec"]["members"]
                for group in room.groups.all()
                if node in group["spec"]["plannedNodes"]
            )
            room.others[node] = 0 if room.others.get(node) else free
        elif event == "wait":
            room.now += 20.0 * number
        elif event == "restart":
            room.restart()
    room.others.clear()
    room.now += 20
    waiting = [name for name in names if not room.holds(name)]
    for _ in range(len(names) + 1):
        order.shuffle(waiting)
        served = [name for name in waiting if room.ask(name, *wanted[names.index(name)]) is None]
        waiting = [name for name in waiting if name not in served]
        if not waiting:
            return
        held = sorted(name for name in names if room.holds(name))
        assert held, f"nobody holds anything and {waiting} wait"
        for name in held:
            room.end(name)
        room.now += 20
    pytest.fail(f"{waiting} were never served")


def test_a_node_that_lost_a_member_without_a_word_gets_no_pod_before_it_was_heard_from() -> None:
    room = Room(nodes=2)
    room.quiet = {"n0", "n1"}
    shortage = room.ask("lost", 2, GPUS, doubted=frozenset({"n1"}))
    assert shortage is not None
    assert "1 lost a pod and was not heard from since" in shortage.message
    assert room.ask("other", 1, 1) is None, "what nobody doubts is used"
    room.end("other")
    room.quiet = set()
    assert room.ask("lost", 2, GPUS, doubted=frozenset({"n1"})) is None


@pytest.mark.parametrize("when", ["before_list", "after_list"])
def test_a_pod_of_others_that_somebody_else_finds_while_a_claim_looks_is_not_overlooked(when: str) -> None:
    """The status of a pool looks at nodes too, without the claim's lock."""
    room = Room(nodes=2)

    async def found_by_another_look(node: str) -> None:
        room.others[node] = GPUS
        room.now += 1
        await room.arbiter.refresh("nvidia.com/gpu", room.arbiter.nodes_of(POOL))

    setattr(room, when, found_by_another_look)
    assert room.ask("model", 1, GPUS) is None
    (group,) = room.groups.all()
    assert set(group["spec"]["plannedNodes"]).isdisjoint(room.others)


def test_many_nodes_are_looked_at_with_one_listing_and_few_each_alone() -> None:
    room = Room(nodes=ONE_BY_ONE + 1)
    room.others = {"n3": 5}
    nodes = room.arbiter.nodes_of(POOL)

    async def two_at_once() -> list[bool]:
        return await asyncio.gather(*(room.arbiter.refresh("nvidia.com/gpu", nodes) for _ in range(2)))

    assert asyncio.run(two_at_once()) == [True, True]
    assert room.listings == [ON_NODES], "the second waits for the answer of the first"
    assert {name: used.gpus for name, used in room.arbiter.used("nvidia.com/gpu", nodes).items()} == {"n3": 5}

    room.now += 60
    room.others = {"n2": 1}
    assert asyncio.run(room.arbiter.refresh("nvidia.com/gpu", nodes[:3]))
    assert room.listings[1:] == [f"spec.nodeName={node.name}" for node in nodes[:3]]
    assert asyncio.run(room.arbiter.refresh("nvidia.com/gpu", nodes))
    assert room.listings[4:] == [f"spec.nodeName={node.name}" for node in nodes[3:]], "few enough are left"
    assert {name: used.gpus for name, used in room.arbiter.used("nvidia.com/gpu", nodes).items()} == {"n2": 1}


def test_the_nodes_of_a_small_pool_in_a_large_cluster_are_looked_at_each_alone() -> None:
    room = Room(nodes=3 * ONE_BY_ONE)
    assert asyncio.run(room.arbiter.refresh("nvidia.com/gpu", room.arbiter.nodes_of(POOL)[: ONE_BY_ONE + 1]))
    assert len(room.listings) == ONE_BY_ONE + 1


def test_no_look_is_answered_from_before_an_earlier_one_unless_the_server_went_back() -> None:
    room = Room(nodes=1)
    room.version = 7
    assert room.ask("one", 1, 1) is None
    assert room.ask("two", 1, 1) is None
    assert room.versions == ["5", "7"], "first what the local copy has seen"
    room.version = 6
    with pytest.raises(Transient):
        room.ask("three", 1, 1)
    assert room.ask("three", 1, 1) is None
    assert room.versions[2:] == ["7", "5"]


def test_no_look_at_a_node_is_answered_from_before_a_look_at_all() -> None:
    room = Room(nodes=ONE_BY_ONE + 1)
    room.version = 7
    assert asyncio.run(room.arbiter.refresh("nvidia.com/gpu", room.arbiter.nodes_of(POOL)))
    assert room.ask("one", 1, 1) is None
    assert room.versions == ["", "7"], "the first is a consistent read"
