"""The language the API models are written in: base model, rules and constrained field types.

Every constraint is written once and enforced twice: `berth.api.crd` turns it into OpenAPI and CEL, which the API
server checks, and pydantic checks the same here, for files that never met a server and for stored objects.

Invariants: models are frozen; names are camelCase on the wire and snake_case in Python; unknown fields are ignored,
so that an object stored by a newer release can be read; every message names the bound and the remedy (the API server
and `describe` put the field in front).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

VALIDATIONS: Final = "x-kubernetes-validations"
BOUNDS: Final = "x-berth-bounds"
"""Bounds in words, for the field's description; only inside this package, `berth.api.crd` removes it."""
CRD_DEFAULT: Final = "x-berth-default"
"""Marks a default that belongs into the CRD; removed likewise."""


@dataclass(frozen=True)
class Rule:
    """A condition over one object or value: as CEL for the API server, as `holds` for Python.

    `holds` is None for transition rules (CEL with `oldSelf`): only the API server knows the old object.
    `field` is the member the API server's message should point at, where it is one.
    """

    cel: str
    message: str
    holds: Callable[[Any], Any] | None = None
    field: str | None = None

    def schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        return entry | {"fieldPath": f".{self.field}"} if self.field else entry

    def check(self, value: Any) -> None:
        """Raise pydantic's error with the rule's message if the rule does not hold."""
        if self.holds is not None and not self.holds(value):
            raise refuse(self.message)


def immutable(what: str) -> Rule:
    """The value may not change. Put it on required fields only: an optional one could be removed and added again."""
    return Rule("self == oldSelf", f"{what} is immutable: delete the object and create it anew")


def refuse(message: str) -> PydanticCustomError:
    """The error a validator raises; the message may contain braces."""
    return PydanticCustomError("refused", "{message}", {"message": message})


class Model(BaseModel):
    """Base of all API types. `rules` are checked after the fields, in order."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        document = handler.resolve_ref_schema(handler(schema))
        if cls.rules:
            document[VALIDATIONS] = [rule.schema() for rule in cls.rules]
        return document

    def to_dict(self) -> dict[str, Any]:
        """As on the wire: camelCase, absent instead of null, defaults left out where they were not given."""
        return self.model_dump(mode="json", exclude_none=True, exclude_unset=True)


class Constraint:
    """A field annotation that adds keywords to the schema and a check in Python."""

    def keywords(self) -> dict[str, Any]:
        """Schema keywords to merge into the field's schema."""
        raise NotImplementedError

    def check(self, value: Any) -> Any:
        """The value, or `refuse`."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        document = handler(schema)
        keywords = self.keywords()
        rules = document.get(VALIDATIONS, []) + keywords.pop(VALIDATIONS, [])
        return document | keywords | ({VALIDATIONS: rules} if rules else {})


@dataclass(frozen=True)
class Matches(Constraint):
    """A string that must match `pattern` (RE2, whole string) or be refused with `message`."""

    pattern: str
    message: str

    def keywords(self) -> dict[str, Any]:
        return {VALIDATIONS: [{"rule": f"self.matches('^({self.pattern})$')", "message": self.message}]}

    def check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value, re.ASCII) is None:
            raise refuse(self.message)
        return value


@dataclass(frozen=True)
class Satisfies(Constraint):
    """A value for which all `rules` hold."""

    rules: tuple[Rule, ...]

    def keywords(self) -> dict[str, Any]:
        return {VALIDATIONS: [rule.schema() for rule in self.rules]}

    def check(self, value: Any) -> Any:
        for rule in self.rules:
            rule.check(value)
        return value


@dataclass(frozen=True)
class CrdDefault(Constraint):
    """Marks the field's default as one the API server writes into stored objects; all others are Python's alone."""

    def keywords(self) -> dict[str, Any]:
        return {CRD_DEFAULT: True}

    def check(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class ListMap(Constraint):
    """A list whose items are told apart by one field (`x-kubernetes-list-type: map`)."""

    key: str

    def keywords(self) -> dict[str, Any]:
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}

    def check(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(value, [getattr(item, self.key) for item in value], f"{self.key} ")


@dataclass(frozen=True)
class ListSet(Constraint):
    """A list without duplicates (`x-kubernetes-list-type: set`)."""

    def keywords(self) -> dict[str, Any]:
        return {"x-kubernetes-list-type": "set"}

    def check(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(value, list(value), "")


def _distinct(value: tuple[Any, ...], keys: list[Any], what: str) -> tuple[Any, ...]:
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise refuse(f"duplicate {what}{', '.join(twice)}: names must be unique, remove or rename one")
    return value


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


# --- common field types -----------------------------------------------------------------------------------------------
Int = Annotated[int, Field(strict=True)]
"""An integer; neither "5" nor 5.0 nor true, as on the API server."""

DnsLabel = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Matches(
        "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
        "must be at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit: rename it",
    ),
]
DnsName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Matches(
        "[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
        "must be the name of a Kubernetes object: lower case letters, digits, '-' and '.', at most 253",
    ),
]
LabelKey = Annotated[
    str,
    Field(min_length=1, max_length=316),
    Matches(
        "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
        "must be a label key such as topology.kubernetes.io/zone",
    ),
]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    Matches(
        "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?",
        "must be a label value: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    ),
]
