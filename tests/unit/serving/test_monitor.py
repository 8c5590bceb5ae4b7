"""What leaders said is kept while passes come and go."""

from __future__ import annotations

import asyncio

import pytest

from berth.core.observed import Ask
from berth.serving.monitor import Monitor, Question
from berth.serving.prober import Progress


class SlowLeaders:
    """Produce a token when told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def token(self, address: str) -> None:
        self.asked.set()
        await self.may_answer.wait()

    async def progress(self, address: str) -> Progress:
        raise NotImplementedError

    async def drain(self, address: str) -> None:
        raise NotImplementedError


async def test_an_answer_that_comes_after_the_next_pass_has_asked_again_is_not_lost() -> None:
    leaders, woken = SlowLeaders(), asyncio.Event()
    monitor = Monitor(leaders, lambda _key: woken.set(), clock=lambda: 7.0)
    questions, alive = frozenset({Question("uid", 0, "127.0.0.1", Ask.FIRST)}), frozenset({"uid"})
    monitor.ask("key", questions, alive)
    await leaders.asked.wait()
    monitor.ask("key", questions, alive)
    leaders.may_answer.set()
    async with asyncio.timeout(5):
        await woken.wait()
    assert monitor.answers("key")["uid"].token_at == 7.0
    await monitor.close()


class PagedLeaders(SlowLeaders):
    """Read at once what they show, and say it when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = False
        self.read = 0

    async def progress(self, address: str) -> Progress:
        shown = Progress(0, 0, 0, self.draining)
        self.read += 1
        self.asked.set()
        await self.may_answer.wait()
        return shown


@pytest.mark.parametrize("obeys", [True, False])
async def test_one_that_was_told_to_drain_counts_as_draining_until_it_is_asked_again(obeys: bool) -> None:
    leaders, woken = PagedLeaders(), asyncio.Queue[bool]()
    monitor = Monitor(
        leaders, lambda key: woken.put_nowait(monitor.answers(key)["uid"].draining), lambda: 7.0, interval_seconds=0.0
    )
    questions, alive = frozenset({Question("uid", 0, "127.0.0.1", Ask.PROGRESS)}), frozenset({"uid"})
    monitor.ask("key", questions, alive)
    async with asyncio.timeout(5):
        await leaders.asked.wait()
        leaders.draining = obeys
        monitor.ask("key", questions, alive, {"uid": 0, "gone": 0})
        assert {uid: each.draining for uid, each in monitor.answers("key").items()} == {"uid": True}
        leaders.may_answer.set()
        while leaders.read < 3:  # the first answer is of the time before
            await asyncio.sleep(0)
    assert monitor.answers("key")["uid"].draining == obeys
    assert woken.empty() == obeys
    await monitor.close()
