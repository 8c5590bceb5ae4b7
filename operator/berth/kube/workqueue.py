"""A queue of keys: each is worked on by one worker at a time, as often as needed and no oftener.

Waking a key that waits is free (many events, one pass). Waking a key that is being worked on gives it one more pass
afterwards, so no change is missed. Keys take turns in the order of their waking: a busy key goes to the end of the
line. Each key has at most one timer, the earliest wish wins. A pass that begins answers it: it says when the next is
due.

What a pass returns or raises decides when it comes back:

    returns seconds      in so many seconds
    returns None         when somebody wakes it
    Conflict             at once the first time, then with back-off: the world has changed, look again
    Transient            with back-off, not before the server's own `retry_after`
    other BerthError     with back-off; the reconciler had its chance to tell the user
    anything else        a bug: traceback, back-off; no other key suffers

Back-off doubles per failure of a key in a row, jittered, up to `max_backoff` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

from berth.errors import BerthError, Conflict, Transient
from berth.metrics import Metrics

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Calls `reconcile(key)` for keys that were added; `run()` works until cancelled.

    A pass that takes longer than `deadline` seconds is cancelled and counts as `Transient`.
    """

    def __init__(
        self,
        reconcile: Callable[[K], Awaitable[float | None]],
        *,
        workers: int = 8,
        first_backoff: float = 0.5,
        max_backoff: float = 60.0,
        deadline: float = 120.0,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._first_backoff = first_backoff
        self._max_backoff = max_backoff
        self._deadline = deadline
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._metrics = metrics or Metrics()
        self._ready: OrderedDict[K, float] = OrderedDict()  # in order of waking: the moment of it
        self._active: dict[K, float] = {}  # start of the pass
        self._again: set[K] = set()  # woken while active
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Semaphore(0)  # one release per key in _ready
        self._running = False
        self._last_end = float("-inf")
        """When a pass ended last."""

    def __len__(self) -> int:
        """Keys that wait for a worker or have one."""
        return len(self._ready) + len(self._active)

    def add(self, key: K) -> None:
        """Wake a key now."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = time.monotonic()
            self._wake.release()
            self._metrics.queue_depth(len(self._ready))

    def add_after(self, key: K, seconds: float) -> None:
        """Wake a key in so many seconds, unless a timer wakes it earlier."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def lag(self) -> float:
        """Seconds that the oldest pass has taken, or that keys waited and no pass ended: what a liveness probe reads.

        0 when there is nothing to do, infinite when nobody runs the queue. A queue that is long but gets on has no lag:
        to restart an operator that has too much to do gives it more.
        """
        if not self._running:
            return float("inf")
        waiting = (max(woken, self._last_end) for woken in islice(self._ready.values(), 1))
        since = [*self._active.values(), *waiting]
        return time.monotonic() - min(since) if since else 0.0

    async def run(self) -> None:
        self._running = True
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(self._workers):
                    workers.create_task(self._work())
        finally:
            self._running = False
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def _fire(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

    async def _work(self) -> None:
        while True:
            await self._wake.acquire()
            key, woken = self._ready.popitem(last=False)
            self._active[key] = started = time.monotonic()
            if timer := self._timers.pop(key, None):
                timer.cancel()
            self._metrics.queue_depth(len(self._ready))
            self._metrics.queue_wait(started - woken)
            try:
                delay = await self._pass(key)
            finally:
                del self._active[key]
                self._last_end = time.monotonic()
            if delay is not None:
                self.add_after(key, delay)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _pass(self, key: K) -> float | None:
        """One pass over one key; returns when it is due again."""
        started = time.monotonic()
        result = "cancelled"
        try:
            async with asyncio.timeout(self._deadline):
                delay = await self._reconcile(key)
            result = "done"
        except Conflict as error:
            result, delay = "conflict", self._failed(key, error)
        except (Transient, TimeoutError) as error:
            result, delay = "transient", self._failed(key, error)
        except BerthError as error:
            result, delay = "refused", self._failed(key, error)
        except Exception as error:
            result, delay = "bug", self._failed(key, error)
        else:
            self._failures.pop(key, None)
        finally:
            self._metrics.reconcile(result, time.monotonic() - started)
        return delay

    def _failed(self, key: K, error: Exception) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._metrics.queue_retry()
        longest = min(self._max_backoff, self._first_backoff * 2.0 ** min(failures - 1, 32))
        delay = longest * self._rng.uniform(0.5, 1.0)
        if isinstance(error, Conflict) and failures == 1:
            delay = 0.0
        if isinstance(error, Transient) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        expected = isinstance(error, BerthError | TimeoutError)
        reason = str(error) or type(error).__name__
        level = logging.WARNING if expected else logging.ERROR
        _log.log(level, "%s: %s (failure %d, again in %.1f s)", key, reason, failures, delay, exc_info=not expected)
        return delay
