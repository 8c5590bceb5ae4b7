"""What failures of one slot mean for its next attempt, and what people are told while it waits."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from berth import labels
from berth.api.replicagroup import GroupAllocation
from berth.core.observed import Group
from berth.core.recovery import RecoveryPolicy, Setback, setback
from tests.unit.core.simulation import Simulation, deployment

NOW = 1_000_000.0
POLICY = RecoveryPolicy(max_failures=5, window=3600, initial_backoff=10, max_backoff=60)
LOST = Group(
    *("llama-g0-1", "uid", 0, 1, labels.FAILED, GroupAllocation(pool="h100", variant="bf16"), "hash", 1, 0.0, "h100")
)


def after(*seconds_ago: float) -> Setback:
    failed = [replace(LOST, incarnation=n, failed_at=NOW - ago) for n, ago in enumerate(seconds_ago)]
    return setback(failed, 0, "hash", None, POLICY, NOW, 0.0)


def test_the_first_is_replaced_at_once_and_then_the_wait_doubles_up_to_its_bound() -> None:
    waits = [after(*[0.0] * count).delay for count in (1, 2, 3, 4)]
    assert waits == [0.0, 10.0, 20.0, 40.0]
    assert (
        setback([replace(LOST, failed_at=NOW)] * 8, 0, "hash", None, replace(POLICY, max_failures=9), NOW, 0.0).delay
        == 60
    )


def test_deployments_that_failed_together_do_not_try_again_together() -> None:
    def next_attempt(uid: str) -> float | None:
        stored = deployment(tensor=8, groups=1)
        stored["metadata"]["uid"] = uid
        simulation = Simulation(stored)
        for life in (1, 2):
            for _ in range(8):
                simulation.kubelets()
                simulation.run_pass()
            simulation.pods = {name: pod for name, pod in simulation.pods.items() if f"-g0-{life}-" not in name}
            plan = simulation.run_pass()
        return plan.rollout.retry_after

    waits = {next_attempt(uid) for uid in ("a", "b", "c")}
    assert len(waits) == 3
    assert all(wait is not None and 10 <= wait <= 12 for wait in waits)


def test_past_the_budget_it_waits_until_the_oldest_failure_is_forgotten() -> None:
    assert after(3000, 40, 30, 20, 10) == Setback(600, spent="g0 failed 5 times within 3600s (recovery.maxFailures 5)")
    assert not after(3601, 400, 300, 200, 150).spent


@given(st.lists(st.floats(0, 7200), max_size=8))
def test_a_wait_has_an_end_and_says_so(ago: list[float]) -> None:
    found = after(*ago)
    assert found.delay <= POLICY.window
    assert found.holds == bool(found.spent or found.backing_off)


def test_while_the_next_attempt_waits_status_says_until_when() -> None:
    simulation = Simulation(deployment(tensor=8))

    def proceed(rounds: int) -> None:
        for _ in range(rounds):
            simulation.kubelets()
            simulation.run_pass()

    proceed(8)
    for life in (1, 2):
        lost = next(pod for name, pod in simulation.pods.items() if f"-g0-{life}-" in name)
        lost["status"] |= {"phase": "Failed", "reason": "Evicted", "conditions": []}
        proceed(6)
    status = simulation.stored["status"]
    progressing = next(each for each in status["conditions"] if each["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("True", "BackingOff")
    assert "g0 failed 2 times within 3600s: next attempt at 1970-01-12T" in status["summary"]["message"]
    proceed(15)
    assert simulation.stored["status"]["summary"]["message"] == "Ready"
