"""How commands print: documents for programs, tables and times for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def dump(content: Any, form: str) -> str:
    """`content` as `json` or `yaml`, with its line end."""
    import yaml

    if form == "json":
        return json.dumps(content, indent=2) + "\n"
    return str(yaml.safe_dump(content, sort_keys=False))


def table(rows: Sequence[Sequence[str]], *, indent: str = "", gap: str = "  ") -> list[str]:
    """Rows in columns. A row that is shorter than others spends what is left of the line on its last cell."""
    width = max(map(len, rows), default=0)
    aligned = [row if len(row) == width else row[:-1] for row in rows]
    widths = [max((len(row[i]) for row in aligned if i < len(row)), default=0) for i in range(width)]
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[i]) if i < len(row) - 1 else cell for i, cell in enumerate(row)]
        lines.append((indent + gap.join(cells)).rstrip())
    return lines


def printable(text: str) -> str:
    """Without what a terminal would obey: messages of pods end up on screens, and nobody vouches for them."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def age(seconds: float | None) -> str:
    """How long ago, as kubectl says it: 12s, 14m, 5h, 3d; `-` where nobody knows."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    for size, unit, most in ((1, "s", 120), (60, "m", 120), (3600, "h", 48)):
        if whole < most * size:
            return f"{whole // size}{unit}"
    return f"{whole // 86400}d"


def duration(written: str) -> str:
    """A duration of a manifest as a person reads it: 1500ms is 1.5s."""
    from berth.api.quantities import format_duration, seconds

    return format_duration(seconds(written))
