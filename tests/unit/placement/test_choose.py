"""The search against brute force and against its own laws, with a toy for the models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berth.core.accept import check_allocation
from berth.core.budgets import NamespaceCaps
from berth.core.placement.choose import TIE, Answer, choose
from berth.core.placement.layouts import BATCH_SIZES, TOKEN_BUDGETS, Layout, in_one_node
from berth.core.placement.question import Question, question
from berth.core.placement.size import Candidate, Stage, size
from berth.core.placement.supply import Supply
from tests.unit.placement.cases import BF16, FP8, PROMISES, Toy, deployment, pool, supply

SEEDS = st.integers(0, 10**6)
RATES = st.sampled_from(["0.2", "1", "5.4", "12", "30", "100"])
H100 = supply()
A100 = supply("a100-40", "A100-SXM-40", "1.29")
PAIR = (H100, A100)
POOLS = (H100, A100, supply("a100-80", "A100-SXM-80", "1.79"), supply("h200", "H200-SXM-141", "3.79", 2))


def asked(rate: str = "5.4", **spec: Any) -> Question:
    given = deployment(**spec)
    traffic = given.spec.traffic.model_copy(update={"requests_per_second": rate})  # type: ignore[union-attr]
    return question(given.model_copy(update={"spec": given.spec.model_copy(update={"traffic": traffic})}))


def everything(wanted: Question, pools: Sequence[Supply], toy: Toy) -> list[Candidate]:
    """Every layout with every pair of batch limits, simulated."""
    candidates = []
    for source, variant in itertools.product(pools, wanted.variants):
        if source.gpu.why_not(variant.precision, "pytorch", variant.effective_kv_precision):
            continue
        for layout in in_one_node(wanted.model, source, variant):
            for batch, tokens in itertools.product(BATCH_SIZES, TOKEN_BUDGETS):
                limited = replace(layout, max_batch_size=batch, max_num_tokens=tokens)
                candidates.append(size(wanted, source, limited, toy, "simulate"))
    return [candidate for candidate in candidates if not candidate.rejected and not candidate.waits]


def price(candidate: Candidate | None) -> float:
    assert candidate is not None
    assert candidate.cost is not None
    return candidate.cost.per_hour


def answer(wanted: Question, pools: Sequence[Supply] = POOLS, toy: Toy | None = None, **options: Any) -> Answer:
    return choose(wanted, pools, toy or Toy(), **options)


@pytest.mark.slow
@settings(max_examples=20)
@given(SEEDS, RATES)
def test_it_is_never_worse_than_brute_force(seed: int, rate: str) -> None:
    """Told that every group carries 4 % less: batch limits are equal within 2 % of capacity, and there are two."""
    wanted, toy = asked(rate), Toy(seed)
    found = answer(wanted, PAIR, toy).chosen
    careful = Toy(seed, slow={source.name: 0.96 for source in PAIR})
    cheapest = min(map(price, everything(wanted, PAIR, careful)), default=None)

    if cheapest is not None:
        assert price(found) <= cheapest * (1 + TIE) + 1e-9
    if found is not None:
        assert found.layout in {each.layout for each in everything(wanted, PAIR, toy)}


@settings(max_examples=40)
@given(SEEDS, RATES, st.sampled_from(["Cost", "Latency", "Throughput"]))
def test_what_is_chosen_keeps_its_promises(seed: int, rate: str, prefer: str) -> None:
    limits = {"gpus": 20, "costPerHour": "45"}
    wanted = asked(rate, objectives={**PROMISES, "prefer": prefer, "limits": limits}, scaling={"min": 2, "max": 9})
    toy = Toy(seed)
    found = answer(wanted, toy=toy).chosen
    if found is None:
        return
    assert found.method == "simulate"
    assert found.load <= 0.9 + 1e-9
    assert found.groups >= max(found.needed, 2)
    assert found.groups <= 9
    assert found.gpus <= 20
    assert price(found) <= 45
    by_name = {source.name: source for source in POOLS}
    allocation = found.layout.allocation(found.groups)
    check_allocation(wanted.deployment, allocation, by_name[found.layout.pool].pool, wanted.model, "placement")


@settings(max_examples=25)
@given(SEEDS, RATES)
def test_the_order_of_pools_and_variants_does_not_matter(seed: int, rate: str) -> None:
    first = answer(asked(rate), POOLS, Toy(seed))
    again = answer(asked(rate, variants=(BF16, FP8)), POOLS[::-1], Toy(seed))
    assert [each.layout for each in first.candidates] == [each.layout for each in again.candidates]
    assert first.words == again.words


@given(SEEDS, st.lists(st.floats(0.1, 60), min_size=2, max_size=6, unique=True))
def test_more_load_never_needs_fewer_groups(seed: int, rates: list[float]) -> None:
    toy, layout = Toy(seed), Layout("h100", "fp8", 4)
    counts = []
    for rate in sorted(rates):
        sized = size(asked(f"{rate:.3f}"), H100, layout, toy, "simulate")
        if sized.capacity is not None and sized.capacity.load:
            counts.append(sized.groups_for_traffic)
    assert counts == sorted(counts)


@pytest.mark.slow
@settings(max_examples=15)
@given(SEEDS, RATES, st.floats(0.3, 0.99))
def test_a_tighter_objective_is_never_cheaper(seed: int, rate: str, tighter: float) -> None:
    """Tighter objectives lower the capacity of every group; the cheapest possible placement cannot get cheaper."""
    wanted, toy = asked(rate), Toy(seed)
    strict = Toy(seed, slow={source.name: tighter for source in PAIR})
    cheapest = min(map(price, everything(wanted, PAIR, toy)), default=float("inf"))
    stricter = min(map(price, everything(wanted, PAIR, strict)), default=float("inf"))
    assert stricter >= cheapest - 1e-9
    found = answer(wanted, PAIR, strict).chosen
    if found is not None:
        assert price(found) >= cheapest - 1e-9


@settings(max_examples=30)
@given(SEEDS, RATES, st.floats(0.001, 0.03))
def test_small_noise_does_not_move_what_is_in_force(seed: int, rate: str, noise: float) -> None:
    """Only an incumbent that got more than the tie band worse than the best is left."""
    wanted, quiet = asked(rate), Toy(seed)
    before = answer(wanted, toy=quiet).chosen
    if before is None:
        return
    after = answer(wanted, toy=Toy(seed, noise=noise), incumbent=before.layout)
    if after.chosen is None or after.chosen.layout == before.layout:
        return
    stayed = next(each for each in after.candidates if each.layout == before.layout)
    assert stayed.rejected or stayed.waits or price(stayed) > price(after.chosen) * (1 + TIE)


def test_few_are_simulated_and_all_are_screened() -> None:
    toy = Toy(3)
    found = answer(asked(), toy=toy)
    simulated = {layout for layout, method in toy.asked if method == "simulate"}
    assert found.chosen is not None
    assert found.chosen.layout in simulated
    assert len(simulated) <= 4
    assert {each.layout.pool for each in found.candidates} == {source.name for source in POOLS}


class Equal(Toy):
    """Every layout carries one request per second and GPU, so that only the rules tell them apart."""

    def fit(self, layout: Layout) -> Any:
        found = super().fit(layout)
        return replace(found, verdict="ok", kv_tokens_mid=1000 * layout.gpus)

    def capacity(self, layout: Layout, method: Any) -> Any:
        found = super().capacity(layout, method)
        return replace(found, load=float(layout.gpus), requests_per_second=float(layout.gpus))


def test_equal_candidates_go_to_the_smaller_failure_domain() -> None:
    found = answer(asked("0.8"), (H100,), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.gpus == 1


def test_equal_failure_domains_go_to_more_kv_room() -> None:
    class Roomy(Equal):
        def fit(self, layout: Layout) -> Any:
            return replace(super().fit(layout), kv_tokens_mid=9000 if layout.pool == "b" else 1000)

    found = answer(asked("0.8"), (supply("a", price="1.00"), supply("b", price="1.10")), Roomy())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "b"
    assert found.words == "within 15% of the cheapest (a bf16 tp1), with more KV room"


def test_the_cheaper_pool_wins_beyond_the_tie_band() -> None:
    found = answer(asked("0.8"), (supply("a", price="1.00"), supply("b", price="1.20")), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "a"
    assert found.words == "cheapest that meets all objectives"


def test_room_now_comes_before_price() -> None:
    full = supply("a", price="0.10", used={f"a-{index}": 8 for index in range(4)})
    found = answer(asked("0.8"), (full, supply("b", price="5")), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "b"
    waiting = next(each for each in found.candidates if each.layout.pool == "a")
    assert waiting.waits == "needs 1 group x 1 GPU, none fit now (free GPUs per node: none)"


def test_when_all_is_full_the_best_is_waited_for() -> None:
    full = [
        supply(name, price=price, used={f"{name}-{i}": 8 for i in range(4)}) for name, price in (("a", "1"), ("b", "9"))
    ]
    found = answer(asked("0.8"), full, Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "a"
    assert found.chosen.waits


def test_fragments_are_not_room() -> None:
    """12 free GPUs in four pieces of 3 hold no group of 4."""
    pieces = supply("a", used={f"a-{index}": 5 for index in range(4)})
    four = [{**FP8, "tensorParallel": 4, "gpus": ["H100-SXM-80"]}]
    found = answer(asked("0.8", variants=four), (pieces,), Equal())
    assert found.chosen is not None
    assert found.chosen.waits == "needs 1 group x 4 GPUs, none fit now (free GPUs per node: 4 x 3)"


@pytest.mark.parametrize(
    ("spec", "words", "cure"),
    [
        ({"objectives": {"limits": {"gpus": 3}}}, "limits.gpus is 3", "raise objectives.limits.gpus"),
        (
            {"objectives": {"limits": {"costPerHour": "5"}}},
            "limits.costPerHour is 5",
            "raise objectives.limits.costPerHour",
        ),
        ({"scaling": {"max": 1}, "objectives": {}}, "scaling.max is 1", "raise scaling.max"),
    ],
)
def test_limits_that_leave_nothing_are_named_with_the_cure(spec: dict[str, Any], words: str, cure: str) -> None:
    found = answer(asked("40", **spec), (H100,), Equal())
    assert found.chosen is None
    assert found.reason == "SLOInfeasible"
    assert words in found.words
    assert cure in found.words
    assert found.words.startswith("no placement is possible; closest is h100")


@pytest.mark.parametrize(
    ("caps", "held", "words", "cure"),
    [
        (NamespaceCaps(gpus=4), (1, 1), "namespace team may hold 3 GPUs beside its other deployments", "namespaceGpus"),
        (NamespaceCaps(groups=1), (0, 0), "namespace team may hold 1 group beside", "namespaceGroups"),
        (NamespaceCaps(9, 9), (9, 12), "namespace team may hold no groups beside", "namespaceGroups"),
    ],
)
def test_what_a_namespace_may_hold_bounds_the_placement_and_is_named(
    caps: NamespaceCaps, held: tuple[int, int], words: str, cure: str
) -> None:
    found = answer(asked("40"), (replace(H100, allowance=caps.left("team", *held)),), Equal())
    assert found.chosen is None
    assert words in found.words
    assert f"ask whoever runs Berth to raise its setting {cure}" in found.words


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 6), st.integers(0, 6))
def test_no_placement_needs_more_than_a_namespace_may_hold(gpus: int, held: int, groups: int, others: int) -> None:
    left = NamespaceCaps(groups, gpus).left("team", others, held)
    found = answer(asked("5"), (replace(H100, allowance=left),), Equal())
    if found.chosen is not None:
        assert found.chosen.gpus + held <= gpus
        assert found.chosen.groups + others <= groups


def test_too_small_a_pool_is_a_matter_of_capacity() -> None:
    found = answer(asked("40"), (supply(count=1),), Equal())
    assert found.reason == "WaitingForCapacity"
    assert found.words.endswith("needs 28 groups x 2 GPUs, pool h100 has room for 4: add nodes to pool h100")


def test_the_objective_that_fails_is_named_with_what_is_possible() -> None:
    class Slow(Equal):
        def capacity(self, layout: Layout, method: Any) -> Any:
            return replace(super().capacity(layout, method), load=0.0, latency=self._at(0.06, 0.5))

    found = answer(asked(), (H100,), Slow())
    assert found.words.endswith(
        "TPOT p95 60ms > 50ms with hardly any load: relax objectives.timePerOutputToken.p95 to 66ms"
    )


def test_absurd_traffic_is_refused_at_once() -> None:
    found = answer(asked("99999"), (H100,), Equal())
    assert found.chosen is None
    assert "groups x" in found.words


def test_no_pool_at_all_says_how_to_get_one() -> None:
    assert "berth pools discover" in answer(asked(), ()).words


def test_variants_run_only_where_they_were_made_for() -> None:
    built = {**FP8, "backend": "tensorrt", "gpus": ["H100-SXM-80"], "tensorParallel": 4, "pipelineParallel": 1}
    found = answer(asked(variants=[built]), (H100, A100), Equal())
    assert {each.layout.tensor_parallel for each in found.candidates if each.fit} == {4}
    assert [each.rejected.words for each in found.candidates if each.rejected] == [
        "variant fp8 is for H100-SXM-80, not A100-SXM-40"
    ]


def test_precisions_that_a_gpu_lacks_are_out_with_the_reason() -> None:
    found = answer(asked(variants=[FP8]), (A100,), Equal())
    assert found.chosen is None
    assert "A100 has no FP8: use bf16 or int4-awq" in found.words


def test_pools_without_price_or_in_another_currency_are_not_compared_by_cost() -> None:
    pools = (supply("a"), supply("b", price=None), supply("c", currency="EUR"), supply("d"))
    found = answer(asked(), pools, Equal())
    reasons = {each.layout.pool: each.rejected.words for each in found.candidates if each.rejected}
    assert reasons == {
        "b": "pool b has no pricePerGPUHour, so its cost cannot be compared",
        "c": "pool c is priced in EUR, others in USD",
    }
    fast = answer(asked(objectives={**PROMISES, "prefer": "Latency"}), pools, Equal())
    assert not any(each.rejected for each in fast.candidates)


def test_without_any_price_gpus_are_counted() -> None:
    found = answer(asked("0.8"), (supply("a", price=None),), Equal())
    assert found.chosen is not None
    assert found.chosen.cost is None
    assert found.chosen.gpus == 1


def test_reserved_gpus_are_used_first_because_they_are_paid_anyway() -> None:
    found = answer(asked("0.8"), (supply("a", price="1"), supply("b", price="9", billing="Reserved")), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "b"
    assert price(found.chosen) == 9
    assert found.chosen.cost is not None
    assert found.chosen.cost.added_per_hour == 0
    assert found.words == "adds nothing to the bill, as pool b is paid anyway, and meets all objectives"


def test_a_node_billed_whole_costs_its_idle_gpus_too() -> None:
    found = answer(asked("0.8"), (supply("a", price="1", billing="PerNode"), supply("b", price="5")), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "b"
    by_node = next(each for each in found.candidates if each.layout == Layout("a", "bf16"))
    assert price(by_node) == 8


def test_prefer_latency_takes_the_fastest_and_throughput_fills_the_limits() -> None:
    fast = answer(asked("0.8", objectives={**PROMISES, "prefer": "Latency"}), (H100,), Equal()).chosen
    assert fast is not None
    assert fast.layout.gpus == 8, "the same load is the smallest share of the largest group"
    limited = {**PROMISES, "prefer": "Throughput", "limits": {"gpus": 16}}
    most = answer(asked("0.8", objectives=limited), (H100,), Equal()).chosen
    assert most is not None
    assert most.gpus == 16


def test_availability_adds_groups_until_the_target_holds() -> None:
    relaxed = answer(asked("0.8", objectives={**PROMISES, "availability": "0.99"}), (H100,), Equal()).chosen
    strict = answer(asked("0.8", objectives={**PROMISES, "availability": "0.99999"}), (H100,), Equal()).chosen
    assert relaxed is not None
    assert strict is not None
    assert (relaxed.groups, strict.groups) == (1, 2)
    assert strict.needed == 1
    assert strict.available


def test_an_availability_that_nothing_reaches_is_missed_with_few_groups_and_a_reason() -> None:
    one_zone = supply(count=1)
    found = answer(asked("0.8", objectives={**PROMISES, "availability": "0.999999"}), (one_zone,), Equal()).chosen
    assert found is not None
    assert not found.available
    assert found.groups <= 2
    assert found.availability is not None
    assert found.availability.limited_by in ("loss of a zone", "loss of a node", "node repair time")


def test_pools_that_must_not_be_used_say_why() -> None:
    closed = supply("closed", allowedNamespaces={"names": ["other"]})
    found = answer(asked(), (closed, supply("open")), Equal())
    assert found.chosen is not None
    assert found.chosen.layout.pool == "open"
    rejected = next(each for each in found.candidates if each.layout.pool == "closed").rejected
    assert rejected is not None
    assert rejected.stage is Stage.UNSUPPORTED
    assert "not open to namespace team" in rejected.words


def test_a_budget_bounds_the_gpus_of_a_pool() -> None:
    found = answer(asked("40"), (supply(gpuBudget=8),), Equal())
    assert found.chosen is None
    assert "pool h100 has room for 4" in found.words


def test_a_model_too_large_for_a_node_spans_nodes() -> None:
    class Large(Equal):
        def fit(self, layout: Layout) -> Any:
            return replace(super().fit(layout), verdict="ok" if layout.gpus > 8 else "does-not-fit", reason="too large")

    found = answer(asked("3", model="llama-3.1-405b-instruct", variants=[BF16]), (H100,), Large()).chosen
    assert found is not None
    assert (found.layout.tensor_parallel, found.layout.pipeline_parallel) == (8, 2)


def test_stages_are_tried_inside_a_node_only_over_slow_links() -> None:
    pcie = supply("pcie", "A100-PCIe-80")
    assert {each.layout.pipeline_parallel for each in answer(asked(), (pcie,)).candidates if each.fit} == {1, 2, 4, 8}
    assert {each.layout.pipeline_parallel for each in answer(asked(), (H100,)).candidates if each.fit} == {1}


def test_tensor_parallelism_stays_inside_a_bridge() -> None:
    bridged = supply("nvl", "H100-NVL-94")
    found = answer(asked(), (bridged,)).candidates
    assert max(each.layout.tensor_parallel for each in found if each.fit) == 2


def test_an_unknown_gpu_is_said_and_hurts_nobody() -> None:
    strange = supply("strange", "H900-SXM-1000")
    found = answer(asked("0.8"), (strange, H100), Equal())
    assert found.chosen is not None
    rejected = next(each for each in found.candidates if each.layout.pool == "strange").rejected
    assert rejected is not None
    assert "gpu 'H900-SXM-1000' is not known" in rejected.words


def test_a_pool_that_is_being_deleted_is_left_alone() -> None:
    leaving = pool().model_copy(
        update={"metadata": pool().metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})}
    )
    from berth.core.placement.supply import supply_of

    found = answer(asked(), (supply_of(leaving, "team", [], {}),))
    assert "is being deleted" in found.words
