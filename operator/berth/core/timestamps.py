"""Times as Kubernetes writes them (RFC 3339, UTC) and as the core computes with them (Unix seconds)."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """`2026-01-31T12:00:00Z`, whole seconds as metav1.Time has them."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(seconds: float) -> str:
    """The same to a thousandth, `2026-01-31T12:00:00.250Z`, for what lasts only seconds."""
    return datetime.fromtimestamp(round(seconds, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_seconds(text: str | None) -> float | None:
    """Unix seconds of an RFC 3339 time; None for absent or unreadable ones."""
    if not text:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed.timestamp() if parsed.tzinfo else parsed.replace(tzinfo=UTC).timestamp()
