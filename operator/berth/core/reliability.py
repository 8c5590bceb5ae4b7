"""From a pool and a layout to the availability of a deployment: failure rates, recovery times, spare capacity.

`berth.core.availability` has the mathematics; here are the figures it is fed with and where they come from. Rates start
from the pool's `nodeMTBFDays`, the mean time between failures of *everything* a job on one whole node depends on, which
is split over GPUs, software and the rest of the node. Figures without a public source are marked as assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from berth.core.availability import (
    OWN_FAILURES,
    Availability,
    Domain,
    Group,
    WorstLoss,
    availability,
    no_spare_at_failure,
    unavailability,
    worst_loss,
)

DAY: Final = 86400.0
NODE_MTBF_DAYS: Final = 47.0
"""8-GPU jobs on Meta's research clusters: one failure in 47 days (arXiv 2410.21680). Pessimistic for serving: the nodes
of the Llama 3 405B training ran 264 days (419 stops of 2,048 nodes in 54 days, arXiv 2407.21783)."""
GPU_SHARE: Final = 268 / 419
"""Stops by GPU, NVLink, memory, GSP, silent corruption, heat among the 419 of the Llama 3 training (table 5)."""
SOFTWARE_SHARE: Final = 61 / 419
"""Stops by software and NCCL in the same table; a group brings its own, however few GPUs it has."""
NODE_LEVEL: Final = "node"
REPAIR_TIME: Final = "node repair time"


@dataclass(frozen=True)
class FailureModel:
    """How often things fail in a pool, and how long each step of recovery takes."""

    node_mtbf_days: float = NODE_MTBF_DAYS
    gpus_per_node: int = 8
    domain_level: str = "zone"
    domain_unavailability: float = 1e-4
    """Assumption: 53 minutes a year; providers promise regions, not zones."""
    common_cause: float = 0.01
    """Assumption: 1 % of the groups' own failures stop all of them (an image, a setting, the network)."""
    detect_seconds: float = 10.0
    place_seconds: float = 5.0
    load_seconds: float = 180.0
    """Start and loading of weights until the first token."""
    repair_seconds: float = DAY
    """Until a broken node is back, for groups that find no spare capacity; an assumption."""

    @property
    def failover_seconds(self) -> float:
        """From fault to serving again elsewhere."""
        return self.detect_seconds + self.place_seconds + self.load_seconds


def predict(
    layout: Sequence[Sequence[str]],
    needed: int,
    gpus_per_member: int,
    rates: FailureModel,
    *,
    domain_of: Mapping[str, str] | None = None,
    spares: int = 0,
    at_seconds: float | None = None,
) -> Availability:
    """Availability of groups that stand on the nodes `layout[i]` (one per member, the same number for all).

    `domain_of`: node -> failure domain; nodes that are missing have none. `spares`: how many more groups fit into the
    pool; with none, a broken node is waited for. Software restarts where it is and needs no spare. `at_seconds`: the
    chance that long after all was well, instead of in the long run.
    """
    members = max((len(nodes) for nodes in layout), default=1)
    failures = _rates(rates, members, gpus_per_member)
    hardware_rate = failures.gpus + members * failures.host
    waiting = no_spare_at_failure(max(1, len(layout)), spares, hardware_rate, rates.repair_seconds)
    domain_of = domain_of or {}
    nodes, domains = _Numbers(), _Numbers()
    standing = tuple(tuple(nodes.of(node) for node in group) for group in layout)
    around = tuple((nodes.of(node), domains.of(domain_of[node])) for node in list(nodes) if node in domain_of)
    return _predict(standing, around, needed, gpus_per_member, rates, waiting, at_seconds)


@dataclass(frozen=True)
class _Rates:
    """Failures per second: of a group's GPUs, of its software, of one of its nodes."""

    gpus: float
    software: float
    host: float


def _rates(rates: FailureModel, members: int, gpus_per_member: int) -> _Rates:
    node_rate = 1 / (rates.node_mtbf_days * DAY)
    return _Rates(
        gpus=node_rate * GPU_SHARE * members * gpus_per_member / rates.gpus_per_node,
        software=node_rate * SOFTWARE_SHARE,
        host=node_rate * (1 - GPU_SHARE - SOFTWARE_SHARE),
    )


class _Numbers(dict[str, str]):
    """Short names in order of appearance: what is called differently and stands alike is computed once."""

    def of(self, name: str) -> str:
        return self.setdefault(name, f"{len(self):06}")


@lru_cache(maxsize=4096)
def _predict(
    layout: tuple[tuple[str, ...], ...],
    around: tuple[tuple[str, str], ...],
    needed: int,
    gpus_per_member: int,
    rates: FailureModel,
    waiting: float,
    at_seconds: float | None,
) -> Availability:
    """`around`: (node, its domain). `waiting`: share of hardware failures that find no spare."""
    members = max((len(nodes) for nodes in layout), default=1)
    failures = _rates(rates, members, gpus_per_member)
    hardware_rate = failures.gpus + members * failures.host
    waited_seconds = waiting * rates.repair_seconds
    failover = rates.failover_seconds
    own_rate = failures.gpus + failures.software
    own_recovery = failover + waited_seconds * failures.gpus / own_rate

    host_down = unavailability(1 / failures.host, failover + waited_seconds)
    domains = _domains(layout, dict(around), rates.domain_level, host_down, rates.domain_unavailability)
    predicted = availability(
        [Group(own_rate, own_recovery, _standing(nodes)) for nodes in layout],
        needed,
        domains,
        common_cause=rates.common_cause,
        detect_seconds=rates.detect_seconds,
        at_seconds=at_seconds,
    )
    by_hardware = predicted.limited_by in (OWN_FAILURES, f"loss of a {NODE_LEVEL}")
    if by_hardware and waited_seconds * hardware_rate > failover * (hardware_rate + failures.software):
        return Availability(predicted.value, predicted.unavailability, REPAIR_TIME, predicted.terms)
    return predicted


def worst_losses(
    layout: Sequence[Sequence[str]], domain_of: Mapping[str, str], domain_level: str = "zone"
) -> dict[str, WorstLoss]:
    """For `node` and `domain_level`: the one whose loss leaves the fewest groups of the layout, and how many."""
    groups = [Group(0.0, 0.0, _standing(nodes)) for nodes in layout]
    losses = worst_loss(groups, _domains(layout, domain_of, domain_level, 0.0, 0.0))
    return {level: WorstLoss(loss.domain.partition("/")[2], loss.groups_left) for level, loss in losses.items()}


def _domains(
    layout: Sequence[Sequence[str]],
    domain_of: Mapping[str, str],
    domain_level: str,
    host_down: float,
    domain_down: float,
) -> list[Domain]:
    """The tree of the nodes in the layout. Levels are part of the names: a node and a zone may be called the same."""
    nodes = sorted({node for group in layout for node in group})
    outer = sorted({domain_of[node] for node in nodes if node in domain_of})
    return [Domain(f"domain/{name}", domain_level, domain_down) for name in outer] + [
        Domain(f"node/{node}", NODE_LEVEL, host_down, f"domain/{domain_of[node]}" if node in domain_of else None)
        for node in nodes
    ]


def _standing(nodes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"node/{node}" for node in nodes)


# --- measured failure rates -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MTBFBand:
    """Days between failures of a node: 5 %, mean rate and 95 % of what the evidence allows."""

    low_days: float
    days: float
    high_days: float


def mtbf_band(
    failures: int, node_days: float, prior_days: float = NODE_MTBF_DAYS, prior_failures: float = 1.0
) -> MTBFBand:
    """What `failures` in `node_days` of running nodes say, starting from a prior worth `prior_failures` failures.

    The rate has a Gamma posterior: shape prior_failures + failures, rate prior_failures * prior_days + node_days.
    """
    if failures < 0 or node_days < 0 or prior_days <= 0 or prior_failures <= 0:
        raise ValueError("failures and node_days must not be negative, the prior must be above 0")
    shape = prior_failures + failures
    exposure = prior_failures * prior_days + node_days
    return MTBFBand(
        low_days=exposure / gamma_quantile(shape, 0.95),
        days=exposure / shape,
        high_days=exposure / gamma_quantile(shape, 0.05),
    )


def gamma_quantile(shape: float, probability: float) -> float:
    """x with P(X <= x) = probability for a Gamma distribution of this shape and scale 1, by bisection."""
    low, high = 0.0, shape + 1.0
    while gamma_cdf(shape, high) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if gamma_cdf(shape, middle) < probability:
            low = middle
        else:
            high = middle
    return high


def gamma_cdf(shape: float, x: float) -> float:
    """Regularised lower incomplete gamma function, by its power series (Abramowitz and Stegun 6.5.29)."""
    if x <= 0:
        return 0.0
    term = total = 1 / shape
    n = 1
    while term > total * 1e-17:
        term *= x / (shape + n)
        total += term
        n += 1
    return min(1.0, total * math.exp(shape * math.log(x) - x - math.lgamma(shape)))
