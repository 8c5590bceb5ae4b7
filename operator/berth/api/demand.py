"""`spec.traffic` and `spec.objectives`: what clients send, and what they are promised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from berth.api.quantities import Duration, Quantity
from berth.api.schema import Int, Model, Rule

Tokens = Annotated[Int, Field(ge=1, le=16_777_216)]


class InputTokens(Model):
    """Lengths of prompts."""

    rules = (
        Rule(
            "self.mean <= self.p95 && self.p95 <= self.max",
            "mean must not be above p95, nor p95 above max: correct them",
            lambda tokens: tokens.mean <= tokens.p95 <= tokens.max,
        ),
    )

    mean: Tokens
    """Mean, in tokens."""
    p95: Tokens
    """95th percentile, in tokens."""
    p99: Tokens | None = None
    """99th percentile, p95 to max; absent: a short tail past p95, as where a context limit cuts prompts off."""
    max: Tokens
    """Longest prompt that must be served, in tokens."""


class OutputTokens(Model):
    """Lengths of answers."""

    rules = (
        Rule(
            "self.mean <= self.p95 && self.p95 <= self.maxRequested",
            "mean must not be above p95, nor p95 above maxRequested: correct them",
            lambda tokens: tokens.mean <= tokens.p95 <= tokens.max_requested,
        ),
    )

    mean: Tokens
    """Mean, in tokens."""
    p95: Tokens
    """95th percentile, in tokens."""
    max_requested: Tokens
    """Largest max_tokens that clients ask for; the engine reserves KV cache for it whether it is used or not."""


class Traffic(Model):
    """What to plan for until there are measurements."""

    rules = (
        Rule(
            "has(self.arrival) && self.arrival == 'Closed' ? has(self.concurrency) && !has(self.requestsPerSecond) "
            ": has(self.requestsPerSecond) && !has(self.concurrency)",
            "arrival Open needs requestsPerSecond and no concurrency, arrival Closed needs concurrency and no "
            "requestsPerSecond: give the one that belongs to arrival",
            lambda traffic: (
                (traffic.concurrency is not None, traffic.requests_per_second is not None)
                == (traffic.arrival == "Closed", traffic.arrival == "Open")
            ),
        ),
    )

    requests_per_second: Annotated[int | str, Quantity("0", "100000", above=True)] | None = None
    """Mean arrivals of the whole deployment per second; for arrival Open."""
    input_tokens: InputTokens
    """Lengths of prompts."""
    output_tokens: OutputTokens
    """Lengths of answers."""
    peak_to_mean: Annotated[int | str, Quantity("1", "100")] = "1.4"
    """Requests in the busiest minute against the mean minute."""
    peak_input_to_mean: Annotated[int | str, Quantity("0.1", "10")] | None = None
    """Mean prompt in busy minutes against the mean prompt; absent: rises with peakToMean."""
    peak_output_to_mean: Annotated[int | str, Quantity("0.1", "10")] | None = None
    """Mean answer in busy minutes against the mean answer; absent: the same."""
    cached_input_fraction: Annotated[int | str, Quantity("0", "0.99")] = "0"
    """Share of prompt tokens whose KV cache can be re-used."""
    arrival: Literal["Open", "Closed"] = "Open"
    """Open: requests come whether or not others finished. Closed: each of `concurrency` clients awaits its answer."""
    concurrency: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Clients that each keep one request in flight; for arrival Closed."""


class TimeToFirstToken(Model):
    """Objective for the time from the request to its first token."""

    p95: Annotated[str, Duration("1ms", "1h")]
    """95th percentile."""


class TimePerOutputToken(Model):
    """Objective for the time per token after the first, per request: (last - first) / (n - 1)."""

    p95: Annotated[str, Duration("1ms", "1m")]
    """95th percentile."""


class Limits(Model):
    """Bounds of everything at every moment, surge included."""

    gpus: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """GPUs; absent: no bound."""
    cost_per_hour: Annotated[int | str, Quantity("0", "100000000", above=True)] | None = None
    """Price per hour in the pools' currency; absent: no bound."""


class Objectives(Model):
    """What is promised to clients, and what to optimise within it."""

    time_to_first_token: TimeToFirstToken | None = None
    """Absent: not an objective."""
    time_per_output_token: TimePerOutputToken | None = None
    """Absent: not an objective."""
    availability: Annotated[int | str, Quantity("0.5", "0.999999")] | None = None
    """Share of time in which the needed groups serve; absent: not an objective."""
    prefer: Literal["Cost", "Latency", "Throughput"] = "Cost"
    """Cost: least $/h per demanded token. Latency: lowest predicted p95 time per output token, then time to first
    token, within limits. Throughput: highest sustainable tokens/s within limits."""
    limits: Limits = Limits()
    """Bounds on GPUs and price."""
