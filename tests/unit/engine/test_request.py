"""Requests: defaults, limits, and errors that name what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.engine.engines.base import RequestError
from berth.engine.request import Limits, parse

LIMITS = Limits(max_output_tokens=100)


def test_defaults_are_the_limits_and_nothing_else() -> None:
    request = parse({"text_input": "hello"}, LIMITS)
    assert (request.prompt, request.sampling.max_tokens, request.streaming, request.echo) == (
        "hello",
        100,
        False,
        False,
    )
    assert request.sampling.temperature is None


def test_everything_is_carried_over() -> None:
    request = parse(
        {
            "text_input": "hello",
            "streaming": True,
            "sampling_param_max_tokens": 7,
            "sampling_param_top_k": 5,
            "sampling_param_top_p": 0.5,
            "sampling_param_stop": ("a", "b"),
            "sampling_param_seed": 2**40,
            "sampling_param_exclude_input_from_output": False,
        },
        LIMITS,
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.top_p, sampling.stop, sampling.seed) == (
        7,
        5,
        0.5,
        ("a", "b"),
        2**40,
    )
    assert (request.streaming, request.echo) == (True, True)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"text_input": ""}, "text_input is missing or empty"),
        ({"text_input": "x" * 5_000_000}, "text_input has 5000000 characters: at most 4194304"),
        ({"sampling_param_max_tokens": 0}, "sampling_param_max_tokens is 0: give a number from 1 to 100"),
        ({"sampling_param_max_tokens": 101}, "give a number from 1 to 100"),
        ({"sampling_param_temperature": float("nan")}, "sampling_param_temperature is nan"),
        ({"sampling_param_stop": ("",)}, "sampling_param_stop: give at most 16 words"),
        ({"sampling_param_stop": tuple("abcdefghijklmnopq")}, "sampling_param_stop: give at most 16 words"),
    ],
)
def test_bad_input_is_named_with_its_bound(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse({"text_input": "a", **inputs}, LIMITS)


@given(st.dictionaries(st.sampled_from(["max_tokens", "temperature", "top_k", "top_p"]), st.floats() | st.integers()))
def test_every_number_is_taken_or_refused_by_name(values: dict[str, float]) -> None:
    bounds = {"max_tokens": (1, 100), "temperature": (0, 100), "top_k": (0, 2**31 - 1), "top_p": (0, 1)}
    inputs = {"text_input": "a", **{f"sampling_param_{name}": value for name, value in values.items()}}
    if all(bounds[name][0] <= value <= bounds[name][1] for name, value in values.items()):
        assert 1 <= parse(inputs, LIMITS).sampling.max_tokens <= 100
    else:
        with pytest.raises(RequestError, match="give a number from"):
            parse(inputs, LIMITS)


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, None])
def test_limits_that_make_no_sense_are_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"limits\.max_output_tokens is"):
        Limits.of({"max_output_tokens": value})
