"""Several demands, one after the other: never overbooked, in order, nobody starved, dying members inherited."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.capacity import Demand, Placement, Request, Shortage, serve_in_order
from berth.core.nodes import NodeView
from berth.core.usage import Usage


def node(name: str, gpus: int = 8, cpu: int = 64_000) -> NodeView:
    return NodeView(name=name, gpu_capacity=gpus, gpu_allocatable=gpus, cpu_millicores=cpu, memory_bytes=2**40)


def test_what_one_takes_is_gone_for_the_next() -> None:
    requests = [Request(f"d{i}", Demand(1, 8)) for i in range(3)]
    answers = serve_in_order(requests, [node("a"), node("b")], {})
    assert answers["d0"] == Placement(("a",))
    assert answers["d1"] == Placement(("b",))
    assert answers["d2"] == Shortage("needs 1 node x 8 GPUs, none free", 0)


def test_two_gangs_never_hold_half_each() -> None:
    requests = [Request("x", Demand(2, 8)), Request("y", Demand(2, 8))]
    answers = serve_in_order(requests, [node("a"), node("b"), node("c")], {})
    assert answers["x"] == Placement(("a", "b"))
    assert isinstance(answers["y"], Shortage)


def test_a_stream_of_small_groups_does_not_starve_a_large_one() -> None:
    nodes = [node("a"), node("b")]
    used = {"a": Usage(gpus=2), "b": Usage(gpus=8)}
    large, small = Request("large", Demand(1, 8)), Request("small", Demand(1, 4))
    answers = serve_in_order([large, small], nodes, used)
    assert answers["large"] == Shortage("needs 1 node x 8 GPUs, best free 1 x 6", 0)
    kept = answers["small"]
    assert isinstance(kept, Shortage)
    assert kept.reason.endswith("a is kept for large, which waits longer")
    assert serve_in_order([small, large], nodes, used)["small"] == Placement(("a",)), "it is older"
    lending = Request("large", Demand(1, 8), lends={"a": 4})
    answers = serve_in_order([lending, small, Request("smaller", Demand(1, 1))], nodes, used)
    assert answers["small"] == Placement(("a",)), "what is lent can be taken"
    assert isinstance(answers["smaller"], Shortage), "and no more than that"


def test_what_can_never_fit_holds_nothing() -> None:
    answers = serve_in_order([Request("x", Demand(1, 16)), Request("y", Demand(1, 8))], [node("a")], {})
    assert isinstance(answers["x"], Shortage)
    assert answers["y"] == Placement(("a",))


def test_only_the_first_waiting_request_holds_nodes() -> None:
    nodes = [node("a"), node("b")]
    used = {"a": Usage(gpus=2), "b": Usage(gpus=3)}
    requests = [Request("x", Demand(1, 8)), Request("y", Demand(1, 8)), Request("z", Demand(1, 4))]
    assert serve_in_order(requests, nodes, used)["z"] == Placement(("b",))


def test_a_full_pool_replaces_a_failed_group_on_its_own_gpus() -> None:
    used = {"a": Usage(gpus=8), "b": Usage(gpus=8)}
    heir = Request("heir", Demand(1, 8), reusable={"b": Usage(gpus=8)})
    other = Request("other", Demand(1, 8), lends={})
    answers = serve_in_order([other, heir], [node("a"), node("b")], used)
    assert answers["heir"] == Placement(("b",))
    assert isinstance(answers["other"], Shortage)


def test_what_is_inherited_is_not_counted_twice() -> None:
    used = {"a": Usage(gpus=4)}
    heir = Request("heir", Demand(1, 4), reusable={"a": Usage(gpus=4)})
    answers = serve_in_order([heir, Request("other", Demand(1, 4))], [node("a")], used)
    assert answers == {"heir": Placement(("a",)), "other": Placement(("a",))}


def test_an_heir_that_needs_less_frees_nothing_before_the_dying_are_gone() -> None:
    used = {"a": Usage(gpus=8)}
    heir = Request("heir", Demand(1, 4), reusable={"a": Usage(gpus=8)})
    answers = serve_in_order([heir, Request("other", Demand(1, 4))], [node("a")], used)
    assert answers["heir"] == Placement(("a",))
    assert isinstance(answers["other"], Shortage)


demands = st.builds(
    lambda members, gpus, cpu: Demand(members, gpus, cpu_millicores=cpu),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 8),
)
clusters = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 16)), max_size=5).map(
    lambda sizes: [node(f"n{i}", gpus, cpu) for i, (gpus, cpu) in enumerate(sizes)]
)


@given(clusters, st.lists(st.tuples(demands, st.booleans()), max_size=6), st.integers(0, 8))
def test_never_overbooks(nodes: list[NodeView], wanted: list[tuple[Demand, bool]], taken: int) -> None:
    used = {nodes[0].name: Usage(gpus=min(taken, nodes[0].gpu_allocatable))} if nodes else {}
    requests = [Request(str(i), demand, lends={} if lends else None) for i, (demand, lends) in enumerate(wanted)]
    total = dict(used)
    for key, answer in serve_in_order(requests, nodes, used).items():
        if isinstance(answer, Placement):
            demand = wanted[int(key)][0]
            assert len(set(answer.nodes)) == demand.members
            for name in answer.nodes:
                total[name] = total.get(name, Usage()) + demand.member
    for n in nodes:
        booked = total.get(n.name, Usage())
        assert booked.gpus <= n.gpu_allocatable
        assert booked.cpu_millicores <= n.cpu_millicores


@given(clusters, st.lists(demands, min_size=1, max_size=5))
def test_a_younger_request_never_changes_the_answer_to_an_older_one(
    nodes: list[NodeView], wanted: list[Demand]
) -> None:
    requests = [Request(str(i), demand) for i, demand in enumerate(wanted)]
    everything = serve_in_order(requests, nodes, {})
    for count in range(len(requests)):
        first = serve_in_order(requests[:count], nodes, {})
        assert {key: _nodes(answer) for key, answer in first.items()} == {key: _nodes(everything[key]) for key in first}


def _nodes(answer: Placement | Shortage) -> tuple[str, ...]:
    return answer.nodes if isinstance(answer, Placement) else ()


@given(
    clusters,
    st.lists(demands, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 4)), max_size=8),
    st.booleans(),
    st.booleans(),
)
def test_what_did_not_fit_is_not_tried_again_and_nobody_gets_less_for_it(
    nodes: list[NodeView], kinds: list[Demand], order: list[tuple[int, int | None]], lends: bool, full: bool
) -> None:
    """The nodes are those that each gets who asks last, when nothing is known of the others; some are heirs."""
    used = {each.name: Usage(gpus=each.gpu_allocatable) for each in nodes} if full else {}
    dying = [{each.name: used[each.name]} for each in nodes if each.name in used]
    requests = [
        Request(
            str(number),
            kinds[kind % len(kinds)],
            lends={} if lends else None,
            reusable=dying[heir] if heir is not None and heir < len(dying) else {},
        )
        for number, (kind, heir) in enumerate([*order, (0, None)])
    ]
    together = serve_in_order(requests, nodes, used)
    for count in range(1, len(requests) + 1):
        alone = serve_in_order(requests[:count], nodes, used)
        assert _nodes(alone[str(count - 1)]) == _nodes(together[str(count - 1)])


@pytest.mark.parametrize("all_dead", [False, True])
def test_heirs_of_dead_nodes_in_a_full_pool_cost_a_look_at_each_node_and_not_one_each(all_dead: bool) -> None:
    """As when a zone is lost: each of them asks again with every change."""
    nodes = [node(f"n{number:03}") for number in range(200)]
    used = {each.name: Usage(gpus=8) for each in nodes}
    dead = nodes if all_dead else nodes[:100]
    requests = [Request(each.name, Demand(1, 8), reusable={each.name: used[each.name]}) for each in dead]
    looks = 0
    lost = frozenset(each.name for each in dead)

    def why_not(each: NodeView) -> str:
        nonlocal looks
        looks += 1
        return "is not ready" if each.name in lost else ""

    answers = serve_in_order(requests, nodes, used, why_not=why_not)
    assert all(isinstance(answer, Shortage) for answer in answers.values())
    assert looks <= 6 * len(nodes)
