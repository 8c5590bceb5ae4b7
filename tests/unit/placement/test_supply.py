"""Rooms and layouts of a pool, against the arbiter's own placing of one group after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.api.gpupool import parse_gpupool
from berth.core import capacity
from berth.core.capacity import Demand, Placement
from berth.core.placement.supply import UNLIMITED, Supply, gpu_of, supply_of, supply_of_object
from berth.core.spread import SpreadGoal, layout_unavailability, standing_in
from berth.core.usage import Usage
from berth.errors import InvalidSpec
from tests.unit.placement.cases import ZONE, nodes, pool, supply


def one_after_the_other(source: Supply, demand: Demand, groups: int, needed: int) -> list[tuple[str, ...]]:
    """As the arbiter places them."""
    assert source.nodes is not None
    used, layout = dict(source.used), []
    by_name = {node.name: node for node in source.nodes}
    for _ in range(groups):
        standing = standing_in([[by_name[name] for name in names] for names in layout], ZONE)
        answer = capacity.place(demand, source.nodes, used, goal=SpreadGoal(ZONE, groups, needed, standing))
        if not isinstance(answer, Placement):
            break
        layout.append(answer.nodes)
        for name in answer.nodes:
            used[name] = used.get(name, Usage()) + demand.member
    return layout


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
    st.sampled_from([(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (2, 4)]),
    st.integers(1, 6),
    st.data(),
)
def test_groups_stand_where_the_arbiter_would_put_them(
    taken: list[int], shape: tuple[int, int], groups: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, groups))
    source = supply(count=len(taken), used={f"h100-{index}": gpus for index, gpus in enumerate(taken)})
    demand = Demand(*shape)
    if source.room_now(demand) < groups:
        return
    planned = source.lay_out(demand, groups, needed, ZONE)
    placed = one_after_the_other(source, demand, groups, needed)

    assert len(planned) == groups
    domains = source.domain_of(planned)
    assert source.nodes is not None
    known = {node.name: node.labels[ZONE] for node in source.nodes}
    if len(placed) == groups and shape[0] == 1:
        planned_down, placed_down = (
            layout_unavailability(Counter(zones[names[0]] for names in each).values(), needed, 1e-4, 1e-4)
            for each, zones in ((planned, domains), (placed, known))
        )
        assert planned_down == pytest.approx(placed_down, rel=0.1), "as available, if not in the same zones"
    use = Counter(name for names in planned for name in names)
    for name, members in use.items():
        assert source.used.get(name, Usage()).gpus + members * demand.gpus_per_member <= 8


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(2, 4), st.sampled_from([1, 2, 4, 8]))
def test_groups_over_several_nodes_stand_as_soon_as_there_is_room(taken: list[int], members: int, gpus: int) -> None:
    source = supply(count=len(taken), used={f"h100-{index}": used for index, used in enumerate(taken)})
    demand = Demand(members, gpus)
    groups = source.room_now(demand)
    planned = source.lay_out(demand, groups, 1, ZONE)

    assert len(planned) == groups
    assert all(len(set(names)) == members for names in planned), "each member on a node of its own"
    use = Counter(name for names in planned for name in names)
    assert all(source.used.get(name, Usage()).gpus + count * gpus <= 8 for name, count in use.items())


def test_room_is_what_is_free_and_what_there_is_in_total() -> None:
    source = supply(count=2, used={"h100-0": 6})
    assert (source.room_now(Demand(1, 4)), source.room(Demand(1, 4))) == (2, 4)
    assert (source.room_now(Demand(2, 4)), source.room(Demand(2, 4))) == (0, 2)


def test_a_budget_bounds_both() -> None:
    source = supply(count=2, used={"h100-0": 4}, gpuBudget=10)
    assert (source.room_now(Demand(1, 2)), source.room(Demand(1, 2))) == (3, 5)


def test_autoscaled_pools_and_unknown_nodes_have_room_for_all() -> None:
    assert supply(count=0, provisioning="Autoscaled").room_now(Demand(1, 8)) == UNLIMITED
    unknown = supply_of(pool(), "team", None, {})
    assert unknown.lay_out(Demand(2, 8), 2, 1, ZONE) == (("node-0-0", "node-0-1"), ("node-1-0", "node-1-1"))


def test_a_pool_without_nodes_says_so() -> None:
    assert supply(count=0).why_not == "pool h100 has no nodes"


def test_without_room_now_groups_stand_as_in_an_empty_pool() -> None:
    full = supply(count=2, used={"h100-0": 8, "h100-1": 8})
    assert full.lay_out(Demand(1, 8), 2, 1, ZONE) == (("h100-0",), ("h100-1",))


def test_the_pools_own_link_counts() -> None:
    assert gpu_of(pool()).link == "NVLink"
    slow = gpu_of(pool(interconnect="PCIe"))
    assert (slow.link, slow.link_bandwidth) == ("PCIe", 32e9)
    assert gpu_of(pool("b", "A100-PCIe-80", interconnect="NVLinkBridge")).link_domain == 2


def test_an_unknown_gpu_type_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(InvalidSpec, match=r"GPUPool x spec\.gpu: gpu 'H900' is not known: use one of H100-SXM-80"):
        gpu_of(pool("x", "H900"))


def told(**status: object) -> Supply:
    manifest = pool().model_dump(by_alias=True, exclude_none=True)
    return supply_of_object(parse_gpupool({**manifest, "status": status}), "team")


def test_an_object_tells_what_is_free() -> None:
    source = told(nodes=3, freePerNode={"8": 1, "3": 1})
    assert (source.room_now(Demand(1, 4)), source.room(Demand(1, 4))) == (2, 6)
    assert source.room_now(Demand(1, 3)) == 3
    assert told().nodes is None
    gpus = {"capacity": 24, "allocatable": 24, "unhealthy": 0}
    assert told(nodes=3, gpus={**gpus, "free": 0}).room_now(Demand(1, 1)) == 0, "full pools have no map"
    assert told(nodes=3, gpus=gpus).room_now(Demand(1, 8)) == 3


def test_an_object_whose_pool_overlaps_is_not_planned_with() -> None:
    overlap = {"type": "Overlap", "status": "True", "reason": "NodesInSeveralPools", "message": "two pools"}
    assert told(nodes=1, conditions=[{**overlap, "lastTransitionTime": ""}]).why_not == "two pools"


def test_nodes_of_unknown_domain_share_one() -> None:
    bare = [replace(node, labels={"pool": "h100"}) for node in nodes(count=2)]
    for source in (supply_of(pool(), "team", bare, {}), supply_of(pool(), "team", None, {})):
        layout = source.lay_out(Demand(1, 8), 2, 1, ZONE)
        assert set(source.domain_of(layout).values()) == {""}
    labelled = supply(count=2)
    assert set(labelled.domain_of(labelled.lay_out(Demand(1, 8), 2, 1, ZONE)).values()) == {"a", "b"}
