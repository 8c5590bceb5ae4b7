"""A model copy under in-flight batching as an event-driven plant: what the simulated engine runs, without Triton too.

The plant knows no clock and does no I/O: the caller submits jobs, begins a step, lets its seconds pass and completes
it. Step times come from tables of published measurements (`step_times`), not from the estimator, whose predictions it
is there to contradict.

Invariants: a job is admitted only when blocks for its prompt *and its requested maximum output* are free
(TensorRT-LLM's default policy GUARANTEED_NO_EVICT, https://nvidia.github.io/TensorRT-LLM/), first come first served;
an admitted job is never evicted; blocks reserved never exceed the room; the same seed and the same calls give the same
steps.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

from berth.engine.engines.step_times import StepTimes


class Refused(ValueError):
    """The job can never run here; the message names the bound and the remedy."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request, lengths in tokens: `max_output_tokens` was asked for, `output_tokens` come out."""

    id: int
    input_tokens: int
    output_tokens: int
    max_output_tokens: int
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache: no prefill, but room all the same."""


@dataclass(frozen=True, slots=True)
class PlantConfig:
    """The copy. Times in seconds, sizes in tokens."""

    times: StepTimes
    kv_tokens: int
    max_batch_size: int = 256
    max_num_tokens: int = 8192
    block_tokens: int = 32
    speed: float = 1.0
    """Hidden factor on every step time; 1.2 is a copy 20 % slower than its table."""
    noise: float = 0.03
    """Coefficient of variation of a step time (log-normal, mean 1)."""
    stall_every: float = 0.0
    """Mean busy seconds between stalls; 0: none."""
    stall_seconds: float = 0.2
    """Mean length of a stall (exponential)."""


@dataclass(slots=True)
class Step:
    """One engine iteration in progress: one token for each of `decodes` jobs, and `prefill_tokens` of prompts."""

    seconds: float
    decodes: int
    context_tokens: int
    prefill_tokens: int
    admitted: list[int]
    chunks: list[_Running] = field(repr=False)
    """Prompts processed in this step; `done` already counts this step's part."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a completed step gave, beside one token for each job that was decoding."""

    first: list[int]
    """Jobs that got their first token."""
    finished: list[int]


@dataclass(slots=True)
class _Running:
    job: Job
    blocks: int
    done: int
    """Prompt tokens processed, cached ones included."""
    born: int = -1
    """Decode tick at which the first token came out; -1: still in prefill."""
    gone: bool = False


class Plant:
    """See the module. Not thread-safe; one step at a time."""

    def __init__(self, config: PlantConfig, seed: int = 0) -> None:
        if config.kv_tokens < config.block_tokens:
            raise ValueError(f"kv_tokens {config.kv_tokens} is less than one block of {config.block_tokens} tokens")
        self.config = config
        self._random = Random(seed)  # noqa: S311  (a simulation, nothing to guess)
        self._sigma = math.sqrt(math.log1p(config.noise**2))
        self._blocks = config.kv_tokens // config.block_tokens
        self._free = self._blocks
        self._waiting: deque[_Running] = deque()
        self._prefilling: deque[_Running] = deque()
        self._decoding: dict[int, _Running] = {}
        self._known: dict[int, _Running] = {}
        self._tick = 0
        self._ends: list[tuple[int, int, _Running]] = []
        self._context = 0
        """Tokens in the cache of all decoding jobs."""

    # --- what a caller may see ---------------------------------------------------------------------------------------
    @property
    def decoding(self) -> Collection[int]:
        """Jobs that get one token from the step in progress."""
        return self._decoding.keys()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def kv_utilization(self) -> float:
        """Share of the room that holds tokens (not: is reserved)."""
        held = self._context + sum(entry.done for entry in self._prefilling)
        return min(1.0, held / (self._blocks * self.config.block_tokens))

    # --- calls -------------------------------------------------------------------------------------------------------
    def submit(self, job: Job) -> None:
        """Queue a job. Raises `Refused` where it can never fit, ValueError for lengths that make no sense."""
        if job.id in self._known:
            raise ValueError(f"job {job.id} is already here")
        if not (0 < job.output_tokens <= job.max_output_tokens and 0 <= job.cached_tokens < job.input_tokens):
            raise ValueError(f"lengths of {job} make no sense")
        blocks = -(-(job.input_tokens + job.max_output_tokens) // self.config.block_tokens)
        if blocks > self._blocks:
            raise Refused(
                f"input {job.input_tokens} + maximum output {job.max_output_tokens} tokens exceed the KV cache of "
                f"{self._blocks * self.config.block_tokens} tokens: shorten the prompt or lower the maximum output"
            )
        entry = _Running(job, blocks, job.cached_tokens)
        self._known[job.id] = entry
        self._waiting.append(entry)

    def cancel(self, job_id: int) -> None:
        """Forget a job wherever it is; unknown ones are ignored. A step in progress still takes its time."""
        entry = self._known.get(job_id)
        if entry is None:
            return
        if entry.born >= 0:
            self._end(entry)
            return
        entry.gone = True
        del self._known[job_id]
        if entry in self._waiting:
            self._waiting.remove(entry)
        else:
            self._prefilling.remove(entry)
            self._free += entry.blocks

    def begin(self) -> Step | None:
        """Admit what fits and start the next iteration; None if there is nothing to do."""
        admitted = self._admit()
        chunks: list[_Running] = []
        seconds = 0.0
        prefill = 0
        times = self.config.times
        budget = self.config.max_num_tokens - len(self._decoding)
        for entry in self._prefilling:
            part = min(budget, entry.job.input_tokens - entry.done)
            if part <= 0:
                break
            seconds += times.prefill_seconds(entry.done, entry.done + part)
            entry.done += part
            budget -= part
            prefill += part
            chunks.append(entry)
        decodes = len(self._decoding)
        if not decodes and not chunks:
            return None
        seconds += times.decode_seconds(max(1, decodes), self._context)
        return Step(self._disturb(seconds), decodes, self._context, prefill, admitted, chunks)

    def complete(self, step: Step) -> Outcome:
        """End the iteration: every decoding job got a token; prompts that are through got their first one."""
        self._tick += 1
        self._context += len(self._decoding)
        finished = []
        while self._ends and self._ends[0][0] <= self._tick:
            entry = heapq.heappop(self._ends)[2]
            if not entry.gone:
                finished.append(entry.job.id)
                self._end(entry)
        first = []
        for entry in step.chunks:
            if entry.gone or entry.done < entry.job.input_tokens:
                continue
            self._prefilling.remove(entry)
            first.append(entry.job.id)
            entry.born = self._tick
            self._decoding[entry.job.id] = entry
            self._context += entry.job.input_tokens + 1
            if entry.job.output_tokens == 1:
                finished.append(entry.job.id)
                self._end(entry)
            else:
                heapq.heappush(self._ends, (self._tick + entry.job.output_tokens - 1, entry.job.id, entry))
        return Outcome(first, finished)

    # --- inside ------------------------------------------------------------------------------------------------------
    def _admit(self) -> list[int]:
        admitted = []
        while self._waiting and self.running < self.config.max_batch_size and self._waiting[0].blocks <= self._free:
            entry = self._waiting.popleft()
            self._free -= entry.blocks
            self._prefilling.append(entry)
            admitted.append(entry.job.id)
        return admitted

    def _end(self, entry: _Running) -> None:
        """A decoding job leaves; its entry in the heap of ends is skipped when it comes up."""
        entry.gone = True
        del self._known[entry.job.id]
        del self._decoding[entry.job.id]
        self._context -= entry.job.input_tokens + 1 + self._tick - entry.born
        self._free += entry.blocks

    def _disturb(self, seconds: float) -> float:
        config = self.config
        seconds *= config.speed
        if config.noise:
            seconds *= self._random.lognormvariate(-(self._sigma**2) / 2, self._sigma)
        if config.stall_every and self._random.random() < seconds / config.stall_every:
            seconds += self._random.expovariate(1 / config.stall_seconds)
        return seconds
