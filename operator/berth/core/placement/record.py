"""The decision as `status` has it: figures as people read them, at most ten candidates, best first.

`berth plan -o json` prints the same, so what a laptop says and what a cluster stores have the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from berth.api.common import format_duration
from berth.api.placement import Allocation, DecidedAllocation
from berth.api.schema import Model
from berth.api.status import MAX_CANDIDATES, AvailabilityStatus, Figures, PlacementStatus, Range
from berth.api.status import Candidate as CandidateStatus
from berth.api.status import Factors as FactorsStatus
from berth.core.placement.evaluate import Evaluation
from berth.core.placement.explain import explain, limiting_term
from berth.core.placement.question import Question, spec_hash
from berth.core.placement.size import Candidate
from berth.core.placement.supply import Supply

_POSSIBLE_SHOWN: Final = 6
"""Of the ten; the others say why pools and variants are out."""
_EXPLAINED: Final = 2


def selection(candidates: Sequence[Candidate], chosen: Candidate | None, most: int = MAX_CANDIDATES) -> list[Candidate]:
    """The best candidates, the chosen one among them, then why others are out: of each pool and variant the closest."""
    possible = [candidate for candidate in candidates if candidate is chosen or not candidate.rejected]
    rejected = [candidate for candidate in candidates if candidate is not chosen and candidate.rejected]
    seen = {(candidate.layout.pool, candidate.layout.variant) for candidate in possible}
    telling: list[Candidate] = []
    others: list[Candidate] = []
    for candidate in rejected:
        place = (candidate.layout.pool, candidate.layout.variant)
        (others if place in seen else telling).append(candidate)
        seen.add(place)
    room = min(most, max(_POSSIBLE_SHOWN, most - len(rejected)))
    shown = possible[:room]
    if chosen is not None and chosen not in shown:
        shown[-1] = chosen
    return (shown + telling + others)[:most]


def dump(model: Model) -> dict[str, Any]:
    """As it stands in the cluster."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def candidates_status(
    question: Question,
    supplies: Mapping[str, Supply],
    evaluation: Evaluation,
    shown: Sequence[Candidate],
    chosen: Candidate | None,
) -> list[CandidateStatus]:
    """`status.candidates`, with the five factors of the chosen one and the runner-up."""
    sized = [candidate for candidate in shown if candidate.groups and candidate is not chosen]
    explained = [*([chosen] if chosen is not None and chosen.groups else []), *sized][:_EXPLAINED]
    entries = []
    for candidate in shown:
        entry = candidate_status(question, candidate, evaluation, chosen=candidate is chosen)
        if any(candidate is each for each in explained):
            supply = supplies[candidate.layout.pool]
            factors = FactorsStatus(**asdict(explain(question, supply, candidate, evaluation)))
            entry = entry.model_copy(update={"factors": factors})
        entries.append(entry)
    return entries


def candidate_status(
    question: Question, candidate: Candidate, evaluation: Evaluation, *, chosen: bool
) -> CandidateStatus:
    """One entry of `status.candidates`."""
    figures: dict[str, Any] = {}
    if candidate.groups and candidate.latency is not None:
        figures = {
            "predicted": predicted(candidate, evaluation),
            "gpus": candidate.gpus,
            "load": f"{candidate.load:.2f}",
            "availability": show_availability(candidate),
            "limited_by": limiting_term(question, candidate, evaluation),
        }
    if candidate.cost is not None:
        figures["cost_per_hour"] = f"{candidate.cost.per_hour:.2f}"
        if candidate.cost.per_million_output_tokens is not None:
            figures["cost_per_million_output_tokens"] = f"{candidate.cost.per_million_output_tokens:.2f}"
    rejected = candidate.rejected.words if candidate.rejected else candidate.waits
    return CandidateStatus(
        allocations=(decided(question, candidate.layout.allocation(max(candidate.groups, 1))),),
        chosen=chosen,
        rejected=None if chosen and not candidate.rejected else rejected or None,
        **figures,
    )


def predicted(candidate: Candidate, evaluation: Evaluation) -> Figures:
    """Latency of a group at its share and tokens of all groups, at the planned traffic."""
    assert candidate.latency is not None
    low, high = evaluation.throughput_band(candidate.layout)
    most, wanted = candidate.sustainable_tokens_per_second, candidate.output_tokens_per_second
    return Figures(
        ttft_p95=show_time(candidate.latency.ttft_p95),
        tpot_p95=show_time(candidate.latency.tpot_p95),
        output_tokens_per_second=Range(
            low=f"{min(wanted, low * most):.0f}", mid=f"{min(wanted, most):.0f}", high=f"{min(wanted, high * most):.0f}"
        ),
    )


def placement_status(
    question: Question, candidate: Candidate, allocation: Allocation, evaluation: Evaluation, reason: str
) -> PlacementStatus:
    """`status.placement` with the candidate's figures, but for the time of the decision."""
    sized = candidate.latency is not None and candidate.groups > 0
    cost = candidate.cost
    per_million = cost.per_million_output_tokens if cost else None
    return PlacementStatus(
        allocations=(decided(question, allocation),),
        predicted=predicted(candidate, evaluation) if sized else None,
        limited_by=limiting_term(question, candidate, evaluation) if sized else None,
        cost_per_hour=f"{cost.per_hour:.2f}" if cost else None,
        cost_per_million_output_tokens=f"{per_million:.2f}" if per_million is not None else None,
        groups_for_traffic=candidate.groups_for_traffic,
        spec_hash=spec_hash(question.spec),
        reason=reason,
    )


def availability_status(question: Question, candidate: Candidate) -> AvailabilityStatus:
    """`status.availability` of the candidate."""
    target = question.spec.objectives.availability
    after = candidate.load_after_group_loss
    return AvailabilityStatus(
        predicted=show_availability(candidate),
        target=str(target) if target is not None else None,
        limited_by=candidate.availability.limited_by if candidate.availability else None,
        load_after_group_loss=f"{after:.2f}" if after < math.inf else None,
    )


def decided(question: Question, allocation: Allocation) -> DecidedAllocation:
    """The allocation with what follows from its variant."""
    variant = next(variant for variant in question.variants if variant.name == allocation.variant)
    return DecidedAllocation(
        **dict(allocation), precision=variant.precision, kv_precision=variant.effective_kv_precision
    )


def show_availability(candidate: Candidate) -> str | None:
    """As many nines as there are, and one digit more; never rounded up to a target it misses."""
    if candidate.availability is None:
        return None
    down = candidate.availability.unavailability
    digits = 5 if down <= 0 else min(max(5, math.ceil(-math.log10(down)) + 1), 9)
    return f"{math.floor((1 - down) * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def show_time(seconds: float) -> str | None:
    """Absent where it grows without bound, and where there is none: a single token has no time per further one."""
    return format_duration(seconds) if 0 < seconds < math.inf else None
