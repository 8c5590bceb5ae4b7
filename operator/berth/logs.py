"""Logging of the operator: one line per record, as text for people or as JSON for machines.

Whoever works on something says so once, with `about`; every record logged meanwhile carries it, those of libraries as
well: `namespace` and `deployment`, `group` and `incarnation`, `pool`. The keys are the words of the API.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json")
KEYS: Final = ("namespace", "deployment", "group", "incarnation", "pool")

_KOPFS_OWN: Final = ("settings", "k8s_skip", "k8s_ref")
"""What kopf attaches to its records for itself."""

_about: ContextVar[Mapping[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


@contextmanager
def about(**keys: str | int) -> Iterator[None]:
    """Until it ends, records of this task (and of tasks it begins) carry `keys`, which are among KEYS."""
    token = _about.set({**_about.get(), **keys})
    try:
        yield
    finally:
        _about.reset(token)


def configure(format_: Format, *, verbose: bool = False, stream: TextIO = sys.stderr) -> None:
    """Send everything that is logged in this process to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_tell_about)
    handler.setFormatter(_text() if format_ == "text" else _json())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    # It tells of every event that it passes on.
    logging.getLogger("kopf").setLevel(logging.DEBUG if verbose else logging.WARNING)


def _tell_about(record: logging.LogRecord) -> bool:
    for key, value in _about.get().items():
        setattr(record, key, value)
    return True


def _json() -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"],
        style="sequence",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp="time",
        reserved_attrs=[*RESERVED_ATTRS, *_KOPFS_OWN],
        json_default=str,  # a library may attach anything to its records
    )


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        keys = " ".join(f"{key}={getattr(record, key)}" for key in KEYS if hasattr(record, key))
        first, newline, rest = line.partition("\n")  # a trace follows the line it belongs to
        return f"{first} [{keys}]{newline}{rest}" if keys else line


def _text() -> logging.Formatter:
    return _Text("%(asctime)s %(levelname)s %(name)s %(message)s")
