"""Decimal numbers and durations as they stand on the wire, and how to read and write them.

No floats on the wire: a number is a string or an integer ("5.4", 3), a length of time is a string ("1h30m").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from berth.api.schema import BOUNDS, VALIDATIONS, Constraint, refuse

# --- numbers ----------------------------------------------------------------------------------------------------------
_QUANTITY: Final = "[0-9]{1,9}([.][0-9]{1,6})?"


@dataclass(frozen=True)
class Quantity(Constraint):
    """A decimal number as string or integer ("5.4", 3), never a float: inside [minimum, maximum].

    With `above`, the minimum itself is excluded. Read it with `number`.
    """

    minimum: str
    maximum: str
    above: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        return f"{'more than' if self.above else 'at least'} {self.minimum} and at most {self.maximum}"

    @property
    def message(self) -> str:
        """Bound and remedy."""
        return f"must be a decimal number, {self.bounds}, written as string or integer: correct it"

    def keywords(self) -> dict[str, Any]:
        sign = ">" if self.above else ">="
        number = "(type(self) == int ? double(int(self)) : double(string(self)))"
        low, high = f"{float(self.minimum)!r}", f"{float(self.maximum)!r}"
        rule = (
            f"(type(self) == int || string(self).matches('^{_QUANTITY}$')) && "
            f"{number} {sign} {low} && {number} <= {high}"
        )
        return {
            "x-kubernetes-int-or-string": True,
            BOUNDS: f"A decimal number as string or integer, {self.bounds}.",
            VALIDATIONS: [{"rule": rule, "message": self.message}],
        }

    def check(self, value: int | str) -> int | str:
        if isinstance(value, str) and re.fullmatch(_QUANTITY, value, re.ASCII) is None:
            raise refuse(self.message)
        exact = Decimal(value)
        if not Decimal(self.minimum) <= exact <= Decimal(self.maximum) or (
            self.above and exact == Decimal(self.minimum)
        ):
            raise refuse(self.message)
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self.keywords()


def number(quantity: int | str) -> float:
    """The value of a quantity that passed validation."""
    return float(quantity)


# --- durations --------------------------------------------------------------------------------------------------------
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = r"([0-9]{1,9}(?:[.][0-9]{1,3})?)(ms|s|m|h)"
MAX_DURATION_LENGTH: Final = 24


@dataclass(frozen=True)
class Duration(Constraint):
    """A length of time such as "1500ms", "5m" or "1h30m" inside [minimum, maximum]. Read it with `seconds`."""

    minimum: str
    maximum: str

    @property
    def message(self) -> str:
        """Bound and remedy."""
        return f"must be a duration from {self.minimum} to {self.maximum}, written like 500ms, 90s or 1h30m: correct it"

    def keywords(self) -> dict[str, Any]:
        rule = (
            f"self.matches('^({_PART.replace('(?:', '(')})+$') && "
            f"duration(self) >= duration('{self.minimum}') && duration(self) <= duration('{self.maximum}')"
        )
        return {
            "maxLength": MAX_DURATION_LENGTH,
            BOUNDS: f"A duration from {self.minimum} to {self.maximum}, written like 500ms, 90s or 1h30m.",
            VALIDATIONS: [{"rule": rule, "message": self.message}],
        }

    def check(self, value: str) -> str:
        if len(value) > MAX_DURATION_LENGTH or re.fullmatch(f"({_PART})+", value, re.ASCII) is None:
            raise refuse(self.message)
        if not seconds(self.minimum) <= seconds(value) <= seconds(self.maximum):
            raise refuse(self.message)
        return value


def seconds(duration: str) -> float:
    """Seconds of a duration that passed validation: "1h30m" -> 5400.0.

    Raises:
        ValueError: the text is not a duration.
    """
    if re.fullmatch(f"({_PART})+", duration, re.ASCII) is None:
        raise ValueError(f"{duration!r} is not a duration: write it as 1500ms, 5m or 1h30m")
    return sum(float(value) * _UNITS[unit] for value, unit in re.findall(_PART, duration, re.ASCII))


def format_duration(value: float) -> str:
    """A duration a person reads, which `seconds` reads back to three significant digits.

    0.0241 -> "24.1ms", 0.412 -> "412ms", 4.1 -> "4.1s", 96 -> "96s", 1200 -> "20m", 5400 -> "1h30m".

    Raises:
        ValueError: the value is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value} is not a duration: must be finite and not negative")
    if value < 1 and round(value, 3) < 1:
        return f"{_significant(value * 1000)}ms"
    if value < 120:
        return f"{_significant(value)}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (0 if hours else rest, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def _significant(value: float) -> str:
    decimals = 2 if value < 1 else 1 if value < 100 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
