"""What leaves a cluster in a support bundle: everything that explains, nothing that authorises. Pure.

Values of environment variables go (names stay), so do credentials in any other text: by what they look like and by what
stands before them. Names of Secrets stay: they say what to look at, and open nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "(redacted)"
_KEPT_WORDS: Final = ("tokens", "tokenizer")
"""What a model does: never a credential."""

_SHAPES: Final = (
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),  # Hugging Face
    re.compile(r"\b(?:nvapi|sk|ghp|gho|ghs|github_pat|glpat|xox[abp])[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),  # JSON web tokens
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9+/=._~-]{6,}")
_IN_URL: Final = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_NAMED: Final = re.compile(
    r"(?i)(?P<name>[\w.-]*(?:token|secret|passw(?:or)?d|api[_-]?key|credential|authorization)[\w.-]*)"
    r"(?P<between>[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"',;&}]{6,})"
)
_SECRET_KEY: Final = re.compile(r"(?i)(token|secret|passw(or)?d|api[_-]?key|credential|authorization)$")
_NAMES_OF_SECRETS: Final = re.compile(r"(?i)(secret|secretName|secretRef|imagePullSecrets)s?$")


def text(given: str) -> str:
    """Free text, such as a log, without credentials."""
    for shape in _SHAPES:
        given = shape.sub(REDACTED, given)
    given = _BEARER.sub(rf"\1\2{REDACTED}", given)
    given = _IN_URL.sub(REDACTED, given)
    return _NAMED.sub(_named, given)


def _named(found: re.Match[str]) -> str:
    if found["value"].startswith(REDACTED[:6]) or any(word in found["name"].lower() for word in _KEPT_WORDS):
        return found[0]
    return f"{found['name']}{found['between']}{REDACTED}"


def manifest(given: Any, key: str = "") -> Any:
    """An object of the API without values of environment variables, credentials, and what only fills pages."""
    if isinstance(given, Mapping):
        return {name: _entry(name, value) for name, value in given.items() if name != "managedFields"}
    if isinstance(given, list | tuple):
        return [_variable(each) if key == "env" else manifest(each) for each in given]
    return text(given) if isinstance(given, str) else given


def _entry(name: str, value: Any) -> Any:
    if name == "kubectl.kubernetes.io/last-applied-configuration":
        return REDACTED  # the whole spec again, as text
    if isinstance(value, str) and _SECRET_KEY.search(name) and not _NAMES_OF_SECRETS.search(name):
        return REDACTED
    return manifest(value, name)


def _variable(each: Any) -> Any:
    """One entry of a list `env`: where a value comes from may stay, a value may not."""
    if not isinstance(each, Mapping):
        return REDACTED
    return {name: REDACTED if name == "value" else manifest(value, name) for name, value in each.items()}
