"""Groups in failure domains: exact against enumeration, close to simulation, monotone, and never a wrong input."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.core.availability import (
    COMMON_CAUSE,
    DETECTION,
    OWN_FAILURES,
    Availability,
    Domain,
    Group,
    WorstLoss,
    availability,
    fewer_than,
    groups_for,
    load_after_group_loss,
    unavailability,
    up_distribution,
    worst_loss,
)

DAY = 86400.0


def by_enumeration(groups: list[Group], needed: int, domains: list[Domain]) -> float:
    """Every joint state of every group and every domain."""
    tree = {d.name: d for d in domains}

    def hit(name: str, down: dict[str, bool]) -> bool:
        parent = tree[name].parent
        return down[name] or (parent is not None and hit(parent, down))

    total = 0.0
    for states in product([False, True], repeat=len(domains) + len(groups)):
        down = {d.name: state for d, state in zip(domains, states, strict=False)}
        own = states[len(domains) :]
        weight = math.prod(d.unavailability if down[d.name] else 1 - d.unavailability for d in domains)
        up = 0
        for group, failed in zip(groups, own, strict=True):
            u = group.failures_per_second * group.recovery_seconds
            u = u / (1 + u)
            weight *= u if failed else 1 - u
            up += not failed and not any(hit(name, down) for name in group.domains)
        total += weight * (up < needed)
    return total


TREE = [
    Domain("pool", "pool", 0.02),
    Domain("zone-a", "zone", 0.1, "pool"),
    Domain("zone-b", "zone", 0.05, "pool"),
    Domain("a1", "node", 0.2, "zone-a"),
    Domain("a2", "node", 0.3, "zone-a"),
    Domain("b1", "node", 0.25, "zone-b"),
    Domain("b2", "node", 0.15, "zone-b"),
]
leaves = st.lists(st.sampled_from(["a1", "a2", "b1", "b2"]), max_size=3, unique=True).map(tuple)
some_groups = st.lists(st.builds(Group, st.floats(0, 0.5), st.floats(0.1, 2), leaves), min_size=1, max_size=4)


@given(some_groups, st.integers(0, 5))
def test_equals_the_enumeration_of_all_states(groups: list[Group], needed: int) -> None:
    exact = availability(groups, needed, TREE)
    assert exact.unavailability == pytest.approx(by_enumeration(groups, needed, TREE), abs=1e-12)
    assert exact.value == 1 - exact.unavailability


def test_agrees_with_simulation() -> None:
    groups = [Group(0.1, 1, ("a1",)), Group(0.2, 1, ("a1", "a2")), Group(0.1, 2, ("b1",)), Group(0.05, 1, ("a2", "b2"))]
    rng = random.Random(1)
    tree = {d.name: d for d in TREE}
    samples = 20_000
    short = 0
    for _ in range(samples):
        down = {d.name: rng.random() < d.unavailability for d in TREE}
        for name in ("zone-a", "zone-b", "a1", "a2", "b1", "b2"):
            parent = tree[name].parent
            down[name] = down[name] or (parent is not None and down[parent])
        up = 0
        for group in groups:
            load = group.failures_per_second * group.recovery_seconds
            up += rng.random() >= load / (1 + load) and not any(down[n] for n in group.domains)
        short += up < 2
    predicted = availability(groups, 2, TREE).unavailability
    spread = math.sqrt(predicted * (1 - predicted) / samples)
    assert abs(short / samples - predicted) < 4 * spread


def test_many_shared_domains_are_bounded_from_above_and_closely() -> None:
    # Groups on a ring of nodes: every node is shared by two groups, more of them than are enumerated.
    size = 14
    nodes = [Domain(f"n{i}", "node", 1e-3) for i in range(size)]
    groups = [Group(0, 1, (f"n{i}", f"n{(i + 1) % size}")) for i in range(size)]
    rough = availability(groups, size - 2, nodes).unavailability
    # Any failed node takes two groups; fewer than size - 2 up needs two failed nodes.
    exact = math.fsum(math.comb(size, k) * 1e-3**k * (1 - 1e-3) ** (size - k) for k in range(2, size + 1))
    four_at_once = math.comb(size, 4) * 1e-12
    assert exact * (1 - 1e-9) <= rough <= exact + four_at_once


probabilities = st.lists(st.floats(0, 1), max_size=6)


@given(probabilities, st.integers(0, 7))
def test_counts_are_a_distribution(downs: list[float], needed: int) -> None:
    up = up_distribution(downs)
    assert sum(up) == pytest.approx(1)
    assert fewer_than(needed, up) <= fewer_than(needed + 1, up)


@given(some_groups, st.integers(1, 4), st.floats(0, 0.5))
def test_more_failures_are_never_better(groups: list[Group], needed: int, more: float) -> None:
    worse = [Group(g.failures_per_second + more, g.recovery_seconds, g.domains) for g in groups]
    assert availability(groups, needed, TREE).unavailability <= availability(worse, needed, TREE).unavailability + 1e-12


@given(some_groups, st.integers(1, 4))
def test_one_more_group_is_never_worse_when_the_same_number_is_needed(groups: list[Group], needed: int) -> None:
    more = [*groups, Group(0.1, 1, ("a1",))]
    assert availability(more, needed, TREE).unavailability <= availability(groups, needed, TREE).unavailability + 1e-12


@given(some_groups, st.integers(1, 4))
def test_needing_more_is_never_better(groups: list[Group], needed: int) -> None:
    assert (
        availability(groups, needed, TREE).unavailability
        <= availability(groups, needed + 1, TREE).unavailability + 1e-12
    )


@given(some_groups, st.integers(1, 4), st.floats(0, 1e4))
def test_now_is_never_worse_than_the_long_run(groups: list[Group], needed: int, seconds: float) -> None:
    now = availability(groups, needed, TREE, at_seconds=seconds).unavailability
    assert now <= availability(groups, needed, TREE).unavailability + 1e-12


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        (OWN_FAILURES, {}),
        (COMMON_CAUSE, {"common_cause": 0.5}),
        (DETECTION, {"detect_seconds": 100.0}),
        ("loss of a zone", {"domains": [Domain("z", "zone", 0.01)]}),
    ],
)
def test_names_the_term_that_binds(expected: str, arguments: dict[str, object]) -> None:
    domain = ("z",) if "domains" in arguments else ()
    groups = [Group(1 / (47 * DAY), 560, domain)] * 2
    assert availability(groups, 1, **arguments).limited_by == expected  # type: ignore[arg-type]


def test_says_when_there_are_simply_too_few_groups() -> None:
    answer = availability([Group(1e-9, 100)], 2)
    assert answer.value == 0
    assert answer.limited_by == "1 groups, 2 needed"


def test_requests_lost_to_detection_count_only_while_others_serve() -> None:
    alone = [Group(1e-6, 100)]
    assert availability(alone, 1, detect_seconds=10) == availability(alone, 1)
    assert availability(alone * 2, 1, detect_seconds=10).terms[DETECTION] == pytest.approx(1e-5)


def test_unreachable_target_gives_the_best_and_what_binds_it() -> None:
    zone = [Domain("z", "zone", 1e-3)]
    answer = groups_for(0.9999, 1, 5, lambda n: availability([Group(1 / (47 * DAY), 560, ("z",))] * n, 1, zone))
    assert answer.groups is None
    assert answer.best_groups == 5
    assert answer.best.limited_by == "loss of a zone"
    with pytest.raises(ValueError, match="at most 1 groups are allowed, 2 are needed"):
        groups_for(0.9, 2, 1, lambda n: Availability(1, 0, "", {}))


def test_load_after_losing_a_group() -> None:
    assert load_after_group_loss(0.6, 3) == pytest.approx(0.9)
    assert load_after_group_loss(0.6, 1) == math.inf


def test_worst_loss_names_the_domain_that_takes_most_groups() -> None:
    groups = [Group(0, 1, ("a1", "a2")), Group(0, 1, ("a1",)), Group(0, 1, ("b1",))]
    assert worst_loss(groups, TREE) == {
        "node": WorstLoss("a1", 1),
        "zone": WorstLoss("zone-a", 1),
        "pool": WorstLoss("pool", 0),
    }


@pytest.mark.parametrize(
    ("groups", "domains", "message"),
    [
        ([Group(0, 1, ("x",))], [], "unknown failure domain 'x'"),
        ([], [Domain("x", "zone", 1.5)], "within 0..1"),
        ([], [Domain("x", "zone", 0.1, "y"), Domain("y", "zone", 0.1, "x")], "has a loop"),
        ([Group(-1, 1)], [], "must not be negative"),
        ([Group(math.nan, 1)], [], "must not be negative"),
    ],
)
def test_refuses_nonsense(groups: list[Group], domains: list[Domain], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        availability(groups, 1, domains)


def test_tiny_unavailabilities_are_not_rounded_away() -> None:
    down = unavailability(47 * DAY, 195)
    answer = availability([Group(1 / (47 * DAY), 195)] * 4, 1)
    assert answer.unavailability == pytest.approx(down**4, rel=1e-9)
    assert answer.unavailability < 1e-17
