"""Predicts what published rows measured: closed forms for many rows at once, so that a fit can call them in a loop.

A measurement fixes the load (static batch, clients, saturation); `batching` does the rest. What needs arrivals or
queues one by one (rates, percentiles, the burst in which clients of a benchmark start) is left to `rows`, which
simulates it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from berth.estimator import batching
from berth.estimator.copies import ModelCopy, Numbers, model_copy, stack
from berth.estimator.memory import kv_tokens, requests_in_flight, whole_blocks
from berth.estimator.published import ALL_REDUCE, CLOSED, OPEN, SATURATED, STATIC, Measurement
from berth.estimator.steps import Coefficients

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

MAX_NUM_TOKENS: Final = 8192.0
"""Token budget of an iteration where a source does not state one."""


def closed_form(m: Measurement) -> str | None:
    """Which closed form predicts this measurement; None if it has to be simulated."""
    if m.load == OPEN or m.percentile or m.quantity == ALL_REDUCE:
        return None
    if m.varied and m.load == SATURATED:
        return None  # the longest answer ends the run
    if m.quantity == "ttft" and (m.load == SATURATED or (m.load == CLOSED and m.clients > 1)):
        return None
    if m.quantity == "tpot" and (m.between_tokens or m.load == STATIC):
        return "decode step"
    if m.quantity == "tpot" and m.whole_request:
        return "time per token of a request"
    return f"{m.load} {m.quantity}"


def copy_of(m: Measurement) -> ModelCopy:
    return model_copy(m.model, m.gpu, m.tensor_parallel, m.pipeline_parallel, m.precision, m.kv_precision)


def benchmark_requests(prompt: Numbers, output: Numbers) -> Floats:
    """How many requests a saturated TensorRT-LLM benchmark queues, by length.

    Source: the table of request counts in TensorRT-LLM's performance overview (v0.17): 30,000 requests of 128 + 128
    tokens, 3,000 up to 2,500 tokens, 1,500 up to 5,500, 1,000 beyond.
    """
    total = np.asarray(prompt + output)
    return np.where(total <= 256, 30000.0, np.where(total <= 2500, 3000.0, np.where(total <= 5500, 1500.0, 1000.0)))


@dataclass(frozen=True)
class _Load:
    """Rows of one closed form; arrays of one entry per row."""

    copy: ModelCopy
    c: Coefficients
    clients: Floats
    prompt: Floats
    output: Floats
    requests: Floats
    batch_size: Floats
    num_tokens: Floats
    kv_fraction: Floats
    whole: bool

    @property
    def in_flight(self) -> Floats:
        """Requests in service at once: the clients, or as many as the KV cache admits."""
        room = kv_tokens(self.copy, self.c.reserve, self.num_tokens, self.kv_fraction)
        if self.whole:
            admitted = requests_in_flight(room, self.prompt, self.output, self.batch_size)
        else:
            admitted = np.minimum(room / whole_blocks(self.prompt + self.output), self.batch_size)
        result: Floats = np.maximum(np.minimum(admitted, self.clients), 1.0)
        return result

    def static_time(self) -> Numbers:
        return batching.static_batch_time(self.copy, self.c, self.clients, self.prompt, self.output)

    def prompts_time(self) -> Numbers:
        return batching.prefill_time(self.copy, self.c, self.clients, self.prompt)

    def decode_step(self) -> Numbers:
        return batching.decode_step(self.copy, self.c, self.in_flight, self.prompt + self.output / 2)

    def token_time(self) -> Numbers:
        return batching.time_per_output_token(
            self.copy, self.c, self.in_flight, self.prompt, self.output, self.num_tokens
        )

    def request_time(self) -> Numbers:
        """From sending to the last token, waiting for a place included."""
        n = self.in_flight
        served = batching.request_time(self.copy, self.c, n, self.prompt, self.output, self.num_tokens)
        return served * np.where(np.isfinite(self.clients), self.clients / n, 1.0)

    def closed_rate(self) -> Numbers:
        n = self.in_flight
        return n * self.output / batching.request_time(self.copy, self.c, n, self.prompt, self.output, self.num_tokens)

    def saturated_rate(self) -> Numbers:
        return batching.finite_run_throughput(
            self.copy, self.c, self.in_flight, self.prompt, self.output, self.num_tokens, self.requests
        )


_CLOSED_FORMS: Final[Mapping[str, Callable[[_Load], Numbers]]] = {
    "static throughput": lambda load: load.clients * load.output / load.static_time(),
    "static ttft": _Load.prompts_time,
    "static e2e": _Load.static_time,
    "decode step": _Load.decode_step,
    "time per token of a request": lambda load: load.request_time() / load.output,
    "closed throughput": _Load.closed_rate,
    "closed tpot": _Load.token_time,
    "closed ttft": _Load.prompts_time,
    "closed e2e": _Load.request_time,
    "saturated throughput": _Load.saturated_rate,
    "saturated tpot": _Load.token_time,
    "saturated e2e": _Load.request_time,
}


class Cases:
    """Measurements that have a closed form, as arrays; `predict` gives one value each, in the unit of its row."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.clients = np.array([m.clients for m in measurements])
        self.prompt = np.array([m.prompt for m in measurements])
        self.output = np.array([m.output for m in measurements])
        stated = np.array([m.requests or m.limits.requests for m in measurements])
        self.batch_size = np.array([m.limits.batch_size for m in measurements])
        self.num_tokens = np.array([m.limits.num_tokens for m in measurements])
        self.kv_fraction = np.array([m.limits.kv_fraction for m in measurements])
        self.requests = np.where(stated > 0, stated, benchmark_requests(self.prompt, self.output))
        self.scale = np.array([m.scale for m in measurements])
        forms = np.array([closed_form(m) or "" for m in measurements])
        self.groups: dict[str, tuple[Indices, ModelCopy]] = {}
        for form in np.unique(forms):
            index = np.flatnonzero(forms == form)
            self.groups[str(form)] = index, stack([copy_of(measurements[int(i)]) for i in index])

    def predict(self, coefficients: Coefficients, whole: bool = True) -> Floats:
        """Values for coefficients that are numbers or arrays with one entry per measurement.

        `whole` False lets the number of requests in flight be a fraction, which keeps a fit's derivatives smooth.
        """
        result = np.empty(len(self.scale))
        for form, (index, copy) in self.groups.items():
            load = _Load(
                copy=copy,
                c=_take(coefficients, index),
                clients=self.clients[index],
                prompt=self.prompt[index],
                output=self.output[index],
                requests=self.requests[index],
                batch_size=self.batch_size[index],
                num_tokens=self.num_tokens[index],
                kv_fraction=self.kv_fraction[index],
                whole=whole,
            )
            result[index] = _CLOSED_FORMS[form](load)
        predicted: Floats = result * self.scale
        return predicted


def _take(c: Coefficients, index: Indices) -> Coefficients:
    values = {field.name: getattr(c, field.name) for field in fields(Coefficients)}
    return Coefficients(**{name: v[index] if isinstance(v, np.ndarray) else v for name, v in values.items()})
