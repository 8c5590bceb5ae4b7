"""What leaders said is kept while passes come and go."""

from __future__ import annotations

import asyncio

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
