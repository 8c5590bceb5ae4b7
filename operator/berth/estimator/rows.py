"""`berth estimate`: predicted, low, high and verdict for rows of published measurements, never reading their value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

from berth.estimator.arrivals import Requests
from berth.estimator.coefficients import FittedCoefficients, condition, fitted
from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.hardware import NVLINK
from berth.estimator.memory import (
    BLOCK_TOKENS,
    DOES_NOT_FIT,
    MARGINAL,
    OK,
    REQUESTS_TO_FIT,
    account_for,
    judge,
    kv_tokens,
    whole_blocks,
)
from berth.estimator.network import all_reduce_table, all_reduce_time
from berth.estimator.predict import MAX_NUM_TOKENS, Cases, closed_form, copy_of
from berth.estimator.published import ALL_REDUCE, CLOSED, OPEN, STATIC, Measurement, Row, Unsupported, measurement
from berth.estimator.simulation import StepTable, serve
from berth.estimator.steps import Coefficients, step_parts

_OPEN_REQUESTS: Final = 500
"""Requests of an open-loop benchmark whose source does not state them."""
_CLOSED_ROUNDS: Final = 5
"""Requests per client of a closed-loop benchmark whose source does not state them."""
_LENGTH_SPREAD: Final = 0.1
"""Prompts and answers of benchmarks vary by about this share, which keeps clients from moving in lock-step."""
_VARIED: Final = 0.83
"""Standard deviation of the logarithm of lengths in conversations: as large as the mean itself."""
_LONGEST: Final = 6.0
"""The longest conversation that benchmarks keep, in means."""
_MOST_REQUESTS: Final = 5000
_SEED: Final = 1
_NCCL_LATENCY: Final = 10e-6
"""What NCCL adds to the custom all-reduce for small messages (aiconfigurator-core 0.12.0: 5 to 15 microseconds)."""
_ALL_REDUCE_BAND: Final = {"NVLink": (0.75, 1.35), "PCIe": (0.75, 10.0)}
"""PCIe hosts were measured up to ten times apart."""


@dataclass(frozen=True)
class Prediction:
    """In the unit of the row; NaN where the verdict is unsupported."""

    predicted: float
    low: float
    high: float
    verdict: str
    """ok, marginal, does-not-fit or `unsupported: why`."""


def predict_row(row: Row) -> Prediction:
    """What the estimator expects this row to have measured."""
    return predict_rows([row])[0]


def predict_rows(rows: Sequence[Row]) -> list[Prediction]:
    """One prediction per row, in order; a row that cannot be predicted says why and disturbs no other."""
    read: list[Measurement | str] = []
    for row in rows:
        try:
            read.append(measurement(row))
        except Unsupported as reason:
            read.append(f"unsupported: {reason}")
    measurements = [m for m in read if isinstance(m, Measurement)]
    values = iter(predict_measurements(measurements, fitted()))
    predictions = []
    for m in read:
        if isinstance(m, str):
            predictions.append(Prediction(math.nan, math.nan, math.nan, m))
            continue
        value = float(next(values))
        low, high = _band(m, fitted())
        predictions.append(Prediction(value, value * low, value * high, verdict(m, fitted())))
    return predictions


def predict_measurements(measurements: Sequence[Measurement], coefficients: FittedCoefficients) -> Floats:
    """The predicted values, in the units of their rows."""
    result = np.empty(len(measurements))
    resolved = [coefficients_of(m, coefficients) for m in measurements]
    closed = [i for i, m in enumerate(measurements) if closed_form(m)]
    if closed:
        stacked = {f.name: np.array([getattr(resolved[i], f.name) for i in closed]) for f in fields(Coefficients)}
        result[closed] = Cases([measurements[i] for i in closed]).predict(Coefficients(**stacked))
    for i in sorted(set(range(len(measurements))) - set(closed)):
        m = measurements[i]
        result[i] = m.scale * (_all_reduce(m) if m.quantity == ALL_REDUCE else _simulated(m, resolved[i]))
    return result


def coefficients_of(m: Measurement, coefficients: FittedCoefficients) -> Coefficients:
    return coefficients.resolve(condition(m.model, m.gpu, m.tensor_parallel, m.precision, m.runtime))


def verdict(m: Measurement, coefficients: FittedCoefficients) -> str:
    """Does what the row describes fit its GPUs: one request at the least, its batch or four requests to be ok."""
    if m.quantity == ALL_REDUCE:
        return OK
    copy, c = copy_of(m), coefficients_of(m, coefficients)
    requests = int(m.clients) if m.load == STATIC else REQUESTS_TO_FIT
    if m.load == CLOSED:
        requests = int(min(m.clients, requests))
    fit = judge(account_for(copy, float(c.reserve), MAX_NUM_TOKENS), requests, m.prompt + m.output)
    if fit.verdict == DOES_NOT_FIT:  # only if it is hopeless: smaller iterations leave a little more room
        fit = judge(account_for(copy, float(c.reserve), MAX_NUM_TOKENS / 8), requests, m.prompt + m.output)
    stored_only = m.kv_precision == "fp8" and not m.gpu.flops_fp8  # not computed with: runtimes differ
    beyond_the_link = m.gpu.link == NVLINK and m.tensor_parallel > m.gpu.link_domain  # over nodes it runs, if slowly
    if fit.verdict == OK and (stored_only or beyond_the_link):
        return MARGINAL
    return fit.verdict


def _band(m: Measurement, coefficients: FittedCoefficients) -> tuple[float, float]:
    """Factors on the predicted value between which 80 % of measurements are expected."""
    if m.quantity == ALL_REDUCE:
        return _ALL_REDUCE_BAND.get(m.gpu.link, _ALL_REDUCE_BAND["PCIe"])
    familiar = "known" if coefficients.knows(m.runtime) else "new"
    low, high = coefficients.errors[error_class(m)][familiar]
    return float(low), float(high)


def error_class(m: Measurement) -> str:
    """Figures that share their error quantiles."""
    if m.load == OPEN or m.percentile or (m.quantity == "ttft" and closed_form(m) is None):
        return "queue"
    return "tpot" if m.quantity == "e2e" else m.quantity


def _all_reduce(m: Measurement) -> float:
    table = all_reduce_table(m.gpu, m.tensor_parallel)
    return float(all_reduce_time(table, np.asarray(m.message_bytes))) + (_NCCL_LATENCY if m.nccl else 0.0)


def _simulated(m: Measurement, c: Coefficients) -> float:
    """Seconds, or output tokens per second, of a benchmark run replayed request by request."""
    copy = copy_of(m)

    def step(decodes: Floats, context: Floats, prefill: Floats, pairs: Floats) -> Floats:
        return np.asarray(step_parts(copy, c, decodes, context, prefill, pairs).total)

    arrival = _arrivals(m)
    random = np.random.default_rng(_SEED)
    prompt, output = (_lengths(mean, len(arrival), random, m.varied) for mean in (m.prompt, m.output))
    room = float(kv_tokens(copy, c.reserve, m.limits.num_tokens, m.limits.kv_fraction))
    room = max(room, float(whole_blocks(float(np.max(prompt + output)))))
    engine = EngineModel(step, int(room), int(m.limits.batch_size), int(m.limits.num_tokens), 0.0, BLOCK_TOKENS)
    requests = Requests(arrival, prompt, 0 * prompt, output, prompt + output)
    served = serve(engine, requests, StepTable(engine, m.prompt + m.output / 2))
    if m.quantity == "throughput":
        return float(output.sum() / (served.last.max() - served.arrival.min()))
    times = {
        "ttft": served.first - served.arrival,
        "tpot": (served.last - served.first) / np.maximum(output - 1, 1),
        "e2e": served.last - served.arrival,
    }[m.quantity]
    return float(np.quantile(times, 0.99) if m.percentile else times.mean())


def _lengths(mean: float, count: int, random: np.random.Generator, varied: bool) -> npt.NDArray[np.int64]:
    share = random.uniform(1 - _LENGTH_SPREAD, 1 + _LENGTH_SPREAD, count)
    if varied:
        share = np.minimum(random.lognormal(-(_VARIED**2) / 2, _VARIED, count), _LONGEST)
    lengths: npt.NDArray[np.int64] = np.maximum(np.rint(mean * share), 1).astype(np.int64)
    return lengths


def _arrivals(m: Measurement) -> Floats:
    """When requests arrive, seconds; infinite: when an earlier one is answered."""
    if m.load == OPEN:
        gaps = np.random.default_rng(_SEED).exponential(1 / m.clients, m.requests or _OPEN_REQUESTS)
        arrival: Floats = np.cumsum(gaps)
        return arrival
    clients = int(m.clients) if math.isfinite(m.clients) else m.requests or _OPEN_REQUESTS
    rounds = 1 if m.load == STATIC or not math.isfinite(m.clients) else _CLOSED_ROUNDS
    count = max(min(m.requests or clients * rounds, _MOST_REQUESTS), min(clients, _MOST_REQUESTS))
    return np.where(np.arange(count) < clients, 0.0, math.inf)
