"""Replays of the recorded hour that are too slow for unit tests: made by `make_all`, kept in a file.

`.venv/bin/python -m tests.support.golden_replays` rewrites the file (a few minutes).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.engines import ENGINES
from tests.support.replay import Measured, fleet, read_trace

FILE = Path(__file__).parents[1] / "unit" / "queueing" / "golden" / "replays.json"
MAX_REQUESTED = 1024
SATURATION = {"H100 TP2 FP8": 8.4, "H100 TP1 FP8": 2.4, "A100-40 TP4 BF16": 1.5, "A100-40 TP8 BF16": 5.6}
"""Requests per second, rounded, of a copy that always has requests waiting."""
UTILISATIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Up to and past the load that meets 1.5 s and 50 ms at p95, which is 0.3 to 0.45 of saturation on these engines."""


def make(name: str, utilisation: float) -> dict[str, Any]:
    rate = SATURATION[name] * utilisation
    return {"engine": name, "rate": rate, **quantiles(fleet(ENGINES[name], read_trace(), rate, MAX_REQUESTED))}


def make_all(cases: Iterable[tuple[str, float]] | None = None) -> Iterator[dict[str, Any]]:
    yield from (make(*case) for case in cases or [(name, share) for name in ENGINES for share in UTILISATIONS])


def quantiles(measured: Measured) -> dict[str, list[float]]:
    """50th, 95th and 99th percentile in seconds, to a microsecond."""
    shares = [50, 95, 99]
    return {
        "ttft": np.percentile(measured.ttft, shares).round(6).tolist(),
        "tpot": np.nanpercentile(measured.tpot, shares).round(6).tolist(),
    }


def read() -> list[dict[str, Any]]:
    return list(json.loads(FILE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(list(make_all()), indent=1) + "\n", encoding="utf-8")
    sys.exit(0)
