"""What the watch over serving leaders makes of answers and of silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from berth.core.groups import HEARD_WITHIN_SECONDS
from berth.core.observed import Answer, Ask
from berth.errors import Transient
from berth.serving.monitor import CANARY_AFTER, Monitor, Question
from berth.serving.prober import Progress

ASKED = Question("uid", 0, "127.0.0.1", Ask.PROGRESS)


@dataclass
class Leader:
    """Says what it is told to, and lets time pass with each answer."""

    progress_now: Progress | None = field(default_factory=lambda: Progress(3, 100, 100))
    """None: cannot be reached."""
    step: int = 1
    """Steps the engine makes between two looks."""
    token_comes: bool = True
    looks: int = 0
    tokens_asked: int = 0
    misses_next: bool = False
    """The next look does not reach it."""
    now: float = 0.0
    looked: asyncio.Event = field(default_factory=asyncio.Event)

    async def progress(self, address: str) -> Progress:
        await asyncio.sleep(0)
        self.looks += 1
        self.now += 1.0
        self.looked.set()
        missed, self.misses_next = self.misses_next, False
        if self.progress_now is None or missed:
            raise Transient("cannot be reached")
        now = self.progress_now
        self.progress_now = Progress(now.in_flight, now.steps + self.step, now.tokens)
        return now

    async def token(self, address: str) -> None:
        self.tokens_asked += 1
        if not self.token_comes:
            raise Transient("no token")

    async def drain(self, address: str) -> None:
        raise NotImplementedError


@asynccontextmanager
async def watched(leader: Leader, woken: list[object]) -> AsyncIterator[Callable[[int], object]]:
    monitor = Monitor(leader, woken.append, lambda: 7.0, interval_seconds=0.001, now=lambda: leader.now)
    monitor.ask("key", frozenset({ASKED}), frozenset({"uid"}))

    async def after(looks: int) -> Answer:
        """The answer once the leader was looked at so many more times."""
        goal = leader.looks + looks
        async with asyncio.timeout(20):
            while leader.looks < goal:
                leader.looked.clear()
                await leader.looked.wait()
            await asyncio.sleep(0.01)
        return monitor.answers("key")["uid"]

    yield after
    await monitor.close()


async def test_a_leader_that_moves_is_never_asked_for_a_token_and_wakes_nobody() -> None:
    leader, woken = Leader(token_comes=False), []
    async with watched(leader, woken) as after:
        answer = await after(20)
    assert (answer.misses, answer.frozen_for, answer.canary_missed) == (0, 0.0, False)
    assert leader.tokens_asked == 0
    assert woken == []


async def test_an_idle_leader_is_not_frozen() -> None:
    leader, woken = Leader(Progress(0, 100, 100), step=0, token_comes=False), []
    async with watched(leader, woken) as after:
        answer = await after(20)
    assert answer.frozen_for == 0.0
    assert leader.tokens_asked == 0


async def test_without_progress_a_token_decides() -> None:
    leader, woken = Leader(step=0), []
    async with watched(leader, woken) as after:
        answer = await after(int(CANARY_AFTER) + 4)
        assert answer.frozen_for >= CANARY_AFTER
        assert leader.tokens_asked > 0
        assert not answer.canary_missed
        leader.token_comes = False
        answer = await after(3)
        assert answer.canary_missed
        assert woken
        leader.step = 1
        answer = await after(3)
    assert (answer.frozen_for, answer.canary_missed) == (0.0, False)


async def test_two_misses_in_a_row_are_silence_and_one_answer_ends_it() -> None:
    leader, woken = Leader(), []
    async with watched(leader, woken) as after:
        await after(2)
        leader.progress_now = None
        answer = await after(3)
        assert answer.unreachable
        assert answer.reached
        assert answer.token_at is None
        assert len(woken) == 1, "told when it became so, not at each miss"
        leader.progress_now = Progress(1, 500, 500)
        answer = await after(2)
    assert not answer.unreachable
    assert len(woken) == 2


async def test_one_that_answers_again_is_told_even_if_it_missed_a_single_look() -> None:
    """Until then it stood in for nobody."""
    leader, woken = Leader(), []
    async with watched(leader, woken) as after:
        await after(2)
        leader.misses_next = True
        answer = await after(3)
    assert (answer.misses, answer.unreachable) == (0, False)
    assert woken == ["key"]


async def test_reach_tells_only_of_leaders_that_something_is_known_of() -> None:
    leader = Leader()
    monitor = Monitor(leader, lambda _key: None, lambda: 7.0, interval_seconds=0.001, now=lambda: leader.now)
    monitor.ask("key", frozenset({ASKED}), frozenset({"uid"}))
    assert monitor.reach() == {}
    async with asyncio.timeout(5):
        while not monitor.reach():
            await asyncio.sleep(0.001)
    assert monitor.reach() == {"uid": True}
    leader.progress_now = None
    async with asyncio.timeout(20):
        while monitor.reach()["uid"]:
            await asyncio.sleep(0.001)
    await monitor.close()


async def test_what_a_leader_said_long_ago_does_not_make_it_reached_now() -> None:
    """As one on a dead node, which is not asked any more since its group was given up."""
    leader, clock = Leader(), [1000.0]
    monitor = Monitor(leader, lambda _key: None, lambda: clock[0], interval_seconds=0.001, now=lambda: leader.now)
    monitor.ask("key", frozenset({ASKED}), frozenset({"uid"}))
    async with asyncio.timeout(20):
        while not monitor.reach():
            await asyncio.sleep(0.001)
    monitor.ask("key", frozenset(), frozenset({"uid"}))
    assert monitor.reach() == {"uid": True}
    clock[0] += HEARD_WITHIN_SECONDS
    assert monitor.reach() == {"uid": False}
    await monitor.close()


@pytest.mark.parametrize("what", [Ask.FIRST, Ask.PROGRESS])
async def test_what_another_life_of_the_container_said_does_not_count(what: Ask) -> None:
    leader = Leader()
    monitor = Monitor(leader, lambda _key: None, lambda: 7.0, interval_seconds=0.001, now=lambda: leader.now)
    monitor.ask("key", frozenset({Question("uid", 0, "a", Ask.FIRST)}), frozenset({"uid"}))
    async with asyncio.timeout(5):
        while "uid" not in monitor.answers("key"):
            await asyncio.sleep(0.001)
    leader.token_comes = False
    leader.progress_now = None
    monitor.ask("key", frozenset({Question("uid", 1, "a", what)}), frozenset({"uid"}))
    async with asyncio.timeout(20):
        while monitor.answers("key")["uid"].restarts != 1:
            await asyncio.sleep(0.001)
    assert monitor.answers("key")["uid"].token_at is None
    assert not monitor.answers("key")["uid"].reached
    await monitor.close()
