"""What the Triton model asks of an engine, and the words between them.

An engine generates text for many requests at once on one asyncio loop. It must count its iterations in `state`: a count
that stands still while work is outstanding is how a hang is told from a slow engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class LoadError(RuntimeError):
    """The engine cannot load, and trying again unchanged will not help; the message is for the user."""


class RequestError(ValueError):
    """The request is at fault; the message names field, bound and remedy."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one request; None = the engine's default."""

    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that came out since the last piece. The last piece of a request has a `finish_reason`."""

    text: str
    tokens: int
    input_tokens: int
    scheduled: float | None = None
    """When the engine started on the request, CLOCK_MONOTONIC; None if it does not say."""
    finish_reason: str | None = None
    """`stop` or `length`."""
    stop_reason: str | None = None
    """The stop word that ended it."""


@dataclass(slots=True)
class EngineState:
    """Gauges, and sums over all iterations since the start."""

    running: int = 0
    waiting: int = 0
    kv_utilization: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    step_decodes: int = 0
    step_context_tokens: int = 0
    step_prefill_tokens: int = 0


class Engine(Protocol):
    """One model copy."""

    name: str
    note: str
    """One line for people: what runs, or what the simulation stands for."""
    state: EngineState

    async def load(self) -> None:
        """Returns when requests can be served. Raises LoadError."""

    def generate(self, prompt: str, sampling: Sampling) -> AsyncIterator[Piece]:
        """Pieces of the answer. Closing the iterator ends the request and frees its room. Raises RequestError."""

    async def close(self) -> None:
        """Gives everything back."""
