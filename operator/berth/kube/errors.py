"""What the API server's refusals mean for the caller: one typed error per thing one can do about it.

NotFound          it is not there (or its kind is not installed)
AlreadyExists     somebody made it first; a `Conflict`: look whose it is
Conflict          written or recreated since it was read; read again and decide again
Expired           the version or page asked for is compacted; list again (the reflector and `list` do)
Forbidden         RBAC lacks a verb on a resource; both are named
Rejected          this request can never succeed as it is: validation, quota, policy, webhook
TooManyRequests   slow down; a `Transient` with the server's own waiting time
Transient         server error, time-out, broken connection: the request may or may not have been carried out
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from berth.errors import BerthError, Conflict, Transient

MESSAGE_LIMIT: Final = 500
"""Characters of a server's text that are kept: bodies of refusals may quote whole specs."""

PERMANENT_SERVER_ERRORS: Final = (
    "failed to create typed patch object",
    "failed to convert new object",
    "failed to create typed live object",
    "more than one PodDisruptionBudget",
)
"""Answers of 500 that no repetition changes: a server-side apply that does not fit the schema, an eviction that several
budgets rule."""

_RBAC: Final = re.compile(r'User "[^"]*" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"')


class NotFound(BerthError):
    """404: the object, its namespace or its kind does not exist."""


class AlreadyExists(Conflict):
    """409 on a create: an object of this name is there already, maybe by our own earlier request."""


class Expired(BerthError):
    """410: the resourceVersion or continue token is older than what the server still remembers."""


class Forbidden(BerthError):
    """403 by RBAC; `verb` and `resource` are what a Role would have to grant."""

    def __init__(self, message: str, *, verb: str, resource: str) -> None:
        super().__init__(message)
        self.verb = verb
        self.resource = resource


class Rejected(BerthError):
    """The server will not take this request, however often it is sent; `reason` is its word for why, or Unknown."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TooManyRequests(Transient):
    """429: rate limit of the server, or an eviction that a disruption budget does not allow now."""


def trim(text: str) -> str:
    """One line of at most MESSAGE_LIMIT characters."""
    line = " ".join(text.split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def error_for(status: int, body: bytes, headers: Mapping[str, str], request: str) -> BerthError:
    """Translate an answer outside 2xx; `request` says in words what was asked, such as `create pods prod/x`."""
    return error_from_status(_parse_status(body), status, request, _seconds(headers.get("Retry-After")))


def error_from_status(
    details: Mapping[str, Any], status: int, request: str, retry_after: float | None = None
) -> BerthError:
    """Translate a `Status` object (of a response body or of an ERROR event of a watch) with its HTTP status."""
    text = str(details.get("message") or "no message")
    reason = str(details.get("reason") or "Unknown")
    message = trim(f"{request}: {status} {text}")
    if status == 404:
        return NotFound(message)
    if status == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if status == 410:
        return Expired(message)
    if status == 403 and (refused := _RBAC.search(text)):
        return Forbidden(message, verb=refused["verb"], resource=refused["resource"])
    if retry_after is None:
        retry_after = _seconds((details.get("details") or {}).get("retryAfterSeconds"))
    if status == 429:
        return TooManyRequests(message, retry_after=retry_after)
    if status in (401, 408) or (status >= 500 and not any(known in text for known in PERMANENT_SERVER_ERRORS)):
        return Transient(message, retry_after=retry_after)
    causes = (details.get("details") or {}).get("causes") or [{}]
    if any(cause.get("field") == "metadata.uid" for cause in causes):
        return Conflict(message)  # a patch with the uid of a former object of this name is a 422, not a 409
    return Rejected(message, reason=str(causes[0].get("reason") or reason))


def _parse_status(body: bytes) -> Mapping[str, Any]:
    """The server's Status object; answers of proxies and panics are plain text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"message": body[:MESSAGE_LIMIT].decode(errors="replace")}


def _seconds(value: object) -> float | None:
    """A waiting time in seconds; HTTP dates and nonsense count as none given."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 < seconds < 3600 else None
