"""What one namespace may hold, over all its deployments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from berth.core.budgets import NamespaceCaps

counts = st.integers(0, 50)


def test_without_bounds_nothing_is_over() -> None:
    assert not NamespaceCaps().any
    assert NamespaceCaps().why_over("s", 10**6, 10**6, 8) is None


def test_the_reason_names_what_is_held_the_bound_and_the_remedy() -> None:
    over = NamespaceCaps(groups=2).why_over("search", 2, 4, 2)
    assert over == (
        "namespace search holds 2 of 2 groups that each namespace may have, another 2 GPUs are wanted: "
        "use fewer, or ask whoever runs Berth to raise its setting namespaceGroups"
    )
    assert "7 of 8 GPUs" in (NamespaceCaps(gpus=8).why_over("search", 3, 7, 2) or "")


@given(st.integers(1, 50), st.integers(1, 50), st.lists(st.integers(1, 8), max_size=60))
def test_whatever_is_asked_for_in_whatever_order_the_bounds_hold_and_are_used(
    groups: int, gpus: int, wishes: list[int]
) -> None:
    caps = NamespaceCaps(groups, gpus)
    held: list[int] = []
    for wish in wishes:
        if caps.why_over("s", len(held), sum(held), wish) is None:
            held.append(wish)
        else:
            assert len(held) == groups or sum(held) + wish > gpus, "refused without need"
    assert len(held) <= groups
    assert sum(held) <= gpus
