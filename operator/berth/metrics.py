"""What Berth says about itself to Prometheus: every collector behind a named function.

One `Metrics` per process (per application in tests), with its own registry: nothing is global. Labels hold only
finite words (verbs, kinds, results), never names of objects.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_API_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECONCILE_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FAILOVER_SECONDS: Final = (0.5, 1, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 20, 25, 30, 45, 60, 120, 300, 900, 3600)
_WAIT_SECONDS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The collectors of one operator process; later parts register theirs on `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._api_requests = Counter(
            "berth_api_requests",
            "Requests to the Kubernetes API; code is the HTTP status, or timeout, connection or cancelled.",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self._api_seconds = Histogram(
            "berth_api_request_seconds",
            "Time from sending a request to its whole answer (of a watch: to its first byte).",
            ["verb", "kind"],
            buckets=_API_SECONDS,
            registry=self.registry,
        )
        self._lists = Counter(
            "berth_reflector_lists",
            "Full lists of a kind; reason is start, expired (version compacted or gone back) or periodic.",
            ["kind", "reason"],
            registry=self.registry,
        )
        self._reconcile_seconds = Histogram(
            "berth_reconcile_seconds",
            "Time of one pass over one key; result is done, conflict, transient, refused or bug.",
            ["result"],
            buckets=_RECONCILE_SECONDS,
            registry=self.registry,
        )
        self._queue_depth = Gauge(
            "berth_queue_depth", "Keys waiting for a worker, those on a timer not counted.", registry=self.registry
        )
        self._queue_wait = Histogram(
            "berth_queue_wait_seconds",
            "Time from a key's wake-up to the start of its pass.",
            buckets=_WAIT_SECONDS,
            registry=self.registry,
        )
        self._queue_retries = Counter(
            "berth_queue_retries", "Passes that failed and were put back with a delay.", registry=self.registry
        )
        self._events = Counter(
            "berth_events",
            "Events by what became of them: posted, counted (again within the window) or dropped.",
            ["result"],
            registry=self.registry,
        )
        self._leading = Gauge("berth_leader", "1 while this process holds the Lease.", registry=self.registry)

        self._frozen_pools = Gauge(
            "berth_frozen_pools", "Pools in which evacuations are frozen now.", registry=self.registry
        )
        self._freezes = Counter(
            "berth_evacuation_freezes",
            "Times that evacuations of a pool were frozen, because so much silence is more likely Berth's own.",
            registry=self.registry,
        )

        self._failover_seconds = Histogram(
            "berth_failover_seconds",
            "Seconds from a group's failure until it was detected, its traffic was cut, it was replaced, restored.",
            ["phase", "reason"],
            buckets=_FAILOVER_SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "berth_group_failures",
            "Groups that failed or restarted in place, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._false_alarms = Counter(
            "berth_false_alarms",
            "Groups that were cut off on suspicion and answered again without having failed.",
            registry=self.registry,
        )

        self._moves = Counter(
            "berth_moves",
            "Moves that ended; cause is Objectives, Cost or Requested, result Completed, RolledBack or Abandoned.",
            ["cause", "result"],
            registry=self.registry,
        )

    def move_ended(self, cause: str, result: str) -> None:
        self._moves.labels(cause, result).inc()

    def group_failed(self, reason: str) -> None:
        self._failures.labels(reason).inc()

    def failover(self, phase: str, reason: str, seconds: float) -> None:
        self._failover_seconds.labels(phase, reason).observe(seconds)

    def false_alarm(self) -> None:
        self._false_alarms.inc()

    def frozen_pools(self, count: int, *, begun: int) -> None:
        self._frozen_pools.set(count)
        self._freezes.inc(begun)

    def api_call(self, verb: str, kind: str, code: str, seconds: float) -> None:
        self._api_requests.labels(verb, kind, code).inc()
        self._api_seconds.labels(verb, kind).observe(seconds)

    def reflector_list(self, kind: str, reason: str) -> None:
        self._lists.labels(kind, reason).inc()

    def reconcile(self, result: str, seconds: float) -> None:
        self._reconcile_seconds.labels(result).observe(seconds)

    def queue_depth(self, depth: int) -> None:
        self._queue_depth.set(depth)

    def queue_wait(self, seconds: float) -> None:
        self._queue_wait.observe(seconds)

    def queue_retry(self) -> None:
        self._queue_retries.inc()

    def event(self, result: str) -> None:
        self._events.labels(result).inc()

    def leading(self, leads: bool) -> None:
        self._leading.set(leads)

    def render(self) -> bytes:
        """The exposition text, to be sent with CONTENT_TYPE."""
        return generate_latest(self.registry)
