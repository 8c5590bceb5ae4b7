"""What the model measures: counters, histograms and gauges of its requests, as one JSON document for the launcher.

Thread-safe: requests are counted from Triton's thread, the engine's loop and the reporter. Latencies of canaries
are left out, their tokens count: they are progress.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from berth.engine.engines.base import EngineState

Failure = Literal["invalid", "engine", "cancelled", "draining"]
FAILURES: Final[tuple[Failure, ...]] = ("invalid", "engine", "cancelled", "draining")


def geometric(first: float, last: float, ratio: float) -> list[float]:
    """Edges first, first * ratio, ... up to last, to three significant digits."""
    edges = []
    edge = first
    while edge <= last * 1.001:
        edges.append(float(f"{edge:.3g}"))
        edge *= ratio
    return edges


FIRST_TOKEN_EDGES: Final = geometric(0.01, 60, 2**0.5)
PER_TOKEN_EDGES: Final = geometric(0.002, 1, 2**0.5)
END_TO_END_EDGES: Final = geometric(0.1, 600, 2)
QUEUE_EDGES: Final = geometric(0.001, 60, 2)
TOKEN_EDGES: Final = [float(2**power) for power in range(4, 16)]


class Histogram:
    """Cumulative-by-edge histogram with fixed upper edges (inclusive, as Prometheus has them)."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = sorted(set(edges))
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    def document(self) -> dict[str, Any]:
        return {"edges": self.edges, "counts": self.counts, "sum": self.total}


@dataclass(slots=True)
class Ticket:
    """One accepted request, from arrival to its final answer. Times in seconds of the meter's clock."""

    canary: bool
    arrived: float
    requested_tokens: int = 0
    input_tokens: int = 0
    scheduled: float | None = None
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    closed: bool = field(default=False)


class Meter:
    """See the module. `objectives` are upper edges of the first-token and per-token histograms, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objectives: dict[str, float] = {}
        self._in_flight = 0
        self._requests = {"all": 0, "clients": 0}
        self._tokens = {"all": 0, "clients": 0}
        self._failures = dict.fromkeys(FAILURES, 0)
        self._last_accepted: float | None = None
        self._last_token: float | None = None
        self._squares = {"input": 0.0, "output": 0.0, "requested": 0.0}
        self._end_to_end = Histogram(END_TO_END_EDGES)
        self._queue = Histogram(QUEUE_EDGES)
        self._input = Histogram(TOKEN_EDGES)
        self._output = Histogram(TOKEN_EDGES)
        self._first_token = Histogram(FIRST_TOKEN_EDGES)
        self._per_token = Histogram(PER_TOKEN_EDGES)

    def set_objectives(self, objectives: dict[str, float]) -> None:
        """New edges need new histograms; the same objectives change nothing."""
        with self._lock:
            if objectives != self._objectives:
                self._objectives = dict(objectives)
                self._first_token = self._with_edge(FIRST_TOKEN_EDGES, "time_to_first_token")
                self._per_token = self._with_edge(PER_TOKEN_EDGES, "time_per_output_token")

    def _with_edge(self, edges: list[float], objective: str) -> Histogram:
        extra = self._objectives.get(objective)
        return Histogram(edges if extra is None else [*edges, extra])

    def accept(self, *, canary: bool) -> Ticket:
        """A request came in and will be answered."""
        now = self._clock()
        with self._lock:
            self._in_flight += 1
            self._requests["all"] += 1
            if not canary:
                self._requests["clients"] += 1
                self._last_accepted = now
        return Ticket(canary, now)

    def refuse(self) -> None:
        """A request came in while draining."""
        with self._lock:
            self._failures["draining"] += 1

    def tokens(self, ticket: Ticket, count: int) -> None:
        """`count` tokens came out for one request."""
        if count == 0:
            return
        now = self._clock()
        with self._lock:
            self._tokens["all"] += count
            if not ticket.canary:
                self._tokens["clients"] += count
            self._last_token = now
            if ticket.first is None:
                ticket.first = now
                if not ticket.canary:
                    self._first_token.observe(now - ticket.arrived)
                    if ticket.scheduled is not None:
                        self._queue.observe(max(0.0, ticket.scheduled - ticket.arrived))
            ticket.last = now
            ticket.tokens += count

    def close(self, ticket: Ticket, failure: Failure | None = None) -> None:
        """The final answer went out. Closing twice is harmless."""
        now = self._clock()
        with self._lock:
            if ticket.closed:
                return
            ticket.closed = True
            self._in_flight -= 1
            if failure:
                self._failures[failure] += 1
                return
            if ticket.canary:
                return
            self._end_to_end.observe(now - ticket.arrived)
            self._input.observe(ticket.input_tokens)
            self._output.observe(ticket.tokens)
            self._squares["input"] += ticket.input_tokens**2
            self._squares["output"] += ticket.tokens**2
            self._squares["requested"] += ticket.requested_tokens
            if ticket.tokens > 1 and ticket.first is not None and ticket.last is not None:
                self._per_token.observe((ticket.last - ticket.first) / (ticket.tokens - 1))

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def document(self, engine: EngineState) -> dict[str, Any]:
        """Everything, as the launcher reads it."""
        with self._lock:
            return {
                "in_flight": self._in_flight,
                "requests": self._requests["all"],
                "tokens": self._tokens["all"],
                "clients": {"requests": self._requests["clients"], "tokens": self._tokens["clients"]},
                "failures": dict(self._failures),
                "last_accepted": self._last_accepted,
                "last_token": self._last_token,
                "running": engine.running,
                "waiting": engine.waiting,
                "kv_utilization": engine.kv_utilization,
                "steps": engine.steps,
                "step_sums": {
                    "seconds": engine.step_seconds,
                    "decodes": engine.step_decodes,
                    "context_tokens": engine.step_context_tokens,
                    "prefill_tokens": engine.step_prefill_tokens,
                },
                "squares": {
                    "input": self._squares["input"],
                    "output": self._squares["output"],
                    "requested": self._squares["requested"],
                },
                "histograms": {
                    "first_token": self._first_token.document(),
                    "per_token": self._per_token.document(),
                    "end_to_end": self._end_to_end.document(),
                    "queue": self._queue.document(),
                    "input": self._input.document(),
                    "output": self._output.document(),
                },
            }
