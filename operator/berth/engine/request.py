"""What a request may ask for: its inputs by name, checked, with the model's limits. No Triton here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from berth.engine.engines.base import RequestError, Sampling

PREFIX: Final = "sampling_param_"
MAX_STOP_WORDS: Final = 16
MAX_CHARACTERS: Final = 1 << 22
DEFAULT_OUTPUT_TOKENS: Final = 1024
DEFAULT_INPUT_TOKENS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every request; `max_output_tokens` is also the default maximum.

    Only an engine can count the tokens of a prompt: `max_input_tokens` is handed to it.
    """

    max_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    max_input_tokens: int = DEFAULT_INPUT_TOKENS

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Limits:
        """From `limits` of the model's configuration. Raises ValueError naming the key."""
        for name, value in document.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"limits.{name} is {value!r}: give a whole number of at least 1")
        return cls(
            max_output_tokens=document.get("max_output_tokens", DEFAULT_OUTPUT_TOKENS),
            max_input_tokens=document.get("max_input_tokens", DEFAULT_INPUT_TOKENS),
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request."""

    prompt: str
    sampling: Sampling
    streaming: bool
    echo: bool
    """The answer repeats the prompt first."""
    times: bool
    reasons: bool
    stop_reasons: bool


def parse(inputs: Mapping[str, Any], limits: Limits) -> Request:
    """`inputs` = tensor name -> str, bool, number or tuple of str. Raises RequestError."""
    prompt = inputs.get("text_input")
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("text_input is missing or empty: send one prompt")
    if len(prompt) > MAX_CHARACTERS:
        raise RequestError(f"text_input has {len(prompt)} characters: at most {MAX_CHARACTERS}")
    return Request(
        prompt=prompt,
        sampling=_sampling(inputs, limits),
        streaming=bool(inputs.get("streaming", False)),
        echo=not inputs.get(PREFIX + "exclude_input_from_output", True),
        times=bool(inputs.get(PREFIX + "return_perf_metrics", False)),
        reasons=bool(inputs.get("return_finish_reason", False)),
        stop_reasons=bool(inputs.get("return_stop_reason", False)),
    )


def _sampling(inputs: Mapping[str, Any], limits: Limits) -> Sampling:
    tokens = _number(inputs, "max_tokens", 1, limits.max_output_tokens)
    stop = tuple(inputs.get(PREFIX + "stop", ()))
    if len(stop) > MAX_STOP_WORDS or not all(stop):
        raise RequestError(f"{PREFIX}stop: give at most {MAX_STOP_WORDS} words, none of them empty")
    top_k = _number(inputs, "top_k", 0, 2**31 - 1)
    return Sampling(
        max_tokens=limits.max_output_tokens if tokens is None else int(tokens),
        temperature=_number(inputs, "temperature", 0, 100),
        top_k=None if top_k is None else int(top_k),
        top_p=_number(inputs, "top_p", 0, 1),
        frequency_penalty=_number(inputs, "frequency_penalty", -2, 2),
        presence_penalty=_number(inputs, "presence_penalty", -2, 2),
        seed=inputs.get(PREFIX + "seed"),
        stop=stop,
    )


def _number(inputs: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = inputs.get(PREFIX + name)
    if value is None:
        return None
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{PREFIX}{name} is {value:g}: give a number from {low:g} to {high:g}")
    return float(value)
