"""Step time measured against step time predicted, at like load: what is left is the engine, not the traffic.

A regression of step time on (1, requests decoding, context, prompt tokens), shrunk to the predicted slopes: where load
hardly varied the prediction's shape counts, where it varied the measurement's. Level = logarithm of measured over
predicted at a fixed operating point, so that busier groups do not look slower where the prediction's shape is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from berth.core.measurement.samples import StepMoments
from berth.estimator.engine_model import EngineModel

Floats = npt.NDArray[np.float64]
Predict = Callable[[Floats], Floats]
"""Seconds of mean iterations, each a row of requests decoding, context tokens, prompt tokens."""

FEWEST_STEPS: Final = 200.0
"""Iterations below which a group says nothing."""
LARGEST: Final = math.log(4)
"""Levels beyond a factor of four are no speed of an engine but a fault; they are cut there."""
_SLOPES: Final = 0.3
"""Standard deviation of a measured slope against the predicted one, as a share of it."""
_NOISE: Final = 0.03
"""Least standard deviation of the mean iteration between two samples, as a share."""


@dataclass(frozen=True)
class OperatingPoint:
    """Means per iteration at which levels are compared."""

    decodes: float
    context: float
    prefill: float

    @classmethod
    def of(cls, in_flight: float, prompt: float, answer: float) -> OperatingPoint:
        """With so many requests in flight in steady state."""
        decodes = max(in_flight, 1.0)
        return cls(decodes, decodes * (prompt + answer / 2), decodes * prompt / max(answer, 1.0))


def prediction(engine: EngineModel, prompt: float) -> Predict:
    """What `engine` takes on average for prompts of that mean length: most iterations carry none, some a chunk.

    Spreading prompts evenly over iterations would make them look free while a step is bound by memory.
    """
    usual = max(min(prompt, engine.max_num_tokens), 1.0)

    def seconds(iterations: Floats) -> Floats:
        decodes, context, prefill = iterations.T
        chunk = np.maximum(usual, prefill)
        tokens = np.concatenate([np.zeros(len(chunk)), chunk])
        found = engine.step(np.tile(decodes, 2), np.tile(context, 2), tokens, tokens**2 / 2)
        plain, mixed = np.split(np.asarray(found), 2)
        result: Floats = plain + prefill / chunk * (mixed - plain)
        return result

    return seconds


def levels(steps: Mapping[str, StepMoments], predict: Predict, at: OperatingPoint) -> dict[str, float]:
    """Logarithm of measured over predicted step time at `at`, of those of which enough was measured."""
    told = {name: moments for name, moments in steps.items() if _tells(moments)}
    if not told:
        return {}
    asked = np.concatenate([_around(moments, at) for moments in told.values()])
    found = predict(asked).reshape(len(told), -1).tolist()  # once for all: a call costs as much as its rows
    return {name: _level(moments, expected, at) for (name, moments), expected in zip(told.items(), found, strict=True)}


def level(moments: StepMoments, predict: Predict, at: OperatingPoint) -> float | None:
    """Of one; None where too little was measured."""
    return levels({"": moments}, predict, at).get("")


def _tells(moments: StepMoments) -> bool:
    means = moments.means
    return means is not None and moments.steps >= FEWEST_STEPS and 0 < means[3] < math.inf


def _around(moments: StepMoments, at: OperatingPoint) -> Floats:
    """The mean iteration, one that has more of each, and the operating point."""
    here, more = _here(moments)
    return np.array([here, *(here + np.diag(more)), (at.decodes, at.context, at.prefill)])


def _here(moments: StepMoments) -> tuple[Floats, Floats]:
    means = moments.means
    assert means is not None
    here = np.array(means[:3])
    return here, np.maximum(0.05 * here, 0.5)


def _level(moments: StepMoments, predictions: list[float], at: OperatingPoint) -> float:
    """`predictions` are seconds of the rows of `_around`."""
    means = moments.means
    assert means is not None
    seconds = means[3]
    here, more = _here(moments)
    expected, *around, predicted = predictions
    rises = (np.array(around) - expected) / more
    ratio = seconds / expected
    shape = ratio * np.array([expected - float(rises @ here), *rises])  # the plane that touches the prediction
    products = np.array(moments.products)
    measured, target = products[:4, :4], products[:4, 4]
    noise = _noise(products, shape, moments)
    spread = _SLOPES * np.maximum(np.abs(shape), 0.1 * seconds / np.array([1.0, *(max(m, 1e-9) for m in means[:3])]))
    prior = np.diag(1 / spread**2)
    slopes = np.linalg.solve(measured / noise + prior, target / noise + prior @ shape)
    there = float(slopes @ np.array([1.0, at.decodes, at.context, at.prefill]))
    # Far from what was measured a line may end anywhere; it never says more than twice what the mean says.
    found = min(max(there / predicted, ratio / 2), ratio * 2)
    return min(max(math.log(found), -LARGEST), LARGEST)


def _noise(products: Floats, shape: Floats, moments: StepMoments) -> float:
    """Variance of an observation of one iteration's weight around the predicted shape."""
    line = np.array([*(-shape), 1.0])
    squares = float(line @ products @ line)
    means = moments.means
    assert means is not None
    per_sample = moments.steps / moments.observations
    return max(squares / moments.observations, (_NOISE * means[3]) ** 2 * per_sample)
