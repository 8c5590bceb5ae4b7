"""What server-side apply can carry: a map that its owner now leaves empty would become null, and be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_empty_maps(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same without empty maps at any depth of maps; lists are values and stay as they are."""
    kept = {key: without_empty_maps(part) if isinstance(part, Mapping) else part for key, part in value.items()}
    return {key: part for key, part in kept.items() if part != {}}
