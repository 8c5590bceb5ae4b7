"""What the worst loss of one node or domain leaves, against trying every loss."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from berth.core.spread import losses

NODES = [f"n{i}" for i in range(6)]
layouts = st.lists(st.sets(st.sampled_from(NODES), min_size=1, max_size=3), min_size=1, max_size=6)
domains = st.dictionaries(st.sampled_from(NODES), st.sampled_from("abc"))


@given(layouts, domains)
def test_no_single_loss_is_worse_than_what_is_said(groups: list[set[str]], domain_of: dict[str, str]) -> None:
    found = losses(groups, domain_of)
    assert found is not None

    def left(lost: set[str]) -> int:
        return sum(not members & lost for members in groups)

    used = set().union(*groups)
    assert found.after_node == min(left({node}) for node in used) == left({found.worst_node})
    if not used & set(domain_of):
        assert (found.domains, found.after_domain) == ({}, None)
        return
    named = {domain_of.get(node, "") for node in used}
    members = {domain: {node for node in used if domain_of.get(node, "") == domain} for domain in named}
    assert found.after_domain == min(map(left, members.values())) == left(members[found.worst_domain])
    assert found.domains == {domain: len(groups) - left(nodes) for domain, nodes in members.items()}
    assert found.after_domain <= found.after_node


def test_without_groups_there_is_nothing_to_lose() -> None:
    assert losses([], {"n0": "a"}) is None
