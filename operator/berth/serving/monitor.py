"""Asks leaders that are worth asking, remembers what they said, and wakes the deployment when that changes.

One small task per leader asked, so that a leader that hangs delays nobody. A pass says whom it wants to hear from;
everything else is forgotten, so the memory is bounded by what is alive. Silence is recorded as silence: an `Answer` is
only ever made from a reply, and an unreachable leader keeps its last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

from berth.core.observed import Answer, Member
from berth.errors import Transient
from berth.serving.prober import Prober


@dataclass(frozen=True)
class Question:
    """Which leader to ask what: for a first token, or how much it still has to finish."""

    uid: str
    restarts: int
    address: str
    draining: bool


def question(member: Member, *, draining: bool) -> Question | None:
    """The question for a leader; None while it has no address."""
    return Question(member.uid, member.restarts, member.ip, draining) if member.ip else None


class Monitor:
    """Answers of leaders by pod UID, kept fresh by one task per open question.

    `clock` gives Unix seconds; `wake` is called with a deployment's key when an answer changed in more than its time.
    """

    def __init__(
        self,
        prober: Prober,
        wake: Callable[[Hashable], None],
        clock: Callable[[], float],
        interval_seconds: float = 1.0,
        parallel: int = 64,
    ) -> None:
        self._prober = prober
        self._wake = wake
        self._clock = clock
        self._interval = interval_seconds
        self._slots = asyncio.Semaphore(parallel)
        self._answers: dict[Hashable, dict[str, Answer]] = {}
        self._tasks: dict[Hashable, dict[Question, asyncio.Task[None]]] = {}

    def answers(self, key: Hashable) -> Mapping[str, Answer]:
        """What the leaders of this deployment said last, by pod UID."""
        return dict(self._answers.get(key, {}))

    def ask(self, key: Hashable, questions: frozenset[Question], alive: frozenset[str]) -> None:
        """From now on these are the open questions of `key`; `alive` are the pods whose answers are worth keeping."""
        running = self._tasks.pop(key, {})
        for stale in set(running) - questions:
            running.pop(stale).cancel()
        answers = {uid: answer for uid, answer in self._answers.pop(key, {}).items() if uid in alive}
        if answers or questions:
            self._answers[key] = answers
        for new in questions - set(running):
            running[new] = asyncio.create_task(self._pursue(key, new))
        if running:
            self._tasks[key] = running

    async def close(self) -> None:
        """Stop asking."""
        tasks = [task for running in self._tasks.values() for task in running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _pursue(self, key: Hashable, asked: Question) -> None:
        """Ask until a token came; a draining leader is asked until the pass closes the question."""
        while True:
            before = self._answers[key].get(asked.uid, Answer(asked.uid, asked.restarts))
            answer = await self._ask_once(asked, before)
            self._answers[key][asked.uid] = answer  # looked up again: a pass may have renewed it meanwhile
            if replace(answer, at=before.at) != before or (asked.draining and answer.in_flight == 0):
                self._wake(key)
            if answer.token_at is not None and not asked.draining:
                return
            await asyncio.sleep(self._interval)

    async def _ask_once(self, asked: Question, before: Answer) -> Answer:
        if before.restarts != asked.restarts:
            before = Answer(asked.uid, asked.restarts)
        try:
            async with self._slots:
                if asked.draining:
                    in_flight = await self._prober.in_flight(asked.address)
                    return replace(before, in_flight=in_flight, at=self._clock(), message="")
                await self._prober.token(asked.address)
        except Transient as error:
            return replace(before, message=str(error))
        now = self._clock()
        return replace(before, token_at=now, at=now, message="")
