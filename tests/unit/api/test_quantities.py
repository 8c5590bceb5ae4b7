"""Durations and decimal numbers as they stand on the wire."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berth.api.common import format_duration, number, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1500ms", 1.5), ("50ms", 0.05), ("4.1s", 4.1), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("0s", 0)],
)
def test_durations_are_read_in_seconds(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-5s", "5d", "s", "1e3s", "5s\n", "٥s", "1.2345s"])
def test_text_that_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 1500ms, 5m or 1h30m"):
        seconds(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0ms"),
        (0.00004, "0.04ms"),
        (0.0241, "24.1ms"),
        (0.412, "412ms"),
        (0.9996, "1s"),
        (1.9, "1.9s"),
        (59.999, "60s"),
        (96, "96s"),
        (1200, "20m"),
        (5400, "1h30m"),
        (100000, "27h46m"),
    ],
)
def test_durations_are_written_as_a_person_reads_them(value: float, expected: str) -> None:
    assert format_duration(value) == expected


@given(st.floats(min_value=0.001, max_value=10**7))
def test_a_written_duration_reads_back_within_five_percent(value: float) -> None:
    assert seconds(format_duration(value)) == pytest.approx(value, rel=0.05)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_impossible_durations_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        format_duration(value)


def test_numbers_are_read_from_strings_and_integers() -> None:
    assert number("5.4") == 5.4
    assert number(3) == 3.0
