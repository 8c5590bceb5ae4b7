"""A move that a person asks for: what is refused, in which words, and what is said when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berth import labels
from berth.api.replicagroup import GroupAllocation
from berth.core.moves.asked import move_asked_for
from berth.core.moves.decision import Move
from berth.core.observed import Group, Snapshot
from berth.core.placement.evaluate import Memory
from berth.core.placement.question import spec_hash
from berth.core.requests import move_id, parse, reply_before_move
from berth.core.timestamps import timestamp
from berth.errors import InvalidSpec
from tests.unit.placement.cases import BF16, deployment, supply

MEMORY = Memory()
POOLS = (supply("here", "A100-SXM-40", "1.00"), supply("there", "H100-SXM-80", "2.00"))
TRAFFIC = {
    "requestsPerSecond": "2",
    "inputTokens": {"mean": 600, "p95": 2000, "max": 8000},
    "outputTokens": {"mean": 200, "p95": 500, "maxRequested": 1024},
}
NOW = 1_000_000.0


def standing(
    status: dict[str, Any] | None = None, pool: str = "here", variant: str = "bf16", groups: int = 2, **spec: Any
) -> Snapshot:
    """Groups of one GPU that run on pool `here`."""
    wanted = deployment(model="llama-3.1-8b-instruct", variants=[BF16], **{"traffic": TRAFFIC, **spec})
    allocation = {"pool": pool, "variant": variant, "groups": groups, "precision": "bf16", "kvPrecision": "bf16"}
    placement = {"allocations": [allocation], "groupsForTraffic": 1, "specHash": spec_hash(wanted.spec)}
    shape = GroupAllocation(pool=pool, variant=variant)
    alive = [Group(f"g{n}", f"u{n}", n, 1, labels.COMMITTED, shape, "hash", 1, 1.0, pool) for n in range(groups)]
    return Snapshot(
        deployment=wanted,
        raw={"status": json.loads(json.dumps({"placement": placement, **(status or {})}))},
        groups=tuple(alive),
        stray_incarnations={},
        answers={},
        children={},
        pools={"here": {}, "there": {}},
        shortages={},
        missing_claims=frozenset(),
        now=NOW,
    )


def asked(snapshot: Snapshot, text: str = "move there bf16 tp1 x2", pools: Any = POOLS) -> Move:
    return move_asked_for(snapshot, parse(text), pools, MEMORY)


@pytest.mark.parametrize(
    ("spec", "text", "words"),
    [
        ({"objectives": {"limits": {"gpus": 3}}}, "x2", "2 GPUs here and 2 there exceed limits.gpus 3"),
        ({"objectives": {"limits": {"costPerHour": "5.50"}}}, "x2", "2.00 per hour here and 4.00 there exceed"),
        ({"replicaGroups": {"minAvailable": 2}}, "x1", "1 groups are fewer than replicaGroups.minAvailable 2"),
    ],
)
def test_what_would_exceed_a_limit_or_never_be_enough_is_refused_at_once(
    spec: dict[str, Any], text: str, words: str
) -> None:
    with pytest.raises(InvalidSpec, match=words):
        asked(standing(**spec), f"move there bf16 tp1 {text}")


def test_without_surge_the_dearer_of_both_kinds_bounds_the_cost() -> None:
    one_by_one = {"surge": "Never", "maxUnavailable": 1}
    with pytest.raises(InvalidSpec, match=r"up to 6\.00 per hour exceed limits\.costPerHour 5"):
        asked(standing(groups=3, update=one_by_one, objectives={"limits": {"costPerHour": "5"}}))
    assert asked(standing(groups=3, update=one_by_one, objectives={"limits": {"costPerHour": "6"}})).swap


@pytest.mark.parametrize("gone", [{"pool": "deleted"}, {"variant": "renamed"}])
def test_what_is_gone_can_be_left(gone: dict[str, str]) -> None:
    move = asked(standing(**gone))
    assert (move.to.pool, move.capacity_from, move.leaves) == ("there", 0.0, 1)


def test_what_a_group_carries_is_told_in_requests_as_its_load_is_measured() -> None:
    """Where clients wait for their answers, too: sixteen of them ask for a few requests per second."""
    lengths = {name: TRAFFIC[name] for name in ("inputTokens", "outputTokens")}
    patient = {"objectives": {"timePerOutputToken": {"p95": "100ms"}}}
    closed = asked(standing(traffic={"arrival": "Closed", "concurrency": 16, **lengths}, **patient))
    open_ = asked(standing(**patient))
    for own, other in ((closed.capacity_from, open_.capacity_from), (closed.capacity_to, open_.capacity_to)):
        assert 0.5 * other < own < 2 * other


def answered(snapshot: Snapshot, text: str, result: str, ago: float) -> dict[str, Any]:
    return {"request": {"text": text, "result": result, "message": "none free", "at": timestamp(snapshot.now - ago)}}


@pytest.mark.parametrize(("ago", "late"), [(1100, False), (1300, True)])
def test_one_that_has_waited_too_long_is_refused_before_it_could_still_begin(ago: float, late: bool) -> None:
    text = "move there bf16 tp1 x2"
    snapshot = standing()
    snapshot = standing(answered(snapshot, text, "Waiting", ago))
    reply = reply_before_move(snapshot, parse(text))
    assert (reply is not None and (reply.result, "none free" in reply.message)) == (late and ("Refused", True))
    assert reply_before_move(snapshot, parse(f"{text} @2")) is None, "that is another request"


def test_the_words_of_an_older_request_do_not_pass_for_done() -> None:
    text = "move there bf16 tp1 x2"
    ended = {"id": move_id(standing(), parse(text)), "result": "Completed", "finishedAt": timestamp(NOW - 500)}
    moved = {"moves": {"recent": [ended]}}
    lost = reply_before_move(standing(moved), parse(text))
    assert lost is not None
    assert lost.result == "Done", "its answer alone was lost"
    meanwhile = standing({**moved, **answered(standing(), "rollback", "Refused", 60)})
    again = reply_before_move(meanwhile, parse(text))
    assert again is not None
    assert (again.result, "@" in again.message) == ("Refused", True)
    assert reply_before_move(meanwhile, parse(f"{text} @2")) is None
