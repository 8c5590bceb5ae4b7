"""Label selectors in kubectl's words, for what the API server cannot select. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

_TERM: Final = re.compile(r"\s*([^,()]+(?:\([^()]*\))?)\s*(?:,|$)")
_KEY: Final = r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_SET: Final = re.compile(rf"({_KEY})\s+(in|notin)\s+\(([^()]*)\)")
_EQUAL: Final = re.compile(rf"({_KEY})\s*(==|=|!=)\s*(\S*)")
_EXISTS: Final = re.compile(rf"(!?)\s*({_KEY})")


@dataclass(frozen=True)
class _Term:
    key: str
    wanted: bool
    values: frozenset[str] | None
    """None: any."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return found == self.wanted


@dataclass(frozen=True)
class Selector:
    """All terms must hold; none at all selects everything."""

    terms: tuple[_Term, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """`team=search,tier!=test,region in (eu, us),zone notin (a),gpu,!legacy`. Raises ValueError."""
        terms, end = [], 0
        text = text.strip()
        while end < len(text):
            found = _TERM.match(text, end)
            if found is None:
                raise ValueError(f"cannot read {text[end:]!r}: {_REMEDY}")
            terms.append(_term(found[1].strip()))
            end = found.end()
        if text.endswith(","):
            raise ValueError(f"ends with a comma: {_REMEDY}")
        return cls(tuple(terms))

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.terms)


_REMEDY: Final = (
    "write terms such as key=value, key!=value, key in (a,b), key notin (a,b), key, !key, with commas between"
)


def _term(text: str) -> _Term:
    if found := _SET.fullmatch(text):
        return _Term(found[1], found[2] == "in", frozenset(_value(each.strip()) for each in found[3].split(",")))
    if found := _EQUAL.fullmatch(text):
        return _Term(found[1], found[2] != "!=", frozenset({_value(found[3])}))
    if found := _EXISTS.fullmatch(text):
        return _Term(found[2], not found[1], None)
    raise ValueError(f"cannot read {text!r}: {_REMEDY}")


def _value(text: str) -> str:
    if len(text) > 63 or not _VALUE.fullmatch(text):
        raise ValueError(f"{text!r} is not a label value")
    return text
