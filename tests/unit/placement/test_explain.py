"""The record and the five factors say what the figures are, in the units people read."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.api.placement import MAX_GROUPS
from berth.core.availability import Availability
from berth.core.placement import record
from berth.core.placement.choose import choose
from berth.core.placement.evaluate import Estimates, Memory
from berth.core.placement.explain import explain, limiting_term, why_split
from berth.core.placement.layouts import Layout
from berth.core.placement.question import question
from berth.core.placement.size import Candidate, Rejection, Stage, groups_for_load, size, uneven
from tests.unit.placement.cases import FP8, Toy, deployment, supply

ASKED = question(deployment(variants=[FP8]))
H100 = supply()
ESTIMATES = Estimates(ASKED, {"h100": H100}, Memory())


def sized(tensor: int, groups: int | None = None, **layout: int) -> Candidate:
    return size(ASKED, H100, Layout("h100", "fp8", tensor, **layout), ESTIMATES, groups=groups)


def number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


def test_the_factors_of_a_split_copy_are_its_own_figures() -> None:
    candidate = sized(2)
    assert candidate.latency is not None
    assert candidate.fit is not None
    factors = explain(ASKED, H100, candidate, ESTIMATES)
    here = ESTIMATES.factors(candidate.layout, candidate.latency.in_flight)

    assert factors.communication.startswith("160 all-reduces over NVLink take ")
    assert number(factors.communication, r"(\d+)% of a step") == round(100 * here.all_reduce_share)
    assert number(factors.parallelism, r"tp2: a step takes ([\d.]+)ms") == pytest.approx(here.step_time * 1e3, abs=0.06)
    assert "pp2 on as many GPUs would take" in factors.parallelism
    assert number(factors.parallelism, r"carries ([\d.]+) times what it would at tp1") > 1, "KV room makes up for it"
    assert number(factors.batch, r"([\d.]+) requests in flight") == pytest.approx(candidate.latency.in_flight, abs=0.06)
    assert number(factors.batch, r"([\d,]+) tokens of KV room") == candidate.fit.kv_tokens_mid
    shares = [float(each) for each in re.findall(r"(\d+)%", factors.bandwidth)]
    assert sum(shares) == pytest.approx(100, abs=3)
    assert 1 < number(factors.bandwidth, r"only ([\d.]+) times as fast") < 2


def test_a_split_is_justified_in_a_line() -> None:
    gain = number(why_split(sized(2), ESTIMATES), r"carries ([\d.]+) times what it would at tp1; all-reduces cost \d")
    assert gain > 1
    assert why_split(sized(1), ESTIMATES) == ""
    assert why_split(Candidate(Layout("h100", "fp8", 2)), ESTIMATES) == ""


def test_one_gpu_has_nobody_to_talk_to() -> None:
    factors = explain(ASKED, H100, sized(1), ESTIMATES)
    assert factors.communication == "none: one GPU holds the whole copy"
    assert factors.parallelism.startswith("not split: a step takes ")


def test_stages_do_not_shorten_a_token_and_are_not_validated() -> None:
    factors = explain(ASKED, H100, sized(1, pipeline_parallel=2), ESTIMATES)
    assert factors.communication.startswith("no all-reduce: 2 stages pass activations on")
    assert "rest on few measurements" in factors.parallelism


@pytest.mark.parametrize(
    ("groups", "needed", "words"),
    [
        (1, 1, "which is all there is: nothing serves for about 3m15s"),
        (4, 2, "3 of 4 groups serve on at"),
        (3, 3, ", 3 are needed: short for about 3m15s"),
    ],
)
def test_the_failure_of_one_gpu_is_told_by_what_it_takes_down(groups: int, needed: int, words: str) -> None:
    candidate = replace(sized(2, groups), needed=needed)
    told = explain(ASKED, H100, candidate, ESTIMATES).failure
    assert told.startswith("one lost GPU takes down its group of 2")
    assert words in told
    if groups == 4:
        assert told.endswith("losing any zone keeps 2, any node keeps 2 of 4 groups")


def test_what_limits_is_kv_room_where_it_is() -> None:
    tight = question(deployment(variants=[FP8], objectives={}))
    estimates = Estimates(tight, {"h100": H100}, Memory())
    candidate = size(tight, H100, Layout("h100", "fp8", 1), estimates)
    assert limiting_term(tight, candidate, estimates) == "KV room"
    assert limiting_term(ASKED, sized(4), ESTIMATES) != "KV room"


@given(st.floats(0.01, 500), st.floats(0.05, 20))
def test_groups_carry_the_load_with_headroom_and_one_less_would_not(load: float, capacity: float) -> None:
    groups = groups_for_load(load, capacity)
    if groups <= MAX_GROUPS:
        assert load * uneven(groups) <= 0.9 * capacity * groups * (1 + 1e-6)
    if groups > 1:
        assert load * uneven(groups - 1) > 0.9 * capacity * (groups - 1) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("down", "text"),
    [(0.0, "1.00000"), (5e-4, "0.99950"), (5.01e-4, "0.99949"), (1.23e-7, "0.99999987"), (0.25, "0.75000")],
)
def test_availability_is_never_rounded_up_to_a_target(down: float, text: str) -> None:
    candidate = Candidate(Layout("a", "b"), availability=Availability(1 - down, down, "x", {}))
    assert record.show_availability(candidate) == text


def test_at_most_ten_are_recorded_the_chosen_one_and_every_place_that_is_out_among_them() -> None:
    pools = [supply(f"pool-{index}", price=f"{index + 1}") for index in range(4)]
    pools.append(supply("old", "A100-SXM-40"))
    found = choose(ASKED, pools, Toy())
    chosen = found.candidates[-1]
    shown = record.selection(found.candidates, found.chosen)
    assert len(shown) == 10
    assert shown[0] is found.chosen
    assert "old" in {each.layout.pool for each in shown}
    assert len(found.candidates) > 10
    feasible = [each for each in found.candidates if not each.rejected]
    assert chosen is not None
    assert feasible[-1] in record.selection(found.candidates, feasible[-1]), "the one in force is never left out"


def test_of_each_pool_and_variant_that_is_out_the_closest_split_is_shown_first() -> None:
    out = [
        Candidate(Layout("a", "x", tensor), rejected=Rejection(Stage.MEMORY, f"tp{tensor}")) for tensor in (8, 4, 2, 1)
    ] + [Candidate(Layout("b", "x"), rejected=Rejection(Stage.UNSUPPORTED, "no"))]
    assert [each.layout.pool for each in record.selection(out, None, most=2)] == ["a", "b"]
    assert [each.layout.tensor_parallel for each in record.selection(out, None, most=4)] == [8, 1, 4, 2]
