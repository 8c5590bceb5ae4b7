"""Placing one group: feasible exactly when a placement exists, best fit, reasons in words."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.capacity import Demand, Placement, Shortage, free, place
from berth.core.nodes import NodeView, Taint, Toleration
from berth.core.usage import Usage

GIB = 2**30
ZONE = "topology.kubernetes.io/zone"


def node(name: str, gpus: int = 8, **fields: object) -> NodeView:
    values: dict[str, object] = {
        "gpu_capacity": gpus,
        "gpu_allocatable": gpus,
        "cpu_millicores": 64_000,
        "memory_bytes": 512 * GIB,
        **fields,
    }
    return NodeView(name=name, **values)  # type: ignore[arg-type]


def reason(answer: Placement | Shortage) -> str:
    assert isinstance(answer, Shortage)
    return answer.reason


def test_takes_an_exact_fit_before_breaking_a_whole_node() -> None:
    nodes = [node("a"), node("b"), node("c")]
    used = {"b": Usage(gpus=4), "c": Usage(gpus=2)}
    assert place(Demand(1, 4), nodes, used) == Placement(("b",))
    assert place(Demand(1, 6), nodes, used) == Placement(("c",))
    assert place(Demand(1, 8), nodes, used) == Placement(("a",))


def test_each_member_gets_its_own_node() -> None:
    assert place(Demand(2, 4), [node("a")], {}) == Shortage("needs 2 nodes x 4 GPUs, the pool has 1 node", 1)
    assert place(Demand(2, 4), [node("b"), node("a")], {}) == Placement(("a", "b"))


def test_says_what_is_needed_and_the_best_that_is_free() -> None:
    nodes = [node("a"), node("b"), node("c")]
    used = {"b": Usage(gpus=1), "c": Usage(gpus=4)}
    assert place(Demand(2, 8), nodes, used) == Shortage("needs 2 nodes x 8 GPUs, best free 1 x 8", 1)
    used["a"] = Usage(gpus=1)
    assert place(Demand(1, 8), nodes, used) == Shortage("needs 1 node x 8 GPUs, best free 2 x 7", 0)
    full = {n.name: Usage(gpus=8) for n in nodes}
    assert place(Demand(1, 1), nodes, full) == Shortage("needs 1 node x 1 GPU, none free", 0)


def test_says_that_a_pool_is_empty() -> None:
    assert place(Demand(1, 1), [], {}, pool="h100") == Shortage("pool h100 has no nodes", 0)
    other = node("a", labels={"gpu": "a100"})
    assert reason(place(Demand(1, 1, node_selector={"gpu": "h100"}), [other], {}, pool="h100")).endswith("no nodes")


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (node("a", unschedulable=True), "a is cordoned"),
        (node("a", ready=False), "a is not ready"),
        (node("a", deleting=True), "a is being deleted"),
        (node("a", taints=(Taint("gpu", "sick", "NoExecute"),)), "a has taint gpu=sick:NoExecute"),
        (node("a", cpu_millicores=4000), "a has 4 cores free, 16 cores needed"),
        (node("a", memory_bytes=GIB), "a has 1.0 GiB of memory free, 64.0 GiB needed"),
    ],
)
def test_names_the_node_and_what_holds_it_back(held: NodeView, words: str) -> None:
    demand = Demand(1, 8, cpu_millicores=16_000, memory_bytes=64 * GIB)
    assert reason(place(demand, [held], {})) == f"needs 1 node x 8 GPUs, none free; {words}"


def test_names_three_nodes_and_counts_the_rest() -> None:
    nodes = [node(f"n{i}", unschedulable=True) for i in range(5)]
    assert reason(place(Demand(1, 1), nodes, {})).endswith("n0 is cordoned, n1 is cordoned, n2 is cordoned, and 2 more")


def test_a_toleration_opens_a_tainted_node_but_never_one_that_is_not_ready() -> None:
    everything = (Toleration(operator="Exists"),)
    tainted = node("a", taints=(Taint("nvidia.com/gpu", "", "NoSchedule"),))
    assert place(Demand(1, 1, tolerations=everything), [tainted], {}) == Placement(("a",))
    lost = node("a", ready=False, taints=(Taint("node.kubernetes.io/not-ready", "", "NoExecute"),))
    assert reason(place(Demand(1, 1, tolerations=everything), [lost], {})).endswith("a is not ready")


def test_a_node_that_the_volume_cannot_reach_does_not_fit() -> None:
    terms = [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["b"]}]}]
    demand = Demand(1, 1, volume_terms={"models": terms})
    nodes = [node("a", labels={ZONE: "a"}), node("b", labels={ZONE: "b"})]
    assert place(demand, nodes, {}) == Placement(("b",))
    assert reason(place(demand, nodes[:1], {})).endswith("a cannot reach volume models")


def test_preferred_nodes_come_first_and_avoided_ones_last() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert place(Demand(1, 8), nodes, {}, prefer={"c"}) == Placement(("c",))
    assert place(Demand(1, 8), nodes, {}, avoid={"a"}, prefer={"a", "b"}) == Placement(("b",))
    assert place(Demand(1, 8), nodes[:1], {}, avoid={"a"}) == Placement(("a",))
    assert place(Demand(3, 8), nodes, {}, avoid={"a"}) == Placement(("b", "c", "a"))


def test_an_excluded_node_is_never_taken_and_its_reason_is_given() -> None:
    answer = place(Demand(1, 8), [node("a")], {}, why_not=lambda _node: "has GPU fault Xid 79")
    assert reason(answer) == "needs 1 node x 8 GPUs, none free; a has GPU fault Xid 79"


def test_a_node_with_a_sick_gpu_is_the_last_choice() -> None:
    sick = node("a", gpu_allocatable=7)
    used = {"b": Usage(gpus=1)}
    assert place(Demand(1, 7), [sick, node("b")], used) == Placement(("b",))
    assert place(Demand(1, 7), [sick], {}) == Placement(("a",))


def test_a_successor_inherits_what_dying_members_hold() -> None:
    nodes = [node("a"), node("b")]
    used = {"a": Usage(gpus=8), "b": Usage(gpus=8)}
    dying = {"b": Usage(gpus=8)}
    assert isinstance(place(Demand(1, 8), nodes, used), Shortage)
    assert place(Demand(1, 8), nodes, used, reusable=dying) == Placement(("b",))
    # The sick GPU of the dying member is not inherited.
    nodes[1] = node("b", gpu_allocatable=7)
    assert isinstance(place(Demand(1, 8), nodes, used, reusable=dying), Shortage)


def test_a_demand_without_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 member with 1 GPU"):
        Demand(1, 0)


# --- laws -------------------------------------------------------------------------------------------------------------
small_nodes = st.builds(
    lambda gpus, cpu, memory, cordoned, ready, sick: {
        "gpu_capacity": gpus,
        "gpu_allocatable": max(0, gpus - sick),
        "cpu_millicores": cpu,
        "memory_bytes": memory,
        "unschedulable": cordoned,
        "ready": ready,
    },
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([True, True, True, False]),
    st.integers(0, 1),
)
clusters = st.lists(small_nodes, max_size=5).map(
    lambda fields: [NodeView(name=f"n{i}", **f) for i, f in enumerate(fields)]  # type: ignore[arg-type]
)
amounts = st.builds(Usage, st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
usages = st.dictionaries(st.sampled_from([f"n{i}" for i in range(5)]), amounts)
demands = st.builds(
    lambda members, gpus, cpu, memory: Demand(members, gpus, cpu_millicores=cpu, memory_bytes=memory),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 3),
)


def fits(demand: Demand, node: NodeView, used: dict[str, Usage]) -> bool:
    taken = used.get(node.name, Usage())
    return (
        node.ready
        and not node.unschedulable
        and taken.gpus + demand.gpus_per_member <= node.gpu_allocatable
        and (not demand.cpu_millicores or taken.cpu_millicores + demand.cpu_millicores <= node.cpu_millicores)
        and (not demand.memory_bytes or taken.memory_bytes + demand.memory_bytes <= node.memory_bytes)
    )


@given(clusters, usages, demands)
def test_finds_a_place_exactly_when_brute_force_does(
    nodes: list[NodeView], used: dict[str, Usage], demand: Demand
) -> None:
    possible = {
        frozenset(n.name for n in chosen)
        for chosen in combinations(nodes, demand.members)
        if all(fits(demand, n, used) for n in chosen)
    }
    answer = place(demand, nodes, used)
    if isinstance(answer, Placement):
        assert frozenset(answer.nodes) in possible
        assert len(answer.nodes) == demand.members
        left = sum(free(n, used).gpus for n in nodes if n.name in answer.nodes)
        assert left == min(sum(free(n, used).gpus for n in nodes if n.name in p) for p in possible) or any(
            n.unhealthy_gpus for n in nodes
        )
    else:
        assert not possible
        assert answer.reason


@given(clusters, usages, demands, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(
    nodes: list[NodeView],
    used: dict[str, Usage],
    demand: Demand,
    random: object,
) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(demand, nodes, used) == place(demand, shuffled, used)
