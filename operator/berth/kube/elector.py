"""Which of several operator processes acts: the one that holds a Lease.

Safety does not rest on synchronised clocks. A contender takes over only after it has *seen* the Lease unchanged for its
whole duration, on its own clock; the leader stops acting when it has not renewed for `renew_deadline`, counted from
before the renewal was sent, on a clock that runs on while the machine sleeps. So with renew_deadline < duration the old
leader has stopped before a new one starts, however long its requests hang. `check` is meant to run before every write.

Leading is never taken back in place: once lost, the process ends and another one starts from nothing.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import random
from collections.abc import Callable
from typing import Any

from berth.errors import BerthError, Conflict, Transient
from berth.kube import clock
from berth.kube.client import KubeClient
from berth.kube.errors import NotFound
from berth.kube.kinds import LEASE, Object
from berth.metrics import Metrics

_log = logging.getLogger(__name__)


class LeadershipLost(BerthError):
    """This process may not write any more."""


class Elector:
    """Takes, keeps and gives back one Lease under `identity`, which must be unique among the contenders.

    `client` must have neither the write guard nor a rate limit that other requests can exhaust. All times are in
    seconds; `now` never goes back and cannot be set. Use: `acquire`, then `hold` beside the work, `release` at the end.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
        now: Callable[[], float] = clock.now,
        utc: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if not retry < renew_deadline < duration:
            raise ValueError("retry < renew_deadline < duration must hold")
        self.identity = identity
        self.holder = ""
        """Who holds the Lease as far as is known; empty for nobody."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._duration = duration
        self._renew_deadline = renew_deadline
        self._retry = retry
        self._now = now
        self._utc = utc
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._metrics = metrics or Metrics()
        self._deadline: float | None = None
        self._lease: Object | None = None
        self._seen: tuple[object, float] | None = None  # what others wrote, and when it was first seen

    def check(self) -> None:
        """Raises `LeadershipLost` unless this process leads now."""
        if self._deadline is None:
            raise LeadershipLost(f"{self.identity} does not hold Lease {self._namespace}/{self._name}")
        late = self._now() - self._deadline
        if late >= 0:
            raise LeadershipLost(f"{self.identity} is {late:.1f} s past its deadline to renew {self._name}")

    async def acquire(self) -> None:
        """Returns once this process leads; goes on trying through every error of the API server."""
        while True:
            sent = self._now()
            try:
                async with asyncio.timeout(self._renew_deadline / 2):
                    acquired = await self._try_acquire()
            except (BerthError, TimeoutError) as error:
                _log.warning("Lease %s/%s not taken: %s", self._namespace, self._name, error or "no answer in time")
                acquired = False
            if acquired:
                self._lead_until(sent + self._renew_deadline)
                return
            await self._pause()

    async def hold(self) -> None:
        """Renews for as long as it can; raises `LeadershipLost` when another holds the Lease or the deadline passed."""
        try:
            while True:
                await self._pause()
                self.check()
                assert self._deadline is not None
                sent = self._now()
                attempt = min(self._renew_deadline / 2, self._deadline - sent)
                try:
                    async with asyncio.timeout(attempt):
                        await self._renew()
                except Conflict:
                    await self._look_again(attempt)
                except NotFound:
                    raise
                except (BerthError, TimeoutError) as error:
                    _log.warning("Lease %s not renewed: %s", self._name, error or "no answer in time")
                else:
                    self._lead_until(sent + self._renew_deadline)
        except NotFound as error:
            raise LeadershipLost(f"Lease {self._namespace}/{self._name} was deleted") from error
        finally:
            self._stop()

    async def release(self) -> None:
        """Let another take over at once. Best effort: without an answer the Lease runs out by itself."""
        self._stop()
        if self._lease is None or self.holder != self.identity:
            return
        free = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._timestamp()}
        try:
            async with asyncio.timeout(self._retry):
                try:
                    await self._write(free)
                except Conflict:  # of a renewal that was cut short the server may know more than this process
                    self._read(await self._client.get(LEASE, self._namespace, self._name))
                    if self.holder == self.identity:
                        await self._write(free)
        except (BerthError, TimeoutError) as error:
            _log.warning("Lease %s not released: %s", self._name, error or "no answer in time")

    async def _try_acquire(self) -> bool:
        """One look at the Lease, and one write if it is free."""
        try:
            self._read(await self._client.get(LEASE, self._namespace, self._name))
        except NotFound:
            self._read(await self._client.create(self._new_lease()))
            return True
        assert self._lease is not None
        spec = self._lease.get("spec") or {}
        if self.holder not in ("", self.identity) and not self._expired(spec):
            return False
        transitions = int(spec.get("leaseTransitions") or 0) + (self.holder != self.identity)
        await self._write({**self._term(), "acquireTime": self._timestamp(), "leaseTransitions": transitions})
        return True

    def _expired(self, spec: dict[str, Any]) -> bool:
        """Whether the record has not changed in this process' sight for the time that it grants its holder."""
        record = tuple(spec.get(part) for part in ("holderIdentity", "renewTime", "acquireTime", "leaseTransitions"))
        if self._seen is None or self._seen[0] != record:
            self._seen = (record, self._now())
        return self._now() - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._duration)

    async def _renew(self) -> None:
        await self._write(self._term())

    async def _look_again(self, seconds: float) -> None:
        """After a 409: the Lease may be another's, or our own last renewal arrived and only its answer was lost."""
        try:
            async with asyncio.timeout(seconds):
                self._read(await self._client.get(LEASE, self._namespace, self._name))
        except (Transient, TimeoutError):
            return
        if self.holder != self.identity:
            raise LeadershipLost(f"Lease {self._namespace}/{self._name} is held by {self.holder or 'nobody'}")

    async def _write(self, spec: dict[str, Any]) -> None:
        """Change the Lease as last read; `Conflict` when somebody wrote since."""
        assert self._lease is not None
        version = self._lease["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        self._read(await self._client.merge_patch(LEASE, self._namespace, self._name, patch))

    def _read(self, lease: Object) -> None:
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder != self.holder:
            _log.info("Lease %s/%s is held by %s", self._namespace, self._name, holder or "nobody")
        self._lease, self.holder = lease, holder

    def _term(self) -> dict[str, Any]:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "renewTime": self._timestamp(),
        }

    def _new_lease(self) -> Object:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"namespace": self._namespace, "name": self._name},
            "spec": {**self._term(), "acquireTime": self._timestamp(), "leaseTransitions": 0},
        }

    def _timestamp(self) -> str:
        """MicroTime, for people only: always UTC, always six digits."""
        return self._utc().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _lead_until(self, deadline: float) -> None:
        self._deadline = deadline
        self._metrics.leading(True)

    def _stop(self) -> None:
        self._deadline = None
        self._metrics.leading(False)

    async def _pause(self) -> None:
        """Shortened by up to a fifth, so that contenders fall out of step."""
        await asyncio.sleep(self._retry * self._rng.uniform(0.8, 1.0))
