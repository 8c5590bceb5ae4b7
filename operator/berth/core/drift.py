"""What has to change for a child object to say again what Berth wants of it.

The server adds defaults and other writers add fields of their own, so equality is too much: everything Berth names must
be there with its value. Selectors must match whole, since an added key would take the traffic away, and so must lists
other than owners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

WHOLE: Final = frozenset({("spec", "selector"), ("spec", "selector", "matchLabels"), ("data",)})
"""Paths of maps in which nothing may stand beside what Berth wants."""
OWNERS: Final = ("metadata", "ownerReferences")
"""A list in which others may stand."""


def mend(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch that makes `found` say what `wanted` says; empty if it does."""
    return _mend(wanted, found, ())


def _mend(wanted: Mapping[str, Any], found: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(set(found) - set(wanted)) if path in WHOLE else {}
    for key, value in wanted.items():
        have, here = found.get(key), (*path, key)
        if isinstance(value, Mapping):
            change: Any = _mend(value, have if isinstance(have, Mapping) else {}, here)
            if change or not isinstance(have, Mapping):
                patch[key] = change
        elif here == OWNERS:
            missing = [owner for owner in value if not _among(owner, have or ())]
            if missing:
                patch[key] = [*(have or ()), *missing]
        elif not _says(value, have):
            patch[key] = value
    return patch


def _among(wanted: Mapping[str, Any], found: Sequence[Any]) -> bool:
    return any(_says(wanted, each) for each in found)


def _says(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and not _mend(wanted, found, ())
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(map(_says, wanted, found))
    return bool(wanted == found)
