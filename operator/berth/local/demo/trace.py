"""Requests of a real conversation service: a slice of the Azure trace, packaged with its attribution."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

SLICE: Final = Path(__file__).parents[1] / "data" / "azure_conversations.csv"
SOURCE: Final = "Azure LLM inference trace 2023 (CC-BY 4.0)"

LENGTH: Final = 120.0
"""Seconds."""


@dataclass(frozen=True)
class Request:
    """One request: seconds after the beginning of the replay, tokens of the prompt, tokens of the answer."""

    at: float
    input_tokens: int
    output_tokens: int


def endless(until: float) -> list[Request]:
    """The slice again and again, for so many seconds."""
    once = requests()
    rounds = int(until / LENGTH) + 1
    return [replace(each, at=each.at + number * LENGTH) for number in range(rounds) for each in once]


def requests() -> list[Request]:
    """All of the slice: two minutes at its own pace."""
    with SLICE.open() as lines:
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        return [Request(float(r["seconds"]), int(r["input_tokens"]), int(r["output_tokens"])) for r in rows]
