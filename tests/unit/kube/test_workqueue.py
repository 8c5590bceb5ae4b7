from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from berth.errors import BerthError, Conflict, InvalidSpec, Transient
from berth.kube.workqueue import WorkQueue
from berth.metrics import Metrics


class Upper(random.Random):
    """Jitter at its upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


@asynccontextmanager
async def running(
    reconcile: Callable[[str], Awaitable[float | None]],
    workers: int = 2,
    first_backoff: float = 0.5,
    max_backoff: float = 60.0,
    deadline: float = 120.0,
    metrics: Metrics | None = None,
) -> AsyncIterator[WorkQueue[str]]:
    queue: WorkQueue[str] = WorkQueue(
        reconcile,
        workers=workers,
        first_backoff=first_backoff,
        max_backoff=max_backoff,
        deadline=deadline,
        rng=Upper(),
        metrics=metrics,
    )
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    yield queue
    task.cancel()
    await asyncio.wait([task])


class Passes:
    """Records passes; each takes its outcome from `outcomes` (then None), and waits while `gate` is closed."""

    def __init__(self, *outcomes: float | Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.started: list[str] = []
        self.times: list[float] = []
        self.now: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Condition()

    async def __call__(self, key: str) -> float | None:
        assert key not in self.now, "two workers on one key"
        self.now.add(key)
        self.started.append(key)
        self.times.append(asyncio.get_running_loop().time())
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.gate.wait()
        finally:
            self.now.discard(key)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: len(self.started) >= count)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_many_wake_ups_before_a_pass_are_one_pass() -> None:
    passes = Passes()
    async with running(passes) as queue:
        for _ in range(22):
            queue.add("a")
        await passes.reach(1)
        await settle()
        assert passes.started == ["a"]
        assert len(queue) == 0


async def test_wake_ups_during_a_pass_give_exactly_one_more() -> None:
    passes = Passes()
    passes.gate.clear()
    async with running(passes) as queue:
        queue.add("a")
        await passes.reach(1)
        for _ in range(5):
            queue.add("a")
        await settle()
        assert passes.started == ["a"]
        passes.gate.set()
        await passes.reach(2)
        await settle()
        assert passes.started == ["a", "a"]


async def test_a_slow_key_occupies_one_worker_only() -> None:
    passes = Passes()
    slow = asyncio.Event()

    async def reconcile(key: str) -> float | None:
        if key == "slow":
            await slow.wait()
        return await passes(key)

    async with running(reconcile) as queue:
        queue.add("slow")
        for number in range(50):
            queue.add(f"k{number}")
        await passes.reach(50)
        assert "slow" not in passes.started
        slow.set()
        await passes.reach(51)


async def test_keys_take_turns_in_the_order_of_waking() -> None:
    passes = Passes()
    passes.gate.clear()
    async with running(passes, workers=1) as queue:
        queue.add("busy")
        await passes.reach(1)
        queue.add("busy")
        for key in ("b", "c"):
            queue.add(key)
        passes.gate.set()
        await passes.reach(4)
        assert passes.started == ["busy", "b", "c", "busy"]


async def test_a_pass_answers_the_timer_that_waited() -> None:
    passes = Passes(0.5, None)
    async with running(passes) as queue:
        queue.add("a")
        await passes.reach(1)
        queue.add("a")
        await passes.reach(2)
        queue.add_after("b", 0.6)
        await passes.reach(3)
    assert passes.started == ["a", "a", "b"], "the second pass of a asked for no third"


async def test_the_earliest_timer_of_a_key_wins() -> None:
    passes = Passes()
    async with running(passes) as queue:
        started = asyncio.get_running_loop().time()
        queue.add_after("a", 30.0)
        queue.add_after("a", 0.05)
        queue.add_after("a", 60.0)
        await passes.reach(1)
        assert 0.05 <= passes.times[0] - started < 5
        await settle()
        assert passes.started == ["a"]


async def test_a_returned_delay_brings_the_key_back() -> None:
    passes = Passes(0.02)
    async with running(passes) as queue:
        queue.add("a")
        await passes.reach(2)
        assert passes.times[1] - passes.times[0] >= 0.02


@pytest.mark.parametrize(
    "error", [Transient("down"), InvalidSpec("Bad", "spec.x"), BerthError("other"), ValueError("bug"), TimeoutError()]
)
async def test_failures_in_a_row_double_the_delay_up_to_the_cap(error: Exception) -> None:
    passes = Passes(error, error, error, error)
    async with running(passes, first_backoff=0.02, max_backoff=0.05) as queue:
        queue.add("a")
        await passes.reach(5)
    gaps = [round(later - earlier, 3) for earlier, later in zip(passes.times, passes.times[1:], strict=False)]
    assert gaps[0] >= 0.02
    assert gaps[1] >= 0.04
    assert all(0.05 <= gap < 2 for gap in gaps[2:])


async def test_success_forgets_earlier_failures(caplog: pytest.LogCaptureFixture) -> None:
    passes = Passes(Transient("x"), Transient("x"), 0.001, Transient("x"))
    async with running(passes, first_backoff=0.01) as queue:
        queue.add("a")
        await passes.reach(5)
    assert [record.args[2] for record in caplog.records if isinstance(record.args, tuple)] == [1, 2, 1]


async def test_a_first_conflict_is_looked_at_again_at_once_and_a_second_waits() -> None:
    passes = Passes(Conflict("x"), Conflict("x"))
    async with running(passes, first_backoff=0.2) as queue:
        queue.add("a")
        await passes.reach(3)
    assert passes.times[1] - passes.times[0] < 0.2
    assert passes.times[2] - passes.times[1] >= 0.4


async def test_the_servers_waiting_time_is_kept() -> None:
    passes = Passes(Transient("429", retry_after=0.15))
    async with running(passes, first_backoff=0.001) as queue:
        queue.add("a")
        await passes.reach(2)
    assert passes.times[1] - passes.times[0] >= 0.15


async def test_a_bug_in_one_key_is_logged_with_its_traceback_and_hurts_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = asyncio.Event()

    async def reconcile(key: str) -> float | None:
        if key == "bad":
            raise KeyError("oops")
        done.set()
        return None

    with caplog.at_level(logging.ERROR):
        async with running(reconcile, workers=1) as queue:
            queue.add("bad")
            queue.add("good")
            async with asyncio.timeout(5):
                await done.wait()
    assert "KeyError" in caplog.text
    assert "Traceback" in caplog.text


async def test_a_pass_that_never_ends_is_cut_off_and_tried_again() -> None:
    passes = Passes()
    passes.gate.clear()
    async with running(passes, workers=1, deadline=0.02, first_backoff=0.01) as queue:
        queue.add("hangs")
        await passes.reach(2)


async def test_lag_tells_idle_from_stuck_from_dead() -> None:
    passes = Passes()
    queue: WorkQueue[str] = WorkQueue(passes, workers=1)
    assert queue.lag() == float("inf")
    async with running(passes, workers=1) as queue:
        assert queue.lag() == 0.0
        passes.gate.clear()
        queue.add("a")
        await passes.reach(1)
        queue.add("b")
        await asyncio.sleep(0.02)
        assert queue.lag() >= 0.02
        passes.gate.set()
        await passes.reach(2)
        await settle()
        assert queue.lag() == 0.0
    assert queue.lag() == float("inf")


async def test_a_long_queue_that_gets_on_has_no_lag() -> None:
    """However long the last key has waited: a restart would only make it wait longer."""
    lags = []

    async def slow(_: str) -> None:
        await asyncio.sleep(0.01)
        lags.append(queue.lag())

    queue: WorkQueue[str] = WorkQueue(slow, workers=1)
    task = asyncio.create_task(queue.run())
    began = time.monotonic()
    for index in range(30):
        queue.add(str(index))
    while len(queue):
        await asyncio.sleep(0.005)
    waited = time.monotonic() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(lags) == 30
    assert sorted(lags)[15] < waited / 4


async def test_stopping_cancels_passes_and_timers() -> None:
    passes = Passes()
    passes.gate.clear()
    async with running(passes) as queue:
        queue.add("a")
        queue.add_after("b", 0.01)
        await passes.reach(1)
    assert passes.now == set()
    await asyncio.sleep(0.02)
    assert passes.started == ["a"]
    assert len(queue) == 0


async def test_results_are_counted() -> None:
    metrics = Metrics()
    passes = Passes(Transient("x"), Conflict("x"), ValueError("x"), BerthError("x"))
    async with running(passes, first_backoff=0.001, metrics=metrics) as queue:
        queue.add("a")
        await passes.reach(5)
        await settle()
    text = metrics.render().decode()
    for result in ("transient", "conflict", "bug", "refused", "done"):
        assert f'berth_reconcile_seconds_count{{result="{result}"}} 1.0' in text
    assert "berth_queue_retries_total 4.0" in text
    assert "berth_queue_depth 0.0" in text
