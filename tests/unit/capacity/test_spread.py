"""The spread of groups over domains: best by brute force, with the number of needed groups in mind."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.capacity import Demand, Placement, Shortage, place
from berth.core.nodes import NodeView
from berth.core.spread import SpreadGoal, best_completion, layout_unavailability, score_domains, standing_in
from berth.core.usage import Usage

ZONE = "topology.kubernetes.io/zone"


def node(name: str, zone: str, gpus: int = 8) -> NodeView:
    return NodeView(name=name, labels={ZONE: zone} if zone else {}, gpu_capacity=gpus, gpu_allocatable=gpus)


def cluster(**zones: int) -> list[NodeView]:
    return [node(f"{zone}{i}", zone) for zone, count in zones.items() for i in range(count)]


def settle(nodes: list[NodeView], groups: int, needed: int, *, required: bool = False) -> dict[str, int]:
    """Place group after group, as the arbiter does; how many stand in each zone in the end."""
    by_name = {n.name: n for n in nodes}
    used: dict[str, Usage] = {}
    standing: dict[str, int] = {}
    for _ in range(groups):
        goal = SpreadGoal(ZONE, groups, needed, standing, required)
        answer = place(Demand(1, 8), nodes, used, goal=goal)
        if isinstance(answer, Shortage):
            break
        used[answer.nodes[0]] = Usage(gpus=8)
        standing = {**standing}
        zone = by_name[answer.nodes[0]].domain(ZONE)
        standing[zone] = standing.get(zone, 0) + 1
    return standing


def test_spreads_evenly_when_the_loss_of_a_zone_can_be_survived() -> None:
    assert settle(cluster(a=4, b=4), 4, 2) == {"a": 2, "b": 2}
    assert settle(cluster(a=4, b=4, c=4), 3, 2) == {"a": 1, "b": 1, "c": 1}
    assert settle(cluster(a=4, b=4), 2, 1) == {"a": 1, "b": 1}


def test_stays_in_one_zone_when_two_would_only_double_the_risk() -> None:
    assert sorted(settle(cluster(a=4, b=4), 4, 3).values()) in ([4], [1, 3])
    assert settle(cluster(a=4, b=4), 2, 2) == {"a": 2}


def test_goes_where_there_is_room() -> None:
    assert settle(cluster(a=1, b=4), 3, 1) == {"a": 1, "b": 2}
    assert settle(cluster(a=1, b=1, c=1), 2, 2) == {"a": 1, "b": 1}


def test_a_lost_group_comes_back_where_it_is_missing() -> None:
    nodes = cluster(a=4, b=4)
    goal = SpreadGoal(ZONE, 4, 2, {"a": 2, "b": 1})
    assert place(Demand(1, 8), nodes, {}, goal=goal) == Placement(("b0",))


def test_the_spread_comes_before_the_best_fit() -> None:
    nodes = [*cluster(a=2), node("b0", "b", gpus=16)]
    goal = SpreadGoal(ZONE, 2, 1, {"a": 1})
    assert place(Demand(1, 8), nodes, {}, goal=goal) == Placement(("b0",))


def test_a_group_over_several_nodes_stays_in_one_domain_if_one_has_room() -> None:
    nodes = cluster(a=1, b=3)
    goal = SpreadGoal(ZONE, 1, 1)
    assert place(Demand(2, 8), nodes, {}, goal=goal) == Placement(("b0", "b1"))
    used = {"b0": Usage(gpus=8), "b1": Usage(gpus=8)}
    assert place(Demand(2, 8), nodes, used, goal=goal) == Placement(("a0", "b2"))
    assert isinstance(place(Demand(2, 8), nodes, used, goal=SpreadGoal(ZONE, 2, 1, required=True)), Shortage)


def test_a_required_spread_rather_waits_than_breaks_the_promise() -> None:
    nodes = cluster(a=4)
    goal = SpreadGoal(ZONE, 2, 1, {"a": 1}, required=True)
    answer = place(Demand(1, 8), nodes, {}, goal=goal)
    assert isinstance(answer, Shortage)
    assert "one more group in a would leave fewer than 1 of 2 groups" in answer.reason
    assert answer.reason.endswith("set whenUnsatisfiable: Prefer")
    assert settle(cluster(a=4, b=1), 2, 1, required=True) == {"a": 1, "b": 1}


def test_unlabelled_nodes_share_a_domain() -> None:
    nodes = [node("x", ""), node("y", ""), node("z", "a")]
    assert settle(nodes, 2, 1) == {"": 1, "a": 1}


def test_a_group_over_several_domains_counts_in_each() -> None:
    groups = [[node("a0", "a"), node("b0", "b")], [node("b1", "b")]]
    assert standing_in(groups, ZONE) == {"a": 1, "b": 2}


counts = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=4)


@given(counts, counts, st.integers(1, 6), st.integers(1, 6))
def test_best_layout_is_the_best_of_all_layouts(
    standing: dict[str, int], room: dict[str, int], groups: int, needed: int
) -> None:
    goal = SpreadGoal(ZONE, groups, min(needed, groups), standing)
    layout, down = best_completion(goal, standing, room)
    domains = sorted({*standing, *room})
    missing = min(max(0, groups - sum(standing.values())), sum(room.values()))
    k = min(goal.needed, sum(standing.values()) + missing)
    best = min(
        layout_unavailability(
            [standing.get(d, 0) + more for d, more in zip(domains, added, strict=True)],
            k,
            goal.group_unavailability,
            goal.domain_unavailability,
        )
        for added in product(*(range(min(room.get(d, 0), missing) + 1) for d in domains))
        if sum(added) == missing
    )
    assert down == pytest.approx(best)
    assert sum(layout.values()) == sum(standing.values()) + missing
    assert all(layout.get(d, 0) - standing.get(d, 0) in range(room.get(d, 0) + 1) for d in domains)


def test_large_layouts_are_as_even_as_small_ones() -> None:
    goal = SpreadGoal(ZONE, 40, 30)
    layout, _ = best_completion(goal, {}, {f"z{i}": 40 for i in range(8)})
    assert set(layout.values()) == {5}


@pytest.mark.parametrize("needed", [3, 5, 7, 8, 9])
@pytest.mark.parametrize("room", [(9, 9, 9, 9, 9), (6, 4, 3, 2, 1), (3, 3, 2, 2, 2)])
def test_layouts_too_many_to_compare_all_are_close_to_the_best(needed: int, room: tuple[int, ...]) -> None:
    goal = SpreadGoal(ZONE, 9, needed)
    _, down = best_completion(goal, {}, {f"z{i}": more for i, more in enumerate(room)})
    best = min(
        layout_unavailability(counts, needed, goal.group_unavailability, goal.domain_unavailability)
        for counts in product(*(range(more + 1) for more in room))
        if sum(counts) == 9
    )
    assert best <= down <= 1.5 * best


def test_many_hosts_are_scored_by_kind() -> None:
    goal = SpreadGoal("kubernetes.io/hostname", 6, 4, {"n000": 1})
    scores = score_domains(goal, {f"n{i:03}": 1 for i in range(300)})
    assert len(scores) == 300
    assert scores["n001"] == min(scores.values()) < scores["n000"]
