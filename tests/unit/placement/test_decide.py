"""When a deployment is placed anew and when it stays, with the real estimator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from berth import labels
from berth.api.llmdeployment import LLMDeployment
from berth.api.placement import Allocation
from berth.api.replicagroup import GroupAllocation
from berth.api.status import LLMDeploymentStatus
from berth.core.conditions import Condition
from berth.core.observed import Group, Shortage, Snapshot
from berth.core.placement import tell
from berth.core.placement.decide import Decision, decide, kept
from berth.core.placement.evaluate import Memory
from berth.core.placement.question import spec_hash
from berth.core.placement.supply import Supply
from berth.errors import InvalidSpec
from tests.unit.placement.cases import BF16, PROMISES, deployment, supply

MEMORY = Memory()
CHEAP, DEAR = supply("cheap", "A100-SXM-40", "0.50"), supply("dear", price="9.90")
SMALL = {
    "requestsPerSecond": "2",
    "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
    "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
}


def small(moves: str = "Auto", **spec: Any) -> LLMDeployment:
    """An 8B model."""
    placement = {"moves": {"mode": moves}, "pools": spec.pop("pools", [])}
    given = {"model": "llama-3.1-8b-instruct", "variants": [BF16], "traffic": SMALL, "placement": placement}
    return deployment(**{**given, **spec})


def snapshot(
    wanted: LLMDeployment,
    status: Mapping[str, Any] | None = None,
    groups: Sequence[Group] = (),
    shortages: Mapping[int, Shortage] | None = None,
) -> Snapshot:
    return Snapshot(
        deployment=wanted,
        raw={"status": json.loads(json.dumps(status))} if status else {},
        groups=tuple(groups),
        stray_incarnations={},
        answers={},
        children={},
        pools={name: {} for name in ("cheap", "dear")},
        shortages=shortages or {},
        missing_claims=frozenset(),
        now=1000.0,
    )


def group(
    index: int = 0, pool: str = "cheap", created: float = 1.0, lifecycle: str = labels.COMMITTED, **shape: Any
) -> Group:
    allocation = GroupAllocation(pool=pool, variant="bf16", **shape)
    return Group(f"g{index}", f"uid-{index}", index, 1, lifecycle, allocation, "hash", 1, created, pool)


def decided(wanted: LLMDeployment, *pools: Supply, **seen: Any) -> Decision:
    return decide(snapshot(wanted, **seen), pools or (CHEAP, DEAR), MEMORY)


def placed(decision: Decision) -> str:
    assert decision.allocation is not None
    return decision.allocation.pool


def outdated(decision: Decision) -> Condition:
    return next(each for each in tell.conditions(decision.status) if each.type == "PlacementOutdated")


@pytest.fixture(scope="module")
def first() -> Decision:
    """The first placement of an 8B model: on the cheap pool."""
    found = decided(small())
    assert placed(found) == "cheap"
    return found


def test_the_record_is_valid_status_and_says_what_was_decided_from(first: Decision) -> None:
    status = LLMDeploymentStatus.model_validate(first.status, extra="forbid")
    assert status.placement is not None
    assert status.placement.spec_hash == spec_hash(small().spec)
    assert status.placement.groups_for_traffic == first.groups_for_traffic
    assert status.candidates[0].chosen
    assert [bool(each.factors) for each in status.candidates].count(True) == 2
    assert len(status.candidates) <= 10
    assert not outdated(first).status


def test_a_recorded_decision_is_kept_without_asking_any_model(first: Decision) -> None:
    again = kept(snapshot(small(), first.status, [group()]))
    assert again is not None
    assert again.allocation == first.allocation
    assert again.groups_for_traffic == first.groups_for_traffic
    assert again.status == first.status


@pytest.mark.parametrize(
    "spec",
    [
        {"pause": "Changes"},
        {"pod": {"priorityClassName": "high"}},
        {"moves": "Off"},
        {"update": {"deadline": "30m"}},
        {"replicas": 5},
        {"variants": [{**BF16, "source": {"huggingFace": {"repository": "a/b"}}}]},
    ],
)
def test_edits_that_ask_for_nothing_else_keep_it(first: Decision, spec: dict[str, Any]) -> None:
    assert kept(snapshot(small(**spec), first.status, [group()])) is not None


@pytest.mark.parametrize(
    "spec",
    [
        {"traffic": {**SMALL, "requestsPerSecond": "3"}},
        {"objectives": {}},
        {"pools": ["dear"]},
        {"scaling": {"min": 2}},
        {"replicaGroups": {"minAvailable": 2}},
        {"variants": [BF16, {**BF16, "name": "second"}]},
        {"engine": {"backend": "simulated"}},
    ],
)
def test_edits_that_ask_for_something_else_are_planned(first: Decision, spec: dict[str, Any]) -> None:
    assert kept(snapshot(small(**spec), first.status, [group()])) is None


def test_while_changes_are_paused_nothing_is_planned(first: Decision) -> None:
    assert kept(snapshot(small(pools=["dear"], pause="Changes"), first.status, [group()])) is not None


def test_prices_and_capacity_move_nobody(first: Decision) -> None:
    assert kept(snapshot(small(), first.status, [group()])) is not None
    now_dear, now_full = supply("cheap", "A100-SXM-40", "99"), supply("dear", used={f"dear-{i}": 8 for i in range(4)})
    wiped = decided(small(), now_dear, now_full, groups=[group(max_batch_size=64)])
    assert placed(wiped) == "cheap"


def test_live_groups_without_a_status_are_adopted_as_they_are() -> None:
    live = [group(index, "dear", tensor_parallel=2, max_batch_size=48, max_num_tokens=4096) for index in range(3)]
    found = decided(small(), groups=live)
    assert found.allocation is not None
    shape = {"pool": "dear", "variant": "bf16", "tensorParallel": 2, "maxBatchSize": 48, "maxNumTokens": 4096}
    assert found.allocation == Allocation.model_validate({**shape, "groups": 3})
    assert kept(snapshot(small(), found.status, live)) is not None


@pytest.mark.parametrize("rate", ["20", "400"])
def test_live_groups_that_carry_less_than_was_planned_for_are_adopted_too(rate: str) -> None:
    """There was less to do for long, so there are few; then status was lost, or a move got here."""
    planned = small(traffic={**SMALL, "requestsPerSecond": rate})
    decision = decided(planned, groups=[group(0)])
    assert decision.allocation is not None
    assert (placed(decision), decision.allocation.groups) == ("cheap", 1)
    assert decision.groups_for_traffic > 1
    LLMDeploymentStatus.model_validate(decision.status)
    (here,) = [each for each in decision.status["candidates"] if each["chosen"]]
    assert here["factors"]["batch"].startswith("more and more requests in flight per group at the planned load")


def test_limits_that_were_never_given_stay_absent_when_adopted() -> None:
    """Else adopting would change the template, and roll every pod."""
    found = decided(small(), groups=[group(pool="dear")])
    assert found.allocation is not None
    assert found.allocation.max_batch_size is None
    assert found.status["placement"]["allocations"][0].get("maxBatchSize") is None


def test_in_the_middle_of_an_update_the_newest_group_says_where_it_goes() -> None:
    found = decided(small(), groups=[group(0, "cheap", created=1.0), group(1, "dear", created=2.0)])
    assert placed(found) == "dear"


def test_another_spec_is_placed_anew_and_ties_stay(first: Decision) -> None:
    elsewhere = decided(small(pools=["dear"]), status=first.status, groups=[group()])
    assert placed(elsewhere) == "dear"
    slightly = small(traffic={**SMALL, "requestsPerSecond": "2.1"})
    assert first.allocation is not None
    stays = decided(slightly, supply("cheap", "A100-SXM-40", "9.5"), DEAR, status=first.status, groups=[group()])
    assert stays.allocation is not None
    assert stays.allocation.model_copy(update={"groups": 1}) == first.allocation.model_copy(update={"groups": 1})


@pytest.mark.parametrize("mode", ["Advise", "Off"])
def test_without_moves_another_spec_is_only_told(first: Decision, mode: str) -> None:
    wanted = small(mode, objectives={**PROMISES, "prefer": "Latency"})
    found = decided(wanted, status=first.status, groups=[group()])
    assert placed(found) == "cheap"
    condition = outdated(found)
    assert (condition.status, condition.reason) == (True, "BetterPlacement")
    assert "dear bf16" in condition.message
    again = kept(snapshot(wanted, found.status, [group()]))
    assert again is not None
    assert outdated(again) == condition


def test_without_moves_more_traffic_still_means_more_groups(first: Decision) -> None:
    busy = small("Off", traffic={**SMALL, "requestsPerSecond": "30"})
    found = decided(busy, status=first.status, groups=[group()])
    assert first.allocation is not None
    assert found.allocation is not None
    assert placed(found) == "cheap"
    assert found.allocation.groups > first.allocation.groups


def test_what_cannot_be_placed_any_more_stays_and_says_why(first: Decision) -> None:
    impossible = small(objectives={"timePerOutputToken": {"p95": "1ms"}})
    found = decided(impossible, status=first.status, groups=[group()])
    assert found.allocation == first.allocation
    condition = outdated(found)
    assert condition.reason == "SLOInfeasible"
    assert "TPOT p95" in condition.message


def test_what_never_ran_is_not_placed_where_it_cannot_meet_its_objectives() -> None:
    found = decided(small(objectives={"timePerOutputToken": {"p95": "1ms"}}))
    assert found.allocation is None
    assert found.shortage is not None
    assert found.shortage.reason == "SLOInfeasible"
    assert found.status["candidates"][0]["rejected"]


def test_a_deployment_that_waits_is_placed_where_room_appears(first: Decision) -> None:
    full = supply("cheap", "A100-SXM-40", "0.50", used={f"cheap-{index}": 8 for index in range(4)})
    waiting = decided(small(), full, supply("dear", used={f"dear-{index}": 8 for index in range(4)}))
    assert waiting.allocation is not None
    shortage = {0: Shortage("WaitingForCapacity", "none free")}
    assert kept(snapshot(small(), waiting.status, shortages=shortage)) is None
    assert placed(decided(small(), full, DEAR, status=waiting.status, shortages=shortage)) == "dear"


def test_when_everything_is_lost_and_the_pool_is_gone_another_pool_takes_over(first: Decision) -> None:
    lost = [group(lifecycle=labels.FAILED)]
    dead = supply("cheap", "A100-SXM-40", "0.50", used={f"cheap-{index}": 8 for index in range(4)})
    assert kept(snapshot(small(), first.status, lost)) is not None, "a crash alone moves nobody"
    shortage = {0: Shortage("WaitingForCapacity", "none free")}
    assert placed(decided(small(), dead, DEAR, status=first.status, groups=lost, shortages=shortage)) == "dear"
    assert kept(snapshot(small("Off"), first.status, lost, shortage)) is not None, "moves are off"


def test_a_pool_or_variant_that_is_gone_leaves_what_serves_alone(first: Decision) -> None:
    found = decided(small("Off", variants=[{**BF16, "name": "other"}]), status=first.status, groups=[group()])
    assert found.allocation == first.allocation
    assert placed(decided(small(), DEAR, groups=[group()])) == "cheap"


def test_a_status_that_nobody_can_read_counts_as_wiped() -> None:
    odd = {"placement": {"allocations": [{"pool": 7}]}}
    assert placed(decided(small(), status=odd, groups=[group(pool="dear")])) == "dear"


def test_a_recorded_pool_that_is_gone_with_its_groups_holds_nobody(first: Decision) -> None:
    placement = first.status["placement"]
    gone = {"placement": placement | {"allocations": [placement["allocations"][0] | {"pool": "gone"}]}}
    assert kept(snapshot(small(), gone)) is None
    assert placed(decided(small(), status=gone)) == "cheap", "nothing runs: it is placed as if for the first time"
    assert placed(decided(small(), status=gone, groups=[group(pool="dear")])) == "dear", "what runs is adopted"
    last = [group(pool="gone")]
    assert placed(decided(small(), status=gone, groups=last)) == "gone", "while its groups serve, they serve on"


def test_manual_scaling_leaves_the_count_to_the_user_and_plans_the_layout(first: Decision) -> None:
    manual = small(scaling={"mode": "Manual"}, replicas=1, traffic={**SMALL, "requestsPerSecond": "30"})
    found = decided(manual)
    assert found.groups_for_traffic > 1
    assert kept(snapshot(small(scaling={"mode": "Manual"}, replicas=7), found.status, [group()])) is None
    more = manual.model_copy(update={"spec": manual.spec.model_copy(update={"replicas": 7})})
    assert kept(snapshot(more, found.status, [group()])) is not None


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        ({"inputTokens": {"mean": 600, "p95": 2000, "max": 200_000}}, "has a context of 131072: lower inputTokens.max"),
        ({"inputTokens": {"mean": 600, "p95": 16000, "max": 16000}}, "lower p95 or raise mean"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused_with_the_field(traffic: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.traffic") as refused:
        decided(small(traffic={**SMALL, **traffic}))
    assert words in str(refused.value)


def test_the_availability_target_is_judged_from_the_record() -> None:
    missed = {"availability": {"predicted": "0.99949", "target": "0.9995", "limitedBy": "loss of a zone"}}
    condition = next(iter(tell.conditions(missed)))
    assert (condition.type, condition.status, condition.reason) == ("AvailabilityTargetMet", False, "TargetMissed")
    assert condition.message == "0.99949 predicted, 0.9995 wanted; limited by loss of a zone"
