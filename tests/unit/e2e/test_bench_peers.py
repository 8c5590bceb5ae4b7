"""What the comparison with others notes of each subject after a fault, and how it adds up."""

from __future__ import annotations

from typing import Any

from e2e.bench_peers import Run, Watch, table
from e2e.support.peers import DEPLOYMENT, LEADER_WORKER_SET
from e2e.support.traffic import Account, Sent


def pod(name: str, *, restarts: int = 0, app: str = "deployment") -> dict[str, Any]:
    """Its address is its name."""
    statuses = [{"restartCount": restarts}]
    metadata = {"uid": name, "name": name, "labels": {"app": app}}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": {"podIP": name, "containerStatuses": statuses}}


def serving(*addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "deployment"}
    endpoints = [{"addresses": [each], "conditions": {"ready": True}} for each in addresses]
    return {"kind": "EndpointSlice", "metadata": {"labels": labels}, "endpoints": endpoints}


def watch() -> Watch:
    return Watch(DEPLOYMENT, pod("a"), {"a", "b"}, at=100.0)


def test_a_restart_in_place_makes_no_new_pod() -> None:
    found = watch()
    assert not found.look([pod("a"), pod("b"), serving("a", "b")], 101), "nobody has noticed yet"
    assert not found.look([pod("a", restarts=1), pod("b"), serving("b")], 102)
    assert found.look([pod("a", restarts=1), pod("b"), serving("a", "b")], 107)
    assert found.times == {"out_of_service": 2.0, "created": None, "serving": 7.0}


def test_another_pod_takes_over_while_the_old_one_is_still_there() -> None:
    found = watch()
    assert not found.look([pod("a"), pod("b"), pod("c"), serving("b")], 110)
    assert not found.look([pod("a"), pod("b"), pod("c"), pod("d", app="lws"), serving("b", "d")], 115)
    assert found.look([pod("a"), pod("b"), pod("c"), serving("b", "c")], 120)
    assert found.times == {"out_of_service": 10.0, "created": 10.0, "serving": 20.0}


def test_trouble_after_the_repair_is_not_counted() -> None:
    def sent(at: float, retried: float | None = None, error: str = "") -> Sent:
        return Sent(at, at, at, at, retried, 1, error)

    account = Account((sent(99, retried=100.5), sent(104, error="lost"), sent(190, retried=191), sent(191)))
    run = watch().run("pause", account, until=180, load=1.0)
    assert (run.last_request, run.requests, run.failed) == (4.0, 4, 1)


def test_the_table_has_a_row_per_fault_and_subject_and_says_what_never_happened() -> None:
    runs = [
        Run(DEPLOYMENT.name, "pause", 3.0, 14.0, 20.0, 25.0, 100, 1, 2.0),
        Run(DEPLOYMENT.name, "pause", None, 16.0, 30.0, None, 100, 0, 2.0),
        Run(LEADER_WORKER_SET.name, "pause", 1.0, 14.0, None, None, 50, 0, 2.0),
    ]
    rows = table(runs).splitlines()[2:]
    assert rows == [
        "| node silent | LeaderWorkerSet | 1.0 / 1.0 s | 14.0 / 14.0 s | - | - | 0 of 50 | 1 |",
        "| node silent | Deployment | 3.0 / 3.0 s, 1 none | 15.0 / 16.0 s | 25.0 / 30.0 s | 25.0 / 25.0 s, 1 never "
        "| 1 of 200 | 2 |",
    ]


def member(group: int, index: int) -> dict[str, Any]:
    made = pod(f"lws-{group}-{index}", app="lws")
    made["metadata"]["labels"] |= {
        "leaderworkerset.sigs.k8s.io/group-index": str(group),
        "leaderworkerset.sigs.k8s.io/worker-index": str(index),
    }
    return made


def test_a_group_of_two_is_whole_with_both_and_its_leader_comes_first() -> None:
    seen = [member(group, index) for group in (0, 1) for index in (1, 0)]
    front = serving("lws-0-0", "lws-1-0")
    front["metadata"]["labels"]["kubernetes.io/service-name"] = LEADER_WORKER_SET.service
    assert LEADER_WORKER_SET.whole([*seen, front], size=2)
    assert not LEADER_WORKER_SET.whole([*seen[1:], front], size=2)
    names = [each["metadata"]["name"] for each in LEADER_WORKER_SET.members(seen, seen[2])]
    assert names == ["lws-1-0", "lws-1-1"]
