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


# --- common field types -----------------------------------------------------------------------------------------------
Int = Annotated[int, Field(strict=True)]
"""An integer; neither "5" nor 5.0 nor true, as on the API server."""

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = f"{_LABEL}([.]{_LABEL})*"
_QUALIFIED: Final = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"

DnsLabel = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Matches(
        _LABEL,
        "must be at most 63 lower case letters, digits and '-', with a letter or digit at both ends: rename it",
    ),
]
DnsName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    Matches(
        _SUBDOMAIN,
        "must be a Kubernetes name: at most 253 lower case letters, digits, '-' and '.', with a letter or digit at "
        "both ends: correct it",
    ),
]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    Matches(
        f"({_QUALIFIED})?",
        "must be a label value: at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends: "
        "correct it",
    ),
]
LabelKey = Annotated[
    str,
    Field(min_length=1, max_length=317),
    Satisfies(
        (
            Rule(
                "!format.qualifiedName().validate(self).hasValue()",
                "must be a label key such as topology.kubernetes.io/zone: correct it",
                lambda key: is_qualified(key),
            ),
        )
    ),
]
QUALIFIED_KEYS: Final = Rule(
    "self.all(key, !format.qualifiedName().validate(key).hasValue())",
    "keys must be an optional domain and a name of at most 63 characters, such as example.com/team: correct them",
    lambda mapping: all(is_qualified(key) for key in mapping),
)


def is_qualified(key: str) -> bool:
    """Whether Kubernetes takes it as a label key or resource name: an optional DNS prefix, a slash, a name."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or re.fullmatch(_SUBDOMAIN, prefix, re.ASCII) is None):
        return False
    return len(name) <= 63 and re.fullmatch(_QUALIFIED, name, re.ASCII) is not None
