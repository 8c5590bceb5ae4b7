"""What `berth plan` prints for people: the table of candidates, why one is first, what the figures rest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from berth.cli.output import table
from berth.core.placement import record
from berth.core.placement.explain import explain, why_split
from berth.core.placement.size import Candidate

if TYPE_CHECKING:
    from berth.cli.plan import Planned
    from berth.cli.what_if import Change

_ROWS: Final = 10


def lines(planned: Planned, changes: Sequence[Change], *, wide: bool, factors: bool) -> Iterator[str]:
    """Headline, table, reasons, remarks; with `factors` the five of them."""
    shown = planned.candidates if wide else record.selection(planned.candidates, planned.in_force, _ROWS)
    yield headline(planned, changes) + "\n"
    yield _table(planned, shown, wide=wide)
    yield from _why(planned, shown)
    yield from _remarks(planned, shown)
    if factors:
        yield from _factors(planned, shown)


def headline(planned: Planned, changes: Sequence[Change] = ()) -> str:
    """What was asked, in a line."""
    question = planned.question
    traffic, objectives = question.traffic, question.objectives
    load = f"{traffic.load:g} req/s" if not traffic.closed else f"{traffic.load:g} clients"
    length = f"{traffic.input_tokens.mean:g} in / {traffic.output_tokens.mean:g} out"
    bounds = [
        f"{name} p95 <= {record.show_time(bound)}"
        for name, bound in (("TTFT", objectives.time_to_first_token), ("TPOT", objectives.time_per_output_token))
        if record.show_time(bound)
    ]
    if question.availability is not None:
        bounds.append(f"availability {question.spec.objectives.availability}")
    promised = ", ".join(bounds) or "no objectives"
    changed = "".join(f"\nwhat if {change.key} = {change.value}" for change in changes)
    return f"{question.model.name}, {load} of {length}; {promised}{changed}"


def _table(planned: Planned, shown: Sequence[Candidate], *, wide: bool) -> str:
    """One line per candidate; what was rejected has its reason where others have figures."""
    currency = next((s.pool.spec.currency for s in planned.supplies.values() if s.price is not None), "USD")
    sign = "$" if currency == "USD" else currency
    heads = ["#", "POOL", "PRECISION", "TP", "PP", "GROUPS", "GPUS", f"{sign}/H", f"{sign}/1M TOK"]
    figures = ["TTFT P95", "TPOT P95", "LOAD", "AVAIL", "LIMITED BY"]
    if wide:
        figures += ["NEEDED", "BATCH", "TOKENS", "KV ROOM", "TOK/S", "BY"]
    rows = [[*heads, *figures, ""]]
    for number, candidate in enumerate(shown, 1):
        rejected = candidate.rejected.words if candidate.rejected else candidate.waits
        start = [*_layout(planned, candidate), *_price(candidate)]
        mark = _mark(planned, candidate)
        if rejected and not (candidate is planned.in_force and candidate.latency):
            rows.append(["-", *start, f"{rejected}{mark and '  '}{mark}"])
        else:
            rows.append([str(number), *start, *_measures(planned, candidate, wide=wide), mark])
    return "".join(f"{line}\n" for line in table(rows, indent="  "))


def _layout(planned: Planned, candidate: Candidate) -> list[str]:
    layout = candidate.layout
    variant = next(variant for variant in planned.question.variants if variant.name == layout.variant)
    alike = [each for each in planned.question.variants if each.precision == variant.precision]
    precision = variant.precision if len(alike) == 1 else variant.name
    split = [str(layout.tensor_parallel), str(layout.pipeline_parallel)] if candidate.fit else ["-", "-"]
    counts = [str(candidate.groups), str(candidate.gpus)] if candidate.groups else ["-", "-"]
    return [layout.pool, precision, *split, *counts]


def _price(candidate: Candidate) -> list[str]:
    cost = candidate.cost
    per_million = cost.per_million_output_tokens if cost else None
    return [f"{cost.per_hour:.2f}" if cost else "-", f"{per_million:.2f}" if per_million is not None else "-"]


def _measures(planned: Planned, candidate: Candidate, *, wide: bool) -> list[str]:
    entry = record.candidate_status(planned.question, candidate, planned.evaluation, chosen=True)
    predicted = entry.predicted
    rate = predicted.output_tokens_per_second if predicted else None
    measures = [
        (predicted.ttft_p95 if predicted else None) or "-",
        (predicted.tpot_p95 if predicted else None) or "-",
        f"{candidate.load:.0%}",
        entry.availability or "-",
        (entry.limited_by or "-") + ("*" if _unvalidated(planned, candidate) else ""),
    ]
    if not wide:
        return measures
    layout = candidate.layout
    room = f"{candidate.fit.kv_tokens_mid}" if candidate.fit else "-"
    tokens = f"{rate.low}..{rate.high}" if rate else "-"
    by = {"simulate": "simulation", "screen": "screen"}[candidate.method]
    return [*measures, str(candidate.needed), str(layout.max_batch_size), str(layout.max_num_tokens), room, tokens, by]


def _mark(planned: Planned, candidate: Candidate) -> str:
    if candidate is planned.in_force:
        return "<- chosen" if candidate is planned.answer.chosen else "<- fixed"
    return "<- Auto would choose" if candidate is planned.answer.chosen else ""


def _unvalidated(planned: Planned, candidate: Candidate) -> bool:
    """Whether the prediction rests on few or no measurements: stages, 4 or 8 bit integers, latent attention."""
    variant = next(variant for variant in planned.question.variants if variant.name == candidate.layout.variant)
    latent = planned.question.model.kv_latent > 0
    return latent or candidate.layout.pipeline_parallel > 1 or variant.precision.startswith("int")


def _why(planned: Planned, shown: Sequence[Candidate]) -> Iterator[str]:
    answer, in_force = planned.answer, planned.in_force
    if answer.chosen is None:
        yield answer.words
    else:
        number = next(place for place, candidate in enumerate(shown, 1) if candidate is answer.chosen)
        split = why_split(answer.chosen, planned.evaluation)
        yield f"why {number}: {answer.words}" + (f". {split}" if split else "")
    if in_force is not None and not in_force.available and in_force.availability is not None:
        target = planned.question.spec.objectives.availability
        reached, why = record.show_availability(in_force), in_force.availability.limited_by
        yield f"availability {reached} misses {target}: limited by {why}"


def _remarks(planned: Planned, shown: Sequence[Candidate]) -> Iterator[str]:
    """What the figures rest on where that is not plain."""
    if any(candidate.groups and _unvalidated(planned, candidate) for candidate in shown):
        yield "* not validated on hardware: few or no published measurements of this precision, attention or of stages"
    endless = [s.name for s in planned.supplies.values() if s.nodes is None and s.pool.spec.provisioning == "Static"]
    if endless:
        yield f"{', '.join(sorted(endless))}: number of nodes unknown (no status.nodes), taken as enough, in one zone"
    if planned.question.prefer == "Cost" and all(supply.price is None for supply in planned.supplies.values()):
        yield "no pool has a pricePerGPUHour: compared by number of GPUs"


def _factors(planned: Planned, shown: Sequence[Candidate]) -> Iterator[str]:
    """The five factors of the chosen candidate and of the runner-up."""
    sized = [candidate for candidate in shown if candidate.groups and candidate.latency]
    for candidate in sorted(sized, key=lambda candidate: candidate is not planned.in_force)[:2]:
        supply = planned.supplies[candidate.layout.pool]
        yield f"\n{candidate.layout} x {candidate.groups}"
        for name, words in asdict(explain(planned.question, supply, candidate, planned.evaluation)).items():
            yield f"  {name:14}{words}"
