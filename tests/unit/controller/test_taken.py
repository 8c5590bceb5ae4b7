"""What is taken follows the local copies: the same as a look at everything, for the price of what changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth import labels
from berth.controller import taken
from berth.controller.taken import Granted, Taken, gpus_of, wanted_of
from berth.core.render.names import pod_name
from berth.core.usage import PodUsage, Reservation, Usage, bound_pods, pod_request, pod_usage, usage_by_node
from berth.kube.reflector import Store

GPU = "nvidia.com/gpu"
NODES = ("a", "b", "c")
NAMES = ("g0", "g1", "g2")


class World:
    """Two local copies that show what a test puts there, and see what it says they have seen."""

    def __init__(self) -> None:
        self.version = 0
        self.groups: Any = SimpleNamespace(store=Store(), has_seen=lambda version: int(version) <= self.version)
        self.pods: Any = SimpleNamespace(store=Store())


def group(name: str, uid: str, nodes: tuple[str, ...], lifecycle: str, version: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {labels.LIFECYCLE: lifecycle},
        },
        "spec": {"members": len(nodes), "plannedNodes": list(nodes), "allocation": {"tensorParallel": len(nodes)}},
    }


def pod(name: str, index: int, owner: str, node: str | None, gpus: int, phase: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": pod_name(name, index),
            "namespace": "ns",
            "uid": f"{owner}-{index}",
            "resourceVersion": "1",
            "labels": {labels.MEMBER_INDEX: str(index)},
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {"nodeName": node, "containers": [{"resources": {"limits": {GPU: str(gpus)}}}]},
        "status": {"phase": phase},
    }


def at_a_look(world: Any, granted: dict[str, tuple[dict[str, Any], Usage]]) -> dict[str, Usage]:
    """Everything, read anew."""
    shown = {each["metadata"]["uid"]: each for each in world.groups.store.all()}
    hidden = {
        uid: each
        for uid, (each, _) in granted.items()
        if not world.groups.has_seen(each["metadata"]["resourceVersion"])
    }
    reservations = []
    for uid, each in (hidden | shown).items():
        leader = world.pods.store.get("ns", pod_name(each["metadata"]["name"], 0))
        least = Usage(gpus=gpus_of(each) // each["spec"]["members"])
        member = pod_request(leader["spec"], GPU) if leader else granted[uid][1] if uid in granted else least
        if wanted_of([each]):
            reservations.append(Reservation(uid, tuple(each["spec"]["plannedNodes"]), member))
    used = usage_by_node(bound_pods(world.pods.store.all(), GPU), reservations)
    return {node: amount for node, amount in used.items() if amount != Usage()}


groups = st.tuples(
    st.just("group"),
    st.sampled_from(NAMES),
    st.integers(0, 1),
    st.lists(st.sampled_from(NODES), min_size=1, max_size=2, unique=True).map(tuple),
    st.sampled_from([labels.RESERVED, labels.COMMITTED, labels.RETIRING, labels.FAILED, ""]),
)
pods = st.tuples(
    st.just("pod"),
    st.sampled_from(NAMES),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([None, *NODES]),
    st.integers(0, 2),
    st.sampled_from(["Running", "Failed", ""]),
)
grants = st.tuples(
    st.just("grant"),
    st.sampled_from(NAMES),
    st.integers(0, 1),
    st.lists(st.sampled_from(NODES), min_size=1, max_size=2, unique=True).map(tuple),
    st.integers(1, 3),
)
seen = st.tuples(st.just("seen"))


@given(st.lists(st.one_of(groups, pods, grants, seen), max_size=25), st.sets(st.integers(0, 24)))
def test_it_is_what_a_look_at_everything_shows(history: list[tuple[Any, ...]], unasked: set[int]) -> None:
    """Whatever comes, changes, goes, is granted and shown late; several changes between two questions too."""
    world: Any = World()
    granted: dict[str, tuple[dict[str, Any], Usage]] = {}
    grants = Granted(world)
    books = Taken(world, grants, GPU)
    versions = 0
    for number, (kind, *what) in enumerate(history):
        if kind == "group":
            name, life, nodes, lifecycle = what
            if lifecycle and f"{name}-{life}" in granted:
                created = int(granted[f"{name}-{life}"][0]["metadata"]["resourceVersion"])
                if created > world.version:  # who shows it has seen everything up to its creation
                    world.version, versions = created, world.version + versions - created
                elif all(each["metadata"]["uid"] != f"{name}-{life}" for each in world.groups.store.all()):
                    continue  # gone, or else it had been shown: a UID never comes back
            there = group(name, f"{name}-{life}", nodes, lifecycle, world.version) if lifecycle else None
            world.groups.store.put(("ns", name), there)
        elif kind == "pod":
            name, life, index, node, gpus, phase = what
            there = pod(name, index, f"{name}-{life}", node, gpus, phase) if phase else None
            world.pods.store.put(("ns", pod_name(name, index)), there)
        elif kind == "grant":
            name, life, nodes, gpus = what
            uid = f"{name}-{life}"
            if uid in granted or any(each["metadata"]["uid"] == uid for each in world.groups.store.all()):
                continue  # a UID is created once
            versions += 1
            made = group(name, uid, nodes, labels.RESERVED, world.version + versions)
            granted[uid] = (made, Usage(gpus=gpus))
            grants.add(*granted[uid])
        else:
            world.version += versions
            versions = 0
        if number not in unasked:
            assert books.ledger.taken(NODES) == at_a_look(world, granted)


def test_only_what_changed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(manifest: dict[str, Any], resource: str) -> PodUsage | None:
        read.append(manifest["metadata"]["name"])
        return pod_usage(manifest, resource)

    monkeypatch.setattr(taken, "pod_usage", noted)
    world: Any = World()
    for number in range(100):
        world.groups.store.put(("ns", f"g{number}"), group(f"g{number}", f"u{number}", ("a",), labels.COMMITTED, 0))
        world.pods.store.put(("ns", pod_name(f"g{number}", 0)), pod(f"g{number}", 0, f"u{number}", "a", 1, "Running"))
    books = Taken(world, Granted(world), GPU)
    assert books.ledger.taken(NODES) == {"a": Usage(gpus=100)}
    read.clear()
    world.pods.store.put(("ns", pod_name("g7", 0)), None)
    world.pods.store.put(("ns", pod_name("g8", 0)), pod("g8", 0, "u8", "b", 1, "Running"))
    assert books.ledger.taken(NODES) == {"a": Usage(gpus=99), "b": Usage(gpus=1)}
    assert read == [pod_name("g8", 0)]
    assert books.ledger.taken(NODES) == {"a": Usage(gpus=99), "b": Usage(gpus=1)}
    assert len(read) == 1
