"""A minute that is over, as bytes: an hour of them is kept per leader, and as objects they take four times as much.

Nothing is lost: what comes out equals what went in.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from berth.core.measurement.histogram import Attained, Histogram
from berth.core.measurement.samples import COUNTERS, HISTOGRAMS, StepMoments, Tally
from berth.core.measurement.windows import Batch

Layout = tuple[tuple[float, ...] | None, ...]
"""Edges of the histograms, in the order of HISTOGRAMS; None for one that is not exported."""

_SUMS: Final = (*COUNTERS, "group_seconds", "running_sum", "waiting_sum", "kv_use_sum", "kv_use_max")
_MOMENTS: Final = tuple((i, j) for i in range(5) for j in range(i, 5))
"""The products of steps that differ."""
_ROWS: Final = tuple(tuple(_MOMENTS.index((min(i, j), max(i, j))) for j in range(5)) for i in range(5))
_BEFORE_HISTOGRAMS: Final = 8
"""Counts: readings, observations of steps, three for each objective."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch; `counts` are unsigned 32 bit, `sums` doubles."""

    index: int
    seconds: float
    layout: Layout
    counts: bytes
    sums: bytes


@lru_cache(maxsize=1024)
def _shared(layout: Layout) -> Layout:
    return layout


def pack(batch: Batch) -> Batch | Packed:
    """The batch in little memory; as it is where a number is none that an engine counts to in a minute."""
    tally, steps = batch.tally, batch.tally.steps
    histograms = [getattr(tally, name) for name in HISTOGRAMS]
    counts = [tally.readings, steps.observations]
    for met in (tally.first_token_met, tally.per_token_met):
        counts += (met.requests, met.low, met.high)
    sums = [getattr(tally, name) for name in _SUMS]
    sums += (steps.products[i][j] for i, j in _MOMENTS)
    for histogram in histograms:
        if histogram is not None:
            counts += histogram.counts
            sums.append(histogram.total)
    try:
        narrow, wide = array("I", counts), array("d", sums)
    except (OverflowError, TypeError):
        return batch
    layout = _shared(tuple(histogram.edges if histogram else None for histogram in histograms))
    return Packed(batch.index, batch.seconds, layout, narrow.tobytes(), wide.tobytes())


def unpack(packed: Packed) -> Batch:
    """The batch again."""
    counts, sums = array("I", packed.counts).tolist(), array("d", packed.sums).tolist()
    fields: dict[str, Any] = dict(zip(_SUMS, sums, strict=False))
    at, total = _BEFORE_HISTOGRAMS, len(_SUMS) + len(_MOMENTS)
    for name, edges in zip(HISTOGRAMS, packed.layout, strict=True):
        if edges is not None:
            fields[name] = Histogram(edges, tuple(counts[at : at + len(edges) + 1]), sums[total])
            at, total = at + len(edges) + 1, total + 1
    tally = Tally(
        **fields,
        readings=counts[0],
        first_token_met=Attained(*counts[2:5]),
        per_token_met=Attained(*counts[5:8]),
        steps=_steps(counts[1], sums[len(_SUMS) :]),
    )
    return Batch(packed.index, packed.seconds, tally)


def _steps(observations: int, upper: list[float]) -> StepMoments:
    if not observations:
        return StepMoments()
    return StepMoments(observations, tuple(tuple(upper[place] for place in row) for row in _ROWS))
