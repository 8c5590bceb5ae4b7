"""Errors by what the caller should do about them.

`Transient` retry with back-off; `Conflict` look again now; `InvalidSpec` tell the user and wait for a new generation.
Anything else is a bug: logged with its traceback, counted, retried with back-off, and no neighbour suffers.
"""

from __future__ import annotations


class BerthError(Exception):
    """Base of all errors that Berth raises on purpose."""


class Transient(BerthError):
    """The world was not ready; `retry_after` seconds is the server's own wish, where it gave one."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Conflict(BerthError):
    """Somebody else wrote first (409): read again and decide again."""


class InvalidSpec(BerthError):
    """What the user asked for cannot be done; the message names field, bound and remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
