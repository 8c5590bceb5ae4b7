"""The arrays of a pool say what going from node to node says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

from hypothesis import given

from berth.core.capacity import Demand, Placement, free, place
from berth.core.nodes import NodeView, held_back
from berth.core.stock import Stock
from berth.core.usage import Usage
from tests.unit.capacity.test_place import ZONE, clusters, demands, fits, node, usages


def fill(demand: Demand, nodes: list[NodeView], used: dict[str, Usage]) -> int:
    """Most groups that fit, by trying every set of nodes for every group."""
    best = 0
    for chosen in combinations(nodes, demand.members):
        if all(fits(demand, n, used) for n in chosen):
            more = dict(used)
            for n in chosen:
                more[n.name] = more.get(n.name, Usage()) + demand.member
            best = max(best, 1 + fill(demand, nodes, more))
    return best


@given(clusters.filter(lambda nodes: len(nodes) <= 4), usages, demands)
def test_counts_as_many_groups_as_brute_force(nodes: list[NodeView], used: dict[str, Usage], demand: Demand) -> None:
    assert Stock.of(nodes, used).groups(demand) == fill(demand, nodes, used)


@given(clusters.filter(lambda nodes: len(nodes) <= 4), demands)
def test_counts_what_an_empty_pool_holds_as_if_all_were_well(nodes: list[NodeView], demand: Demand) -> None:
    well = [replace(each, ready=True, unschedulable=False, deleting=False) for each in nodes]
    assert Stock.of(nodes, {}).ground.most(demand) == fill(demand, well, {})


@given(clusters, usages, demands)
def test_the_tightest_nodes_are_those_that_the_arbiter_takes(
    nodes: list[NodeView], used: dict[str, Usage], demand: Demand
) -> None:
    tightest = tuple(each.name for each in Stock.of(nodes, used).tightest(demand))
    taken = place(demand, nodes, used)
    assert (taken == Placement(tightest)) if isinstance(taken, Placement) else len(tightest) < demand.members


@given(clusters, usages, usages)
def test_what_is_put_one_by_one_is_what_is_found_at_once(
    nodes: list[NodeView], before: dict[str, Usage], after: dict[str, Usage]
) -> None:
    stock = Stock.of(nodes, before)
    kept = stock.copy()
    for name in before.keys() | after.keys():
        kept.put(name, after.get(name, Usage()))
    assert (kept.left == Stock.of(nodes, after).left).all()
    assert (stock.left == Stock.of(nodes, before).left).all(), "a copy changes nothing of what it was made from"
    rows = {each.name: tuple(row) for each, row in zip(kept.ground.nodes, kept.left.tolist(), strict=True)}
    assert rows == {
        each.name: (left.gpus, left.cpu_millicores, left.memory_bytes)
        for each, left in ((each, free(each, after)) for each in nodes)
    }


def test_free_per_node_shows_fragmentation() -> None:
    nodes = [node(f"n{i}") for i in range(4)] + [node("x", unschedulable=True)]
    assert Stock.of(nodes, {f"n{i}": Usage(gpus=5) for i in range(4)}).free_per_node() == {"3": 4}
    assert Stock.of(nodes, {"n0": Usage(gpus=4), "n1": Usage(gpus=8)}).free_per_node() == {"8": 2, "4": 1}


@given(clusters, usages)
def test_free_gpus_are_counted_on_nodes_that_take_pods(nodes: list[NodeView], used: dict[str, Usage]) -> None:
    counted = Counter(free(each, used).gpus for each in nodes if held_back(each, ()) is None)
    expected = [(str(gpus), counted[gpus]) for gpus in sorted(counted, reverse=True) if gpus]
    assert list(Stock.of(nodes, used).free_per_node().items()) == expected


def test_the_nodes_of_a_volume_count_for_it() -> None:
    terms = [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["b"]}]}]
    nodes = [node("a", labels={ZONE: "a"}), node("b", labels={ZONE: "b"})]
    demand = Demand(1, 4, volume_terms={"models": terms})
    assert (Stock.of(nodes, {}).groups(demand), Stock.of(nodes, {}).ground.most(demand)) == (2, 2)


def test_amounts_beyond_all_measure_are_large_and_not_an_error() -> None:
    endless = node("a", memory_bytes=10**30, cpu_millicores=10**25)
    stock = Stock.of([endless], {"a": Usage(2, 0, 10**29)})
    assert stock.groups(Demand(1, 2, cpu_millicores=1000, memory_bytes=2**40)) == 3
    assert stock.groups(Demand(1, 2, memory_bytes=10**31)) == 0
