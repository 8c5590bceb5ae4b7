"""An hour of a leader's minutes in little memory, and nothing of it lost."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from berth.core.measurement.histogram import Attained, Histogram
from berth.core.measurement.packed import Packed, pack, unpack
from berth.core.measurement.samples import COUNTERS, HISTOGRAMS, Objectives, Sample, StepMoments, Steps, Tally
from berth.core.measurement.series import Series
from berth.core.measurement.windows import BATCH_SECONDS, SLOW_BATCHES, Batch
from berth.engine import meter

EDGES = dict(zip(HISTOGRAMS, (meter.FIRST_TOKEN_EDGES, meter.PER_TOKEN_EDGES, (0.1, 0.5), (16.0,), ()), strict=True))
numbers = st.floats(0, 1e12)
small = st.integers(0, 2**32 - 1)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    fields = {name: draw(numbers) for name in (*COUNTERS, "group_seconds", "waiting_sum", "kv_use_max")}
    histograms = {
        name: Histogram(tuple(edges), tuple(draw(small) for _ in range(len(edges) + 1)), draw(numbers))
        for name, edges in EDGES.items()
        if draw(st.booleans())
    }
    steps = StepMoments.of(draw(st.sampled_from([0.0, 3.0])), *(draw(st.floats(0, 1e9)) for _ in range(4)))
    met = [Attained(*sorted((draw(small) for _ in range(3)), reverse=True)) for _ in range(2)]
    tally = Tally(
        **fields, **histograms, readings=draw(small), steps=steps, first_token_met=met[0], per_token_met=met[1]
    )  # type: ignore[arg-type]
    return Batch(draw(small), draw(numbers), tally)


@given(batches())
def test_a_minute_comes_out_as_it_went_in(batch: Batch) -> None:
    packed = pack(batch)
    assert isinstance(packed, Packed)
    assert unpack(packed) == batch


def test_a_count_that_no_engine_reaches_is_kept_as_it_is() -> None:
    """What leaders say is untrusted."""
    hostile = Batch(1, 60.0, Tally(output=Histogram((), (2**53,), 0.0)))
    assert pack(hostile) is hostile


def readings(minutes: int) -> Iterator[Sample]:
    """A leader that serves two requests per second, read every ten seconds."""
    for number in range(minutes * 6 + 1):
        done = 20 * number
        yield Sample(
            at=1e9 + 10.0 * number,
            **{
                name: Histogram(tuple(edges), tuple(done + i for i in range(len(edges) + 1)), 0.3 * done)
                for name, edges in EDGES.items()
            },  # type: ignore[arg-type]
            counters=dict.fromkeys(COUNTERS, 1.7 * done),
            steps=Steps(done, 1.1 * done, 7.3 * done, 1e4 * done, 1e3 * done),
            running=0.1 * number,
            waiting=0.2 * number,
            kv_use=0.5,
        )


def test_an_hour_of_a_leader_is_small_and_whole() -> None:
    last = 0.0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        series = Series(Objectives(1.5, 0.05), counts_from=0.0)
        for sample in readings(SLOW_BATCHES + 3):
            series.add(sample)
            last = sample.at
        series.windows(last)
        gc.collect()  # lists of free tuples, too
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 150 * 1024, "for a thousand leaders it is so many MiB; as objects 220"
    kept = list(series.batches())
    assert len(kept) == SLOW_BATCHES + 1
    assert all(one.index + 1 == following.index for one, following in pairwise(kept))
    assert sum(batch.seconds for batch in kept[:-1]) == SLOW_BATCHES * BATCH_SECONDS
    assert series.windows(last).slow.tally.requests == sum(batch.tally.requests for batch in kept)
