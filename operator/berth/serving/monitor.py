"""Asks leaders that are worth asking, remembers what they said, and wakes the deployment when that changes.

One small task per leader asked, so that a leader that hangs delays nobody. A pass says whom it wants to hear from;
everything else is forgotten, so the memory is bounded by what is alive. Silence is recorded as silence: an `Answer` is
only ever made from a reply, and an unreachable leader keeps its last one and counts the attempts that missed it.

A leader that serves is watched by its launcher's page, which is cheap. A token is asked for only where the page shows
work outstanding and no progress: a canary that waits behind a full queue says nothing about a busy leader.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from berth.core.groups import HEARD_WITHIN_SECONDS
from berth.core.observed import Answer, Ask, Member
from berth.errors import Transient
from berth.serving.prober import Prober, Progress

DOUBT_SECONDS: Final = 1.0
"""How soon a leader is asked again that did not answer or made no progress."""
CANARY_AFTER: Final = 6.0
"""Seconds without progress after which a token is asked for: the launcher itself has had its say by then."""
LONGEST_GAP: Final = 10.0
"""Seconds between two answers of which at most this much counts as watched, as after a pause of Berth."""
PAGES_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Question:
    """Which leader to ask what."""

    uid: str
    restarts: int
    address: str
    what: Ask


def question(member: Member, what: Ask) -> Question | None:
    """The question for a leader; None while it has no address."""
    return Question(member.uid, member.restarts, member.ip, what) if member.ip else None


class Monitor:
    """Answers of leaders by pod UID, kept fresh by one task per open question.

    `clock` gives Unix seconds, `now` monotonic ones; `wake` is called with a deployment's key when an answer changed in
    more than its time.
    """

    def __init__(
        self,
        prober: Prober,
        wake: Callable[[Hashable], None],
        clock: Callable[[], float],
        interval_seconds: float = 1.0,
        parallel: int = 64,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._prober = prober
        self._wake = wake
        self._clock = clock
        self._now = now or (lambda: asyncio.get_running_loop().time())
        self._interval = interval_seconds
        self._tokens = asyncio.Semaphore(parallel)
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self._answers: dict[Hashable, dict[str, Answer]] = {}
        self._tasks: dict[Hashable, dict[Question, asyncio.Task[None]]] = {}

    def answers(self, key: Hashable) -> Mapping[str, Answer]:
        """What the leaders of this deployment said last, by pod UID."""
        return dict(self._answers.get(key, {}))

    def reach(self) -> dict[str, bool]:
        """By pod UID, of every leader that was asked: whether it answers. What one said long ago is no answer."""
        since = self._clock() - max(HEARD_WITHIN_SECONDS, 3 * self._interval)
        return {
            uid: answer.at > since and not answer.unreachable
            for answers in self._answers.values()
            for uid, answer in answers.items()
            if answer.reached or answer.unreachable
        }

    def ask(
        self,
        key: Hashable,
        questions: frozenset[Question],
        alive: frozenset[str],
        told_to_drain: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """From now on these are the open questions of `key`; `alive` are the pods whose answers are worth keeping.

        Leaders that were `told_to_drain` by now, restarts by pod UID, count as draining until they are heard again.
        """
        running = self._tasks.pop(key, {})
        for stale in set(running) - questions:
            running.pop(stale).cancel()
        answers = {uid: answer for uid, answer in self._answers.pop(key, {}).items() if uid in alive}
        for uid, restarts in told_to_drain.items():
            known = _of_life(answers.get(uid), uid, restarts)
            if uid in alive and not known.draining:
                answers[uid] = replace(known, draining=True)
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
        match asked.what:
            case Ask.FIRST:
                await self._until_a_token(key, asked)
            case Ask.DRAINED:
                await self._while_it_drains(key, asked)
            case Ask.PROGRESS:
                await self._watch(key, asked)

    async def _until_a_token(self, key: Hashable, asked: Question) -> None:
        while True:
            before = self._before(key, asked)
            try:
                async with self._tokens:
                    await self._prober.token(asked.address)
            except Transient as error:
                answer = replace(before, message=str(error))
            else:
                now = self._clock()
                answer = Answer(asked.uid, asked.restarts, token_at=now, at=now)
            self._learn(key, answer, news=replace(answer, at=before.at) != before)
            if answer.token_at is not None:
                return
            await asyncio.sleep(self._interval)

    async def _while_it_drains(self, key: Hashable, asked: Question) -> None:
        """Until the pass closes the question."""
        while True:
            before = self._before(key, asked)
            try:
                progress = await self._page(asked)
            except Transient as error:
                answer = replace(before, message=str(error))
            else:
                answer = replace(before, in_flight=progress.in_flight, at=self._clock(), misses=0, message="")
            self._learn(key, answer, news=replace(answer, at=before.at) != before or answer.in_flight == 0)
            await asyncio.sleep(self._interval)

    async def _watch(self, key: Hashable, asked: Question) -> None:
        """As long as it serves. Thousands are watched: each begins at a moment of its own."""
        await asyncio.sleep(self._interval * zlib.crc32(asked.uid.encode()) / 2**32)
        seen: Progress | None = None
        looked = self._now()
        while True:
            before = self._before(key, asked)
            try:
                progress = await self._page(asked)
            except Transient as error:
                answer = replace(before, misses=before.misses + 1, message=str(error), frozen_for=0.0)
                seen = None
            else:
                passed, looked = min(self._now() - looked, LONGEST_GAP), self._now()
                stuck = seen is not None and _outstanding(seen, progress) and _moved(progress) == _moved(seen)
                frozen = before.frozen_for + passed if stuck else 0.0
                seen = progress
                answer = replace(
                    before,
                    in_flight=progress.in_flight,
                    draining=progress.draining,
                    at=self._clock(),
                    misses=0,
                    message="",
                    frozen_for=frozen,
                )
            answer = replace(answer, canary_missed=await self._canary_missed(asked, answer))
            if self._before(key, asked) != before:
                continue  # told to drain while it was asked: what it said is of the time before
            heard_again = answer.misses < before.misses  # others may have waited for it to stand in for them
            changed = _doubts(answer) != _doubts(before) or answer.draining != before.draining
            self._learn(key, answer, news=heard_again or changed or answer.canary_missed)
            doubtful = answer.misses or answer.frozen_for
            await asyncio.sleep(min(DOUBT_SECONDS, self._interval) if doubtful else self._interval)

    async def _canary_missed(self, asked: Question, answer: Answer) -> bool:
        if answer.frozen_for < CANARY_AFTER:
            return False
        try:
            async with self._tokens:
                await self._prober.token(asked.address)
        except Transient:
            return True
        return False

    async def _page(self, asked: Question) -> Progress:
        async with self._pages:
            return await self._prober.progress(asked.address)

    def _before(self, key: Hashable, asked: Question) -> Answer:
        """What is known of this container life."""
        return _of_life(self._answers[key].get(asked.uid), asked.uid, asked.restarts)

    def _learn(self, key: Hashable, answer: Answer, *, news: bool) -> None:
        self._answers[key][answer.uid] = answer  # looked up again: a pass may have renewed it meanwhile
        if news:
            self._wake(key)


def _of_life(known: Answer | None, uid: str, restarts: int) -> Answer:
    """What is known of this container life, if only that nothing is."""
    return known if known is not None and known.restarts == restarts else Answer(uid, restarts)


def _outstanding(before: Progress, after: Progress) -> bool:
    return before.in_flight > 0 and after.in_flight > 0


def _moved(progress: Progress) -> tuple[int, int]:
    return progress.steps, progress.tokens


def _doubts(answer: Answer) -> tuple[bool, bool]:
    return answer.unreachable, answer.canary_missed
