"""Whether a child object still says what Berth wants of it.

The server adds defaults and other writers add fields of their own, so equality is too much: everything Berth names must
be there with its value. Maps that the API treats as one value (selectors) must match whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ATOMIC: Final = frozenset({("spec", "selector"), ("spec", "selector", "matchLabels"), ("data",)})
"""Paths whose maps must be equal, not only contained: an added selector key would take the traffic away."""


def drifted(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """True if applying `wanted` would change `found`."""
    return not _contains(wanted, found, ())


def _contains(wanted: Any, found: Any, path: tuple[str, ...]) -> bool:
    if isinstance(wanted, Mapping):
        if not isinstance(found, Mapping) or (path in ATOMIC and set(wanted) != set(found)):
            return False
        return all(_contains(value, found.get(key), (*path, str(key))) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list) or len(found) < len(wanted):
            return False
        if path[-1:] == ("ownerReferences",):
            return all(any(_contains(want, have, (*path, "")) for have in found) for want in wanted)
        return len(found) == len(wanted) and all(
            _contains(want, have, (*path, "")) for want, have in zip(wanted, found, strict=True)
        )
    return bool(wanted == found)
