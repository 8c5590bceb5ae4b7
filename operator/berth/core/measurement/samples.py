"""One leader's page as numbers, and what happened between two of them.

Counters are cumulative since the engine started and may begin anew at any moment: a difference is only ever taken
between two samples of one life in which nothing went backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from berth.core.measurement.histogram import Attained, Histogram, merged

LONGEST_INTERVAL: Final = 60.0
"""Seconds between two samples beyond which their difference says nothing about a window of minutes."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Sums over engine iterations since the start."""

    count: float
    seconds: float
    decodes: float
    """Requests that were decoding, summed over iterations."""
    context_tokens: float
    """Tokens in the KV cache, summed over iterations."""
    prefill_tokens: float
    """Prompt tokens processed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one leader said at one moment. Everything but `at` may be missing: backends export different things."""

    at: float
    """Unix seconds."""
    first_token: Histogram | None = None
    """Seconds from arrival to the first token, queue included; canaries left out."""
    per_token: Histogram | None = None
    """Seconds per token after the first, per request: (last - first) / (n - 1)."""
    queue: Histogram | None = None
    """Seconds from arrival until the engine started on the request."""
    input: Histogram | None = None
    """Prompt tokens of finished requests."""
    output: Histogram | None = None
    """Generated tokens of finished requests."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """By name of a field of `Tally`: requests, tokens, failures, ..."""
    steps: Steps | None = None
    running: float | None = None
    """Requests the engine works on."""
    waiting: float | None = None
    """Requests that wait for room."""
    kv_use: float | None = None
    """Share of the KV cache in use, 0..1."""


@dataclass(frozen=True, slots=True)
class StepMoments:
    """Step time against (in flight, context, prefill): sums that add up and suffice for a weighted linear regression.

    One observation per pair of samples: x = (1, decodes, context tokens, prefill tokens, seconds), each a mean per
    iteration, weighted with its number of iterations. `products[i][j]` is the weighted sum of x[i] * x[j], so
    `products[0]` holds (iterations, decodes, context, prefill, seconds) as plain sums.
    """

    observations: int = 0
    products: tuple[tuple[float, ...], ...] = ((0.0,) * 5,) * 5

    @property
    def steps(self) -> float:
        return self.products[0][0]

    @property
    def means(self) -> tuple[float, float, float, float] | None:
        """Per iteration: requests decoding, context tokens, prefill tokens, seconds. None without iterations."""
        count, decodes, context, prefill, seconds = self.products[0]
        return (decodes / count, context / count, prefill / count, seconds / count) if count else None

    def __add__(self, other: StepMoments) -> StepMoments:
        return StepMoments.total((self, other))

    @classmethod
    def total(cls, moments: Iterable[StepMoments]) -> StepMoments:
        """All of them together."""
        parts = [part for part in moments if part.observations]
        if len(parts) < 2:
            return parts[0] if parts else cls()
        upper = {(i, j): sum(part.products[i][j] for part in parts) for i in range(5) for j in range(i, 5)}
        products = tuple(tuple(upper[min(i, j), max(i, j)] for j in range(5)) for i in range(5))
        return cls(sum(part.observations for part in parts), products)

    @classmethod
    def of(cls, count: float, decodes: float, context: float, prefill: float, seconds: float) -> StepMoments:
        """From sums over `count` iterations; empty without iterations."""
        if count <= 0:
            return cls()
        sums = (count, decodes, context, prefill, seconds)
        upper = {(i, j): sums[i] * sums[j] / count for i in range(5) for j in range(i, 5)}
        return cls(1, tuple(tuple(upper[min(i, j), max(i, j)] for j in range(5)) for i in range(5)))


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened in a span of time; adds up over spans and over groups. Canaries are in none of the counts."""

    group_seconds: float = 0.0
    """Seconds observed, summed over groups."""
    readings: int = 0
    """Samples the gauge sums are of."""
    first_token: Histogram | None = None
    per_token: Histogram | None = None
    queue: Histogram | None = None
    input: Histogram | None = None
    output: Histogram | None = None
    first_token_met: Attained = field(default_factory=Attained)
    """Of requests that got a first token; empty where there is no objective or no such histogram."""
    per_token_met: Attained = field(default_factory=Attained)
    """Of finished requests of two tokens or more."""
    requests: float = 0.0
    """Requests that clients sent and the leader accepted."""
    tokens: float = 0.0
    """Tokens generated for them."""
    failures: float = 0.0
    """Requests that ended without an answer through no fault of the client: engine errors."""
    refusals: float = 0.0
    """Requests refused while draining."""
    cancellations: float = 0.0
    """Requests the client gave up."""
    input_squares: float = 0.0
    """Sum of squared prompt lengths of finished requests."""
    output_squares: float = 0.0
    """Sum of squared answer lengths."""
    requested_tokens: float = 0.0
    """Sum of requested maximum answers of finished requests."""
    decode_seconds: float = 0.0
    """Where only sums are exported: time between first and last tokens ..."""
    decode_tokens: float = 0.0
    """... and the tokens that came in it."""
    running_sum: float = 0.0
    """Requests the engine worked on, summed over readings (of groups that say so)."""
    waiting_sum: float = 0.0
    kv_use_sum: float = 0.0
    kv_use_max: float = 0.0
    """Largest share of the KV cache of any group at any reading, 0..1."""
    steps: StepMoments = field(default_factory=StepMoments)

    def __add__(self, other: Tally) -> Tally:
        return Tally.total((self, other))

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        parts = tuple(tallies)
        if len(parts) < 2:
            return parts[0] if parts else cls()
        combined: dict[str, Any] = {name: merged(getattr(part, name) for part in parts) for name in HISTOGRAMS}
        combined |= {name: sum(getattr(part, name) for part in parts) for name in _SUMS}
        return cls(
            **combined,
            kv_use_max=max(part.kv_use_max for part in parts),
            first_token_met=Attained.total(part.first_token_met for part in parts),
            per_token_met=Attained.total(part.per_token_met for part in parts),
            steps=StepMoments.total(part.steps for part in parts),
        )

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds per token after the first: over requests, or over tokens where only sums are exported."""
        if self.per_token is not None:
            return self.per_token.mean
        return self.decode_seconds / self.decode_tokens if self.decode_tokens > 0 else None

    @property
    def finished(self) -> int:
        """Requests whose lengths are known."""
        return self.output.count if self.output else 0


HISTOGRAMS: Final = ("first_token", "per_token", "queue", "input", "output")
COUNTERS: Final = (
    "requests",
    "tokens",
    "failures",
    "refusals",
    "cancellations",
    "input_squares",
    "output_squares",
    "requested_tokens",
    "decode_seconds",
    "decode_tokens",
)
_SUMS: Final = (*COUNTERS, "group_seconds", "readings", "running_sum", "waiting_sum", "kv_use_sum")


@dataclass(frozen=True, slots=True)
class Objectives:
    """p95 objectives in seconds; None = not an objective."""

    first_token: float | None = None
    per_token: float | None = None


def between(earlier: Sample, later: Sample, objectives: Objectives) -> Tally | None:
    """What happened from one sample to the next.

    None where that cannot be told: something went backwards (the engine restarted), a histogram has other edges (an
    objective changed), one of the two lacks what the other has, or too much time has passed.
    """
    seconds = later.at - earlier.at
    if not 0 < seconds <= LONGEST_INTERVAL or earlier.counters.keys() != later.counters.keys():
        return None
    grown: dict[str, Histogram] = {}
    for name in HISTOGRAMS:
        before, after = getattr(earlier, name), getattr(later, name)
        if before is None and after is None:
            continue
        difference = after.since(before) if before is not None and after is not None else None
        if difference is None:
            return None
        grown[name] = difference
    counted = {name: value - earlier.counters[name] for name, value in later.counters.items()}
    # Differences of derived sums may come out a little negative by rounding; whole counters never do.
    if any(value < 0 for name, value in counted.items() if not name.startswith("decode_")):
        return None
    steps = _steps(earlier.steps, later.steps)
    if steps is None:
        return None
    first, token = grown.get("first_token"), grown.get("per_token")
    kv_use = later.kv_use or 0.0
    known: dict[str, Any] = {**grown, **{name: max(0.0, value) for name, value in counted.items()}}
    return Tally(
        **known,
        group_seconds=seconds,
        readings=1,
        first_token_met=_met(first, objectives.first_token),
        per_token_met=_met(token, objectives.per_token),
        running_sum=later.running or 0.0,
        waiting_sum=later.waiting or 0.0,
        kv_use_sum=kv_use,
        kv_use_max=kv_use,
        steps=steps,
    )


def _met(histogram: Histogram | None, objective: float | None) -> Attained:
    return histogram.within(objective) if histogram is not None and objective is not None else Attained()


def _steps(earlier: Steps | None, later: Steps | None) -> StepMoments | None:
    """None if they went backwards."""
    if earlier is None or later is None:
        return StepMoments()
    grown = {each.name: getattr(later, each.name) - getattr(earlier, each.name) for each in fields(Steps)}
    if min(grown.values()) < 0:
        return None
    return StepMoments.of(
        grown["count"], grown["decodes"], grown["context_tokens"], grown["prefill_tokens"], grown["seconds"]
    )
