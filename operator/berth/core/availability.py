"""The probability that enough replica groups serve: exact k-of-n over failure domains, common cause, time windows.

Everything is computed as *un*availability (1 - availability) and as sums of positive terms: 1e-9 next to 1 would
drown in rounding. Seconds everywhere; a rate is failures per second. Independence is assumed only where it is said:
groups fail on their own, with the domains above them, and a share `common_cause` of their failures stops all of them
at once (a bad image, a bad setting, the network): below about 1e-6 that share rules and nothing else is credible.

Formulas: textbook reliability theory (Barlow and Proschan, *Mathematical Theory of Reliability*): steady state
MTTF / (MTTF + MTTR), k-of-n by convolution, the birth-death chain of spares, the beta-factor model of common cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

OWN_FAILURES: Final = "group failures"
COMMON_CAUSE: Final = "common cause"
DETECTION: Final = "detection time"

_NEGLIGIBLE: Final = 1e-40
_EXACT_SHARED_DOMAINS: Final = 10
_SHARED_FAILURES_AT_ONCE: Final = 3


@dataclass(frozen=True)
class Domain:
    """A place that fails as one: node < rack < zone < pool. `parent` is the name of the domain around it."""

    name: str
    level: str
    unavailability: float
    parent: str | None = None


@dataclass(frozen=True)
class Group:
    """One replica group: its own failures (not those of its domains) and the time until it serves again.

    `domains` are the innermost domains it stands in: one node, or the nodes of all members; empty = unknown.
    """

    failures_per_second: float
    recovery_seconds: float
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Availability:
    """`value` in 0..1, the term that binds it, and what each term takes away (they add up only roughly)."""

    value: float
    unavailability: float
    """1 - value without rounding: 1e-12 stays 1e-12."""
    limited_by: str
    terms: Mapping[str, float]


# --- one component ----------------------------------------------------------------------------------------------------
def unavailability(mttf_seconds: float, mttr_seconds: float) -> float:
    """Share of time down in the long run: MTTR / (MTTF + MTTR)."""
    return mttr_seconds / (mttf_seconds + mttr_seconds)


def unavailability_at(seconds: float, failures_per_second: float, recovery_seconds: float) -> float:
    """Probability to be down `seconds` after a moment when it was up: what to expect now, not in the long run."""
    recoveries_per_second = 1 / recovery_seconds
    both = failures_per_second + recoveries_per_second
    return failures_per_second / both * -math.expm1(-both * seconds)


def detection_loss(failures_per_second: float, detect_seconds: float) -> float:
    """Share of requests sent to groups that are dead but not yet known to be.

    A lost group takes 1/n of the requests and n groups fail n times as often: the number of groups cancels.
    """
    return failures_per_second * detect_seconds


# --- many components --------------------------------------------------------------------------------------------------
def up_distribution(unavailabilities: Iterable[float]) -> list[float]:
    """P[j] = probability that exactly j of the independent components are up."""
    up = [1.0]
    for down in unavailabilities:
        up = convolve(up, [down, 1 - down])
    return up


def convolve(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Distribution of the sum of two independent counts."""
    both = [0.0] * (len(a) + len(b) - 1)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            both[i + j] += p * q
    return both


def fewer_than(needed: int, up: Sequence[float]) -> float:
    """Probability that fewer than `needed` are up."""
    return min(1.0, math.fsum(up[:needed])) if needed > 0 else 0.0


def all_down_together(up: Sequence[float], domain_unavailability: float) -> list[float]:
    """The distribution of what stands in one domain, once the domain itself may fail."""
    inside = [p * (1 - domain_unavailability) for p in up]
    inside[0] += domain_unavailability
    return inside


def spares_chain(needed: int, spares: int, failures_per_second: float, repair_seconds: float) -> list[float]:
    """pi[b] = long-run probability that b units are broken; `needed` run, up to `spares` wait, each is repaired alone.

    Birth-death chain: units fail at min(needed, needed + spares - b) * rate, repairs finish at b / repair_seconds.
    Ends early where the rest is negligible.
    """
    load = failures_per_second * repair_seconds
    weights = [1.0]
    for broken in range(needed + spares):
        running = min(needed, needed + spares - broken)
        weights.append(weights[-1] * running * load / (broken + 1))
        if weights[-1] < _NEGLIGIBLE:
            break  # weights fall from here on: of thousands of spares so many are never broken at once
    total = math.fsum(weights)
    return [w / total for w in weights]


def no_spare_at_failure(needed: int, spares: int, failures_per_second: float, repair_seconds: float) -> float:
    """Share of failures that find no working spare, so that service waits for a repair."""
    chain = spares_chain(needed, spares, failures_per_second, repair_seconds)
    rate = [p * min(needed, needed + spares - broken) for broken, p in enumerate(chain)]
    return math.fsum(rate[spares:]) / math.fsum(rate)


# --- groups in domains ------------------------------------------------------------------------------------------------
def availability(
    groups: Sequence[Group],
    needed: int,
    domains: Iterable[Domain] = (),
    *,
    common_cause: float = 0.0,
    detect_seconds: float = 0.0,
    at_seconds: float | None = None,
) -> Availability:
    """Probability that at least `needed` groups serve, and which term binds it.

    `common_cause` is the share of the groups' own failures that stop all groups; `detect_seconds` counts requests lost
    while the remaining groups suffice (otherwise the outage is counted already); `at_seconds` asks for the probability
    that long after everything was up instead of the long run (domains then count in full).

    Raises ValueError for an unknown domain, a loop of parents, or shares outside 0..1.
    """
    tree = {domain.name: domain for domain in domains}
    _check(groups, needed, tree, common_cause)
    independent = [replace(g, failures_per_second=g.failures_per_second * (1 - common_cause)) for g in groups]
    shared_rate = common_cause * max((g.failures_per_second for g in groups), default=0.0)
    shared_recovery = max((g.recovery_seconds for g in groups), default=0.0)

    def down(group: Group) -> float:
        if at_seconds is not None and group.recovery_seconds > 0:
            return unavailability_at(at_seconds, group.failures_per_second, group.recovery_seconds)
        return _long_run(group.failures_per_second, group.recovery_seconds)

    own = [down(g) for g in independent]
    cause = down(Group(shared_rate, shared_recovery)) if needed > 0 else 0.0
    spare = len(groups) > needed > 0
    lost = detection_loss(max((g.failures_per_second for g in groups), default=0.0), detect_seconds) if spare else 0.0

    def total(own: Sequence[float], tree: Mapping[str, Domain], cause: float, lost: float) -> float:
        structure = fewer_than(needed, _tree_distribution(groups, own, tree))
        return min(1.0, structure + (1 - structure) * cause + lost)

    everything = total(own, tree, cause, lost)
    without = {
        OWN_FAILURES: total([0.0] * len(own), tree, cause, lost),
        COMMON_CAUSE: total(own, tree, 0.0, lost),
        DETECTION: total(own, tree, cause, 0.0),
    }
    for level in dict.fromkeys(domain.level for domain in tree.values()):
        ideal = {name: replace(d, unavailability=0.0) if d.level == level else d for name, d in tree.items()}
        without[f"loss of a {level}"] = total(own, ideal, cause, lost)
    terms = {term: max(0.0, everything - rest) for term, rest in without.items()}
    limited_by = max(terms, key=lambda term: terms[term])
    if len(groups) < needed:
        limited_by = f"{len(groups)} groups, {needed} needed"
    return Availability(1 - everything, everything, limited_by, terms)


def _long_run(failures_per_second: float, recovery_seconds: float) -> float:
    down = failures_per_second * recovery_seconds
    return 1.0 if math.isinf(down) else down / (1 + down)


def _check(groups: Sequence[Group], needed: int, tree: Mapping[str, Domain], common_cause: float) -> None:
    if needed < 0:
        raise ValueError(f"needed must not be below 0, got {needed}")
    if not 0 <= common_cause <= 1:
        raise ValueError(f"common_cause must be within 0..1, got {common_cause}")
    for group in groups:
        if not (group.failures_per_second >= 0 and group.recovery_seconds >= 0):
            raise ValueError(f"failure rate and recovery time must not be negative: {group}")
        for name in group.domains:
            if name not in tree:
                raise ValueError(f"unknown failure domain {name!r}")
    for domain in tree.values():
        if not 0 <= domain.unavailability <= 1:
            raise ValueError(f"unavailability of domain {domain.name!r} must be within 0..1: {domain.unavailability}")
        _ancestors(domain.name, tree)


def _ancestors(name: str, tree: Mapping[str, Domain]) -> list[str]:
    """The domain and those around it, innermost first."""
    chain: list[str] = []
    current: str | None = name
    while current is not None:
        if current in chain or current not in tree:
            raise ValueError(f"failure domain {name!r} has a loop or an unknown parent at {current!r}")
        chain.append(current)
        current = tree[current].parent
    return chain


def _tree_distribution(groups: Sequence[Group], own: Sequence[float], tree: Mapping[str, Domain]) -> list[float]:
    """P[j] = probability that exactly j groups are up, with every domain failing as one.

    A group over several domains hangs on their lowest common ancestor; branches below that only it uses are part of
    its own unavailability (exact), branches shared with other groups are conditioned on: every joint state up to
    `_EXACT_SHARED_DOMAINS` of them, beyond that up to `_SHARED_FAILURES_AT_ONCE` failed ones and the rest counted as
    total loss (pessimistic, by the chance of four domains down at once).
    """
    anchors: list[str | None] = []
    branches: list[tuple[str, ...]] = []
    users: dict[str, int] = {}
    for group in groups:
        chains = [_ancestors(name, tree) for name in group.domains]
        common = [name for name in chains[0] if all(name in chain for chain in chains)] if chains else []
        anchors.append(common[0] if common else None)
        below = tuple(dict.fromkeys(name for chain in chains for name in chain if name not in common))
        branches.append(below)
        for name in {name for chain in chains for name in chain}:
            users[name] = users.get(name, 0) + 1
    shared = sorted({name for below in branches for name in below if users[name] > 1})
    if not shared:
        return _chained_distribution(own, anchors, branches, tree, frozenset())

    at_once = len(shared) if len(shared) <= _EXACT_SHARED_DOMAINS else _SHARED_FAILURES_AT_ONCE
    mixed = [0.0] * (len(groups) + 1)
    certain = replace_unavailability(tree, shared, 0.0)
    covered = 0.0
    for count in range(at_once + 1):
        for failed in combinations(shared, count):
            weight = math.prod(
                tree[name].unavailability if name in failed else 1 - tree[name].unavailability for name in shared
            )
            covered += weight
            state = _chained_distribution(own, anchors, branches, certain, frozenset(failed))
            for j, p in enumerate(state):
                mixed[j] += weight * p
    mixed[0] += max(0.0, 1 - covered) if at_once < len(shared) else 0.0
    return mixed


def replace_unavailability(tree: Mapping[str, Domain], names: Iterable[str], value: float) -> dict[str, Domain]:
    """The same tree with other unavailabilities for these domains."""
    changed = {name: replace(tree[name], unavailability=value) for name in names}
    return {**tree, **changed}


def _chained_distribution(
    own: Sequence[float],
    anchors: Sequence[str | None],
    branches: Sequence[tuple[str, ...]],
    tree: Mapping[str, Domain],
    failed: frozenset[str],
) -> list[float]:
    """The distribution when each group hangs on one domain, given that the `failed` domains are down for certain."""
    here: dict[str | None, list[float]] = {}
    for down, anchor, below in zip(own, anchors, branches, strict=True):
        up = (1 - down) * math.prod(0.0 if n in failed else 1 - tree[n].unavailability for n in below)
        # 1 - up without cancellation: the chance that the first of the parts in series is the one that is down.
        parts = [down, *(1.0 if n in failed else tree[n].unavailability for n in below)]
        series = 0.0
        for part in parts:
            series += (1 - series) * part
        here[anchor] = convolve(here.get(anchor, [1.0]), [series, up])
    depth = {name: len(_ancestors(name, tree)) for name in tree}
    for name in sorted(tree, key=lambda n: (-depth[n], n)):
        if name not in here:
            continue
        domain = tree[name]
        inside = all_down_together(here.pop(name), 1.0 if name in failed else domain.unavailability)
        here[domain.parent] = convolve(here.get(domain.parent, [1.0]), inside)
    return here.get(None, [1.0])


# --- decisions --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GroupCount:
    """How many groups reach the target; None when no allowed number does, then `best` is the closest and says why."""

    groups: int | None
    best_groups: int
    best: Availability


def groups_for(target: float, needed: int, most: int, predict: Callable[[int], Availability]) -> GroupCount:
    """The smallest number of groups in needed..most whose predicted availability reaches `target`.

    `predict(n)` is asked in order, so it may place groups one after the other. Raises ValueError if most < needed.
    """
    if most < needed:
        raise ValueError(f"at most {most} groups are allowed, {needed} are needed")
    best: tuple[int, Availability] | None = None
    for count in range(max(1, needed), max(1, most) + 1):
        predicted = predict(count)
        if predicted.unavailability <= 1 - target:
            return GroupCount(count, count, predicted)
        if best is None or predicted.unavailability < best[1].unavailability:
            best = count, predicted
    assert best is not None
    return GroupCount(None, best[0], best[1])


def load_after_group_loss(load: float, groups: int) -> float:
    """Load of the remaining groups (1 = their capacity) after losing one of equal groups; infinite if none remain."""
    return load * groups / (groups - 1) if groups > 1 else math.inf


@dataclass(frozen=True)
class WorstLoss:
    """The domain of a level whose loss leaves the fewest groups."""

    domain: str
    groups_left: int


def worst_loss(groups: Sequence[Group], domains: Iterable[Domain]) -> dict[str, WorstLoss]:
    """For each level (node, zone, ...): the loss of which domain leaves the fewest groups, and how many are left."""
    tree = {domain.name: domain for domain in domains}
    standing = [{above for name in group.domains for above in _ancestors(name, tree)} for group in groups]
    worst: dict[str, WorstLoss] = {}
    for name in sorted(tree):
        left = sum(name not in around for around in standing)
        level = tree[name].level
        if level not in worst or left < worst[level].groups_left:
            worst[level] = WorstLoss(name, left)
    return worst
