"""Objects that say the same words in the same memory: each parsed document brings its own copy of every key."""

from __future__ import annotations

from sys import intern
from typing import Any, Final

from berth.kube.kinds import Object

_WORDS: Final = frozenset(
    {
        *("apiVersion", "kind", "namespace", "name", "type", "status", "reason", "phase"),
        *("image", "pool", "variant", "key", "operator", "effect"),
    }
)
"""Keys whose values are few and said by many objects; of the others, identifiers above all, each is there once."""


def shared(obj: Object) -> Object:
    """An equal object whose keys and common words are those of all others."""
    return {intern(key): _shared(value, key in _WORDS) for key, value in obj.items()}


def _shared(value: Any, word: bool) -> Any:
    match value:
        case dict():
            return {intern(key): _shared(each, key in _WORDS) for key, each in value.items()}
        case list():
            return [_shared(each, word) for each in value]
        case str() if word:
            return intern(value)
        case _:
            return value
