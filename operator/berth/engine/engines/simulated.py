"""The simulated engine: a plant that runs by the clock on the wall and answers in words, for machines without a GPU.

One word is one token, in prompts and in answers. The answer to any prompt is `w1 w2 w3 ...`, so a client can check
that nothing is lost, doubled or mixed up; `sampling_param_stop: ["w8"]` ends it after seven words, before the maximum
that was asked for and reserved. Everything it measures is simulated hardware and is labelled so.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from berth.engine.engines import step_times
from berth.engine.engines.base import EngineState, LoadError, Piece, RequestError, Sampling
from berth.engine.engines.faults import FaultFile, Faults, crash
from berth.engine.engines.plant import Job, Plant, PlantConfig, Refused, Step

POLL_SECONDS = 0.05
"""How often a frozen or loading engine looks whether its fault is gone."""


@dataclass(slots=True)
class _Answer:
    """One request in the plant."""

    input_tokens: int
    length: int
    stop: str | None
    """Stop word that ends the answer after `length` words; None: the maximum does."""
    sent: int = 0
    scheduled: float | None = None
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)


class SimulatedEngine:
    """See the module. `options` is the `simulated` part of the model's configuration."""

    name = "simulated"

    def __init__(
        self,
        options: dict[str, Any],
        *,
        faults: FaultFile,
        max_input_tokens: int,
        pool: str = "",
        member_lost: Callable[[], bool] = lambda: False,
        die: Callable[[], None] = crash,
    ) -> None:
        self.note = ""
        self.state = EngineState()
        self._options = options
        self._faults = faults
        self._max_input_tokens = max_input_tokens
        self._pool = pool
        self._member_lost = member_lost
        self._die = die
        self._numbers = itertools.count()
        self._answers: dict[int, _Answer] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._time_scale = 1.0

    # --- engine ------------------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """Takes `load_seconds`; fails for a copy that does not fit, as loading does on a GPU."""
        started = time.monotonic()
        config, seed, self.note = plant_config(self._options, self._pool)
        self._time_scale = number(self._options, "time_scale", 1.0, minimum=0.001)
        usual = number(self._options, "load_seconds", 2.0, minimum=0.0)
        while True:
            faults = self._faults.read()
            self._maybe_die(faults)
            left = started + (usual if faults.load_seconds is None else faults.load_seconds) - time.monotonic()
            if left <= 0 and not faults.hang:
                break
            await asyncio.sleep(min(POLL_SECONDS, max(left, 0.001)))
        if faults.load_failure:
            raise LoadError(faults.load_failure)
        self._plant = Plant(config, seed)
        self._task = asyncio.create_task(self._run())

    async def generate(self, prompt: str, sampling: Sampling) -> AsyncIterator[Piece]:
        words = len(prompt.split())
        if not words:
            raise RequestError("text_input is empty: send at least one word")
        if words > self._max_input_tokens:
            raise RequestError(f"text_input has {words} tokens: at most {self._max_input_tokens}")
        if self._faults.read().errors:
            raise RuntimeError("fault switch: every request fails")
        job = next(self._numbers)
        length, stop = sampling.max_tokens, None
        for word in sampling.stop:
            if 0 < stop_number(word) <= length:
                length, stop = stop_number(word) - 1, word
        if length == 0:
            yield Piece("", 0, words, finish_reason="stop", stop_reason=stop)
            return
        answer = _Answer(words, length, stop)
        try:
            self._plant.submit(Job(job, words, length, sampling.max_tokens))
        except Refused as error:
            raise RequestError(str(error)) from error
        self._answers[job] = answer
        self._observe(None)
        self._work.set()
        try:
            while True:
                piece = await answer.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            if self._answers.pop(job, None):
                self._plant.cancel(job)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- the loop ----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        """One plant step after the other, in real time; an engine that fell behind does not sleep."""
        due = time.monotonic()
        while True:
            faults = await self._unfrozen()
            step = self._plant.begin()
            if step is None:
                self._observe(None)
                self._work.clear()
                await self._work.wait()
                due = time.monotonic()
                continue
            now = time.monotonic()
            for job in step.admitted:
                if job in self._answers:
                    self._answers[job].scheduled = now
            seconds = step.seconds * faults.slow / self._time_scale
            due = max(due, now - seconds) + seconds
            await asyncio.sleep(due - now)
            receivers = tuple(self._plant.decoding)
            outcome = self._plant.complete(step)
            self._observe(step, seconds)
            for job in (*receivers, *outcome.first):
                self._deliver(job)

    async def _unfrozen(self) -> Faults:
        """Returns at once unless a fault holds the engine; then when it lets go."""
        while True:
            faults = self._faults.read()
            self._maybe_die(faults)
            if not faults.hang and not self._member_lost():
                return faults
            await asyncio.sleep(POLL_SECONDS)

    def _maybe_die(self, faults: Faults) -> None:
        """Crashes once: the switch goes with the process, or a restarted engine would crash for ever."""
        if faults.crash:
            self._faults.remove()
            self._die()

    def _deliver(self, job: int) -> None:
        answer = self._answers.get(job)
        if answer is None:
            return
        answer.sent += 1
        ends = answer.sent == answer.length
        answer.pieces.put_nowait(
            Piece(
                text=f"w{answer.sent}" if answer.sent == 1 else f" w{answer.sent}",
                tokens=1,
                input_tokens=answer.input_tokens,
                scheduled=answer.scheduled,
                finish_reason=("stop" if answer.stop else "length") if ends else None,
                stop_reason=answer.stop if ends else None,
            )
        )
        if ends:
            del self._answers[job]

    def _observe(self, step: Step | None, seconds: float = 0.0) -> None:
        state = self.state
        state.running = self._plant.running
        state.waiting = self._plant.waiting
        state.kv_utilization = self._plant.kv_utilization
        if step:
            state.steps += 1
            state.step_seconds += seconds
            state.step_decodes += step.decodes
            state.step_context_tokens += step.context_tokens
            state.step_prefill_tokens += step.prefill_tokens


def stop_number(word: str) -> int:
    """8 for the stop word `w8`; 0 for words that never come out."""
    word = word.strip()
    digits = word.removeprefix("w")
    return int(digits) if word == f"w{digits}" and digits.isascii() and digits.isdigit() else 0


def plant_config(options: dict[str, Any], pool: str) -> tuple[PlantConfig, int, str]:
    """Plant, seed and a note for people. Raises LoadError for options that make no sense and copies that do not fit."""
    parameters = number(options, "parameters_b", None, minimum=0.001)
    copy = step_times.Copy(
        active_parameters_b=number(options, "active_parameters_b", parameters, minimum=0.001),
        precision=str(options.get("precision")),
        gpu=str(options.get("gpu")),
        tensor_parallel=int(number(options, "tensor_parallel", 1, minimum=1)),
        pipeline_parallel=int(number(options, "pipeline_parallel", 1, minimum=1)),
        kv_bytes_per_token=number(options, "kv_bytes_per_token", None, minimum=1),
    )
    try:
        times, note = step_times.choose(copy)
    except ValueError as error:
        raise LoadError(str(error)) from error
    weights = number(options, "weight_gib", None, minimum=0.0)
    block = int(number(options, "block_tokens", 32, minimum=1))
    room = int(number(options, "kv_tokens", step_times.kv_room(copy, weights)))
    if room < block:
        gpus = copy.tensor_parallel * copy.pipeline_parallel
        memory = step_times.GPUS[copy.gpu].memory * gpus
        raise LoadError(
            f"out of memory: weights {weights:.1f} GiB and {step_times.RESERVE_GIB * gpus:.1f} GiB of runtime leave no "
            f"room for KV cache in {memory:.1f} GiB: use more or larger GPUs or a smaller precision"
        )
    hidden = number(options, "hidden_error", 0.0, minimum=0.0)
    seed = int(number(options, "seed", 0))
    config = PlantConfig(
        times=times,
        kv_tokens=room,
        max_batch_size=int(number(options, "max_batch_size", 256, minimum=1)),
        max_num_tokens=int(number(options, "max_num_tokens", 8192, minimum=1)),
        block_tokens=block,
        speed=hidden_factor(pool, seed, hidden),
        noise=number(options, "noise", 0.03, minimum=0.0),
        stall_every=number(options, "stall_every", 0.0, minimum=0.0),
        stall_seconds=number(options, "stall_seconds", 0.2, minimum=0.001),
    )
    return config, seed, f"simulated {copy.gpu}, step times: {note}; KV room {room} tokens"


def hidden_factor(pool: str, seed: int, error: float) -> float:
    """The pool's secret: one draw from 1 +- error per (pool, seed)."""
    return Random(f"{pool}/{seed}").uniform(1 - error, 1 + error)  # noqa: S311  (a simulation)


def number(options: dict[str, Any], key: str, default: float | None, *, minimum: float | None = None) -> float:
    """A number of the configuration. Raises LoadError naming the key."""
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or (minimum is not None and value < minimum):
        bound = "" if minimum is None else f" of at least {minimum:g}"
        raise LoadError(f"simulated.{key} is {value!r}: give a number{bound}")
    return value
