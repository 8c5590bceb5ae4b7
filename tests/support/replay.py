"""Replay of recorded requests against one model copy, one engine iteration at a time.

The yardstick of the queueing model, written for plainness instead of speed and sharing no code with
`berth.estimator`: every iteration is made one by one, its time asked of the engine model with what really runs in it.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from berth.estimator.engine_model import EngineModel

TRACE = Path(__file__).parents[2] / "benchmarks" / "data" / "azure_llm_inference_2023_conv.csv.gz"


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival: seconds since the first, prompt tokens, generated tokens."""

    seconds: npt.NDArray[np.float64]
    prompt: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]

    @property
    def rate(self) -> float:
        return float(len(self.seconds) / self.seconds[-1])

    def thinned(self, share: float, seed: int) -> Trace:
        """What one of many groups sees when each request picks its group by chance."""
        keep = np.random.default_rng(seed).random(len(self.seconds)) < share
        return Trace(self.seconds[keep], self.prompt[keep], self.output[keep])

    def faster(self, factor: float) -> Trace:
        """The same requests in 1/factor of the time."""
        return Trace(self.seconds / factor, self.prompt, self.output)


def read_trace(path: Path = TRACE) -> Trace:
    with gzip.open(path, "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    prompt = np.array([int(row["ContextTokens"]) for row in rows])
    output = np.array([int(row["GeneratedTokens"]) for row in rows])
    return Trace(times - times[0], prompt, output)


@dataclass
class _Request:
    arrival: float
    prompt: int
    output: int
    blocks: int
    computed: int = 0
    generated: int = 0
    first: float = math.nan
    last: float = math.nan


@dataclass(frozen=True)
class Measured:
    """Per request in order of arrival, in seconds; `tpot` is NaN where only one token was generated."""

    ttft: npt.NDArray[np.float64]
    tpot: npt.NDArray[np.float64]
    in_flight: float
    busy: float


def replay(
    engine: EngineModel, trace: Trace, max_requested: int, *, cached: float = 0.0, clients: int | None = None
) -> Measured:
    """Serve `trace` first come, first served; a request reserves KV for its prompt and `max_requested` tokens.

    The first `cached` share of each prompt needs no work. With `clients` the trace's times are ignored: that many
    requests come at once and every further one when an earlier one has finished.
    """
    free = engine.kv_tokens // engine.block_tokens
    waiting = deque(
        _Request(float(t), int(p), int(o), math.ceil((p + max(max_requested, o)) / engine.block_tokens))
        for t, p, o in zip(trace.seconds, trace.prompt, trace.output, strict=True)
    )
    for request in waiting:
        request.computed = min(int(request.prompt * cached), request.prompt - 1)
    everything = list(waiting)
    later: deque[_Request] = deque()
    if clients is not None:
        later = deque(everything[clients:])
        waiting = deque(everything[:clients])
        for request in waiting:
            request.arrival = 0.0
    running: list[_Request] = []
    now, busy, area = 0.0, 0.0, 0.0
    while waiting or running:
        if not running and waiting[0].arrival > now:
            now = waiting[0].arrival
        while (
            waiting and waiting[0].arrival <= now and len(running) < engine.max_batch_size and waiting[0].blocks <= free
        ):
            free -= waiting[0].blocks
            running.append(waiting.popleft())
        decoding = [r for r in running if r.computed == r.prompt]
        budget = engine.max_num_tokens - len(decoding)
        chunks: list[tuple[_Request, int]] = []
        pairs = 0
        for request in running:
            if request.computed == request.prompt or budget <= 0:
                continue
            size = min(budget, request.prompt - request.computed)
            pairs += sum_of_positions(request.computed, size)
            chunks.append((request, size))
            budget -= size
        context = sum(r.prompt + r.generated for r in decoding)
        prefill = sum(size for _, size in chunks)
        duration = float(
            engine.step(np.float64(len(decoding)), np.float64(context), np.float64(prefill), np.float64(pairs))
        )
        area += duration * len(running)
        busy += duration
        now += duration
        for request, size in chunks:
            request.computed += size
        for request in running:
            if request.computed == request.prompt:
                request.generated += 1
                request.last = now
                if request.generated == 1:
                    request.first = now
        for request in [r for r in running if r.generated == r.output]:
            running.remove(request)
            free += request.blocks
            if later:
                later[0].arrival = now
                waiting.append(later.popleft())
    ttft = np.array([r.first - r.arrival for r in everything]) + engine.request_overhead
    spans = np.array([r.last - r.first for r in everything])
    outputs = np.array([r.output for r in everything])
    tpot = np.full(len(everything), np.nan)
    np.divide(spans, outputs - 1, out=tpot, where=outputs > 1)
    return Measured(ttft, tpot, area / now, busy / now)


def sum_of_positions(start: int, size: int) -> int:
    """(query, key) pairs of `size` prompt tokens after `start` others: each attends to all before it and itself."""
    return size * start + size * (size + 1) // 2


def fleet(engine: EngineModel, trace: Trace, rate: float, max_requested: int) -> Measured:
    """One group of a fleet at `rate` requests per second: enough random shares of `trace` to hold it about once.

    A rate above that of the trace is reached by a faster clock.
    """
    share = rate / trace.rate
    if share >= 1:
        return replay(engine, trace.faster(share), max_requested)
    groups = min(max(round(1 / share), 3), 12)
    parts = [replay(engine, trace.thinned(share, seed), max_requested) for seed in range(groups)]
    return Measured(
        np.concatenate([part.ttft for part in parts]),
        np.concatenate([part.tpot for part in parts]),
        float(np.mean([part.in_flight for part in parts])),
        float(np.mean([part.busy for part in parts])),
    )
