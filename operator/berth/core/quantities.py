"""Kubernetes quantities ("250m", "1.5Gi", "2e3") as exact integers, rounded up to the unit that is asked for."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Final

_SUFFIXES: Final[dict[str, Fraction]] = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<suffix>[KMGTPE]i|[numkMGTPE]?))"
)


def parse(quantity: str | int | float) -> Fraction:
    """The exact value in base units (cores, bytes, pieces).

    Raises ValueError for what the Kubernetes API server would refuse as well.
    """
    return _parse(str(quantity).strip())


@lru_cache(maxsize=4096)
def _parse(text: str) -> Fraction:
    """Thousands of pods ask for the same few amounts."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as 8, 500m or 64Gi")
    number = Fraction(match["number"])
    if match["exponent"] is not None:
        return number * Fraction(10) ** int(match["exponent"])
    return number * _SUFFIXES[match["suffix"]]


def ceil_units(quantity: str | int | float, unit: Fraction = Fraction(1)) -> int:
    """How many `unit`s hold the quantity; rounding up, as the Kubernetes scheduler rounds requests."""
    return -int(-parse(quantity) // unit)


def millicores(quantity: str | int | float) -> int:
    """CPU in thousandths of a core."""
    return ceil_units(quantity, Fraction(1, 1000))


def show_bytes(count: int) -> str:
    """Bytes as a person reads them: 72.3 GiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def show_cores(milli: int) -> str:
    """Thousandths of a core as a person reads them: 7.5 cores."""
    return f"{milli / 1000:g} cores" if milli != 1000 else "1 core"
