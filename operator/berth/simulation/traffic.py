"""A recorded trace as minutes, repeated for as long as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MINUTE: Final = 60.0
DAY_MINUTES: Final = 1440


@dataclass(frozen=True)
class Recorded:
    """Requests in order of arrival: seconds since the first, prompt and answer tokens."""

    seconds: Floats
    prompt: Ints
    answer: Ints

    @property
    def rate(self) -> float:
        return float(len(self.seconds) / max(self.seconds[-1], 1.0))


@dataclass(frozen=True)
class Minutes:
    """Per minute: requests per second, and mean lengths against those of the whole record."""

    rate: Floats
    prompt: Floats
    answer: Floats
    scale: Floats
    """Of all prompts, on top of `prompt`: what a lasting change makes of them."""

    def __len__(self) -> int:
        return len(self.rate)


@dataclass(frozen=True)
class Swing:
    """What is laid over a record that is shorter than a day: busiest hour against the mean one, and its time of day."""

    peak_to_mean: float = 1.0
    at_hour: float = 15.0


def minutes_of(recorded: Recorded, count: int, load: float | None = None, swing: Swing | None = None) -> Minutes:
    """`count` minutes at a mean of `load` requests per second (None: as recorded); the record again and again.

    A record shorter than two minutes is one minute.
    """
    whole = max(1, int(recorded.seconds[-1] // MINUTE))
    minute = np.minimum((recorded.seconds // MINUTE).astype(np.int64), whole - 1)
    if recorded.seconds[-1] >= 2 * MINUTE:
        kept = recorded.seconds < whole * MINUTE  # the last minute is not whole
        minute = minute[kept]
        prompt, answer = recorded.prompt[kept], recorded.answer[kept]
    else:
        prompt, answer = recorded.prompt, recorded.answer
    requests = np.bincount(minute, minlength=whole).astype(float)
    rate = requests / MINUTE
    some = np.maximum(requests, 1)
    prompts = np.where(requests > 0, np.bincount(minute, prompt, whole) / some / prompt.mean(), 1.0)
    answers = np.where(requests > 0, np.bincount(minute, answer, whole) / some / answer.mean(), 1.0)
    again = np.arange(count) % whole
    scale = 1.0 if load is None else load / max(float(rate.mean()), 1e-9)
    level = scale * _over_the_day(count, swing or Swing())
    return Minutes(rate[again] * level, prompts[again], answers[again], np.ones(count))


def _over_the_day(count: int, swing: Swing) -> Floats:
    """A cosine with the given peak, never below a tenth of the mean."""
    hours = np.arange(count) / 60.0
    wave = 1 + (swing.peak_to_mean - 1) * np.cos(2 * math.pi * (hours - swing.at_hour) / 24)
    return np.maximum(wave, 0.1)


def changed(minutes: Minutes, start: int, *, rate: float = 1.0, prompt: float = 1.0) -> Minutes:
    """From minute `start` on, more requests or longer prompts by a factor."""
    later = np.arange(len(minutes)) >= start
    return replace(
        minutes,
        rate=np.where(later, minutes.rate * rate, minutes.rate),
        scale=np.where(later, minutes.scale * prompt, minutes.scale),
    )
