"""The ledger says at every moment what the sums over all pods and reservations say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from berth.core.ledger import Ledger
from berth.core.usage import PodUsage, Reservation, Usage, held_by, usage_by_node

NODES = ("a", "b", "c")
OWNERS = ("", "g0", "g1", "g2")
amounts = st.builds(Usage, st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
pods = st.builds(
    PodUsage,
    uid=st.just("uid"),
    node=st.sampled_from(NODES),
    amount=amounts,
    owner_uid=st.sampled_from(OWNERS),
    member_index=st.none() | st.integers(0, 2),
)
reservations = st.builds(
    lambda owner, nodes, member: Reservation(owner, tuple(nodes), member),
    st.sampled_from(OWNERS[1:]),
    st.lists(st.sampled_from(NODES), max_size=3),
    amounts,
)
changes = st.one_of(
    st.tuples(st.integers(0, 4), pods),
    st.tuples(st.integers(0, 4), st.none()),
    reservations,
    st.sampled_from(OWNERS[1:]),
)


@given(st.lists(changes, max_size=30), st.frozensets(st.sampled_from(OWNERS[1:])))
def test_it_says_what_the_sums_say_whatever_changed(
    history: list[tuple[int, PodUsage | None] | Reservation | str], without: frozenset[str]
) -> None:
    ledger = Ledger()
    standing: dict[int, PodUsage] = {}
    reserved: dict[str, Reservation] = {}
    for change in history:
        if isinstance(change, Reservation):
            reserved[change.owner_uid] = change
            ledger.reservation(change.owner_uid, change)
        elif isinstance(change, str):
            reserved.pop(change, None)
            ledger.reservation(change, None)
        else:
            key, now = change
            standing.pop(key, None)
            standing |= {key: now} if now else {}
            ledger.pod(key, now)
        bound, waiting = list(standing.values()), list(reserved.values())
        assert ledger.taken(NODES) == something(usage_by_node(bound, waiting))
        assert something(ledger.taken(NODES, without)) == something(
            usage_by_node(
                (each for each in bound if each.owner_uid not in without),
                (each for each in waiting if each.owner_uid not in without),
            )
        )
        assert ledger.held(without) == held_by(without, bound)


def something(used: dict[str, Usage]) -> dict[str, Usage]:
    return {node: amount for node, amount in used.items() if amount != Usage()}


def test_only_the_nodes_that_are_asked_for() -> None:
    ledger = Ledger()
    ledger.pod("p", PodUsage("p", "a", Usage(gpus=4)))
    ledger.pod("q", PodUsage("q", "b", Usage(gpus=4)))
    assert ledger.taken(["b", "c"]) == {"b": Usage(gpus=4)}
