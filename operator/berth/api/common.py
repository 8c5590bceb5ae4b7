"""What all kinds share: words, metadata, conditions, tolerations, and reading objects that others stored.

Invariant: `parse` raises nothing but `InvalidSpec`, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from berth.api.quantities import format_duration, number, seconds
from berth.api.schema import Int, LabelValue, ListMap, Model, Rule, Satisfies, is_qualified
from berth.errors import InvalidSpec

__all__ = [
    "Backend",
    "Condition",
    "Conditions",
    "KvPrecision",
    "ObjectMeta",
    "Precision",
    "Toleration",
    "format_duration",
    "number",
    "parse",
    "read",
    "readable",
    "seconds",
]

Precision = Literal["fp16", "bf16", "fp8", "int8", "int4-awq", "int4-gptq"]
"""Of weights. The one list of the CRD, the CLI and the data."""
KvPrecision = Literal["fp16", "bf16", "fp8", "int8"]
"""Of the KV cache."""
Backend = Literal["pytorch", "tensorrt", "simulated"]
"""pytorch: TensorRT-LLM's LLM API; tensorrt: built engines; simulated: no GPU, for tests and demonstrations."""


class ObjectMeta(Model):
    """The part of Kubernetes metadata that Berth reads."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: Annotated[str, Field(max_length=63)] = ""
    uid: str = ""
    generation: Int = 1
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Condition(Model):
    """A standard Kubernetes condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Name of the condition, CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    observed_generation: Annotated[Int, Field(ge=0)] | None = None
    """metadata.generation that this condition was computed from."""
    last_transition_time: Annotated[str, Field(max_length=40)]
    """When `status` last changed, RFC 3339 in UTC."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """One stable CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """For people; may be empty."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=32), ListMap("type")]


_TAINT_KEY: Final = Rule(
    "!format.qualifiedName().validate(self).hasValue()",
    "must be the key of a taint, such as nvidia.com/gpu: correct it",
    lambda key: is_qualified(key),
)


class Toleration(Model):
    """A standard Kubernetes toleration."""

    rules = (
        Rule(
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            "a toleration without key must have operator Exists: name the key, or set operator: Exists",
            lambda toleration: toleration.key is not None or toleration.operator == "Exists",
        ),
        Rule(
            "!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
            "operator Exists takes no value: remove value, or set operator: Equal",
            lambda toleration: toleration.value is None or toleration.operator == "Equal",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect NoExecute: set effect: NoExecute or remove tolerationSeconds",
            lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
        ),
    )

    key: Annotated[str, Field(min_length=1, max_length=316), Satisfies((_TAINT_KEY,))] | None = None
    """Taint key; absent (with operator Exists) matches every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the taint's value is compared."""
    value: LabelValue | None = None
    """Taint value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent matches all."""
    toleration_seconds: Annotated[Int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds a NoExecute taint is tolerated; absent: for ever."""


Object = TypeVar("Object", bound=Model)


def parse(model: type[Object], obj: Any, *, known_fields_only: bool = False) -> Object:
    """Read one object as stored or written by a person.

    Status is output: fields of it that make no sense here (a newer release wrote them, an edit broke them) count as
    absent. With `known_fields_only`, for files, fields this release does not know are errors instead of ignored.

    Raises:
        InvalidSpec: reason `Invalid`; the message names each field (at most five), its bound and the remedy.
    """
    return read(model, obj, known_fields_only=known_fields_only)[0]


def read(model: type[Object], obj: Any, *, known_fields_only: bool = False) -> tuple[Object, Any]:
    """As `parse`, and beside it what was read: `obj` without the fields of status that make no sense here."""
    extra: Literal["forbid", "ignore"] = "forbid" if known_fields_only else "ignore"
    try:
        return model.model_validate(obj, extra=extra), obj
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        unreadable = {entry["loc"][1] for entry in errors if entry["loc"][:1] == ("status",) and len(entry["loc"]) > 1}
        if isinstance(obj, Mapping) and isinstance(obj.get("status"), Mapping) and unreadable:
            status = {key: value for key, value in obj["status"].items() if key not in unreadable}
            return read(model, {**obj, "status": status}, known_fields_only=known_fields_only)
        raise InvalidSpec("Invalid", describe(errors)) from None


def readable(model: type[Model], stored: Any) -> dict[str, Any]:
    """A stored part of an object, such as its status, without the fields that make no sense here."""
    if not isinstance(stored, Mapping):
        return {}
    try:
        model.model_validate(stored, extra="ignore")
    except ValidationError as error:
        unreadable = {entry["loc"][0] for entry in error.errors() if entry["loc"]}
        return {key: value for key, value in stored.items() if key not in unreadable}
    return dict(stored)


def describe(errors: list[ErrorDetails], *, most: int = 5) -> str:
    """pydantic's errors as `path: what is wrong: remedy; ...`."""
    lines = [f"{_path(entry['loc'])}: {_words(entry)}" for entry in errors[:most]]
    if len(errors) > most:
        lines.append(f"and {len(errors) - most} more")
    return "; ".join(lines)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "object"


def _words(entry: ErrorDetails) -> str:
    context = entry.get("ctx", {})
    match entry["type"]:
        case "missing":
            return "required: add it"
        case "extra_forbidden":
            return "unknown field: correct or remove it"
        case "literal_error":
            return f"unsupported value: use {context['expected']} (or a Berth release that knows it)"
        case "greater_than_equal":
            return f"must be at least {context['ge']}: raise it"
        case "less_than_equal":
            return f"must be at most {context['le']}: lower it"
        case "string_too_long" | "too_long":
            return f"too long: at most {context['max_length']}, shorten it"
        case "string_too_short" | "too_short":
            return f"too short: at least {context['min_length']}, add to it"
        case _:
            return entry["msg"]
