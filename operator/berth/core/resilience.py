"""How the groups stand: what any one loss would leave of them, and what is about to be taken away. Pure."""

from __future__ import annotations

from typing import Any

from berth.core import conditions as c
from berth.core.conditions import Condition
from berth.core.disruption import nodes_of
from berth.core.observed import Group, Snapshot
from berth.core.plan import Plan
from berth.core.spread import Losses, losses

MAX_DOMAINS_LISTED = 64


def conditions(snapshot: Snapshot, plan: Plan) -> list[Condition]:
    """LossTolerated, Disrupted, ForeignPDBOverlap."""
    return [_loss_tolerated(snapshot, plan), _disrupted(snapshot, plan), _foreign_budgets(snapshot)]


def spread_status(snapshot: Snapshot, plan: Plan) -> dict[str, Any] | None:
    """`status.spread`; None while no group has a node."""
    found = _losses(snapshot)
    if found is None:
        return None
    key = snapshot.deployment.spec.replica_groups.spread.topology_key
    listed = sorted(found.domains.items(), key=lambda each: (-each[1], each[0]))[:MAX_DOMAINS_LISTED]
    status: dict[str, Any] = {"topologyKey": key, "afterNodeLoss": found.after_node}
    if found.after_domain is not None:
        status["afterDomainLoss"] = found.after_domain
        status["domains"] = [{"name": name or "(unlabelled)", "groups": groups} for name, groups in listed]
    return {**status, "message": _told(snapshot, plan, found)[1]}


def leaving(plan: Plan) -> str:
    """`g0: h100-3 is cordoned` for each group that is to be moved off its node; empty if none is."""
    moved = plan.rollout.displaced
    return "; ".join(f"g{group.group}: {plan.displaced[group.name]}" for group in moved if group.name in plan.displaced)


def _losses(snapshot: Snapshot) -> Losses | None:
    """Of the youngest living incarnation of each slot: a replacement stands for what it replaces."""
    newest: dict[int, Group] = {}
    for group in snapshot.groups:
        if group.alive and (nodes_of(group) or group.group not in newest):
            newest[group.group] = group
    key = snapshot.deployment.spec.replica_groups.spread.topology_key
    domains = {name: node.labels[key] for name, node in snapshot.nodes.items() if node.labels.get(key)}
    standing = [nodes_of(group) for group in newest.values() if nodes_of(group)]
    return losses(standing, domains)


def _told(snapshot: Snapshot, plan: Plan, found: Losses) -> tuple[str, str]:
    """(reason, words) of what the worst loss leaves."""
    needed = plan.needed
    key = snapshot.deployment.spec.replica_groups.spread.topology_key
    word = key.rpartition("/")[2]
    if found.after_node < needed:
        words = f"losing node {found.worst_node} would leave {found.after_node} of {needed} needed groups"
        return "NodeLossBreaksNeeded", words
    if found.after_domain is not None and found.after_domain < needed:
        name = found.worst_domain or "(unlabelled)"
        words = f"losing {word} {name} would leave {found.after_domain} of {needed} needed groups"
        return "DomainLossBreaksNeeded", words
    what = "node" if found.after_domain is None else f"node or {word}"
    unknown = f"; no node carries {key}" if found.after_domain is None else ""
    return "AnyLossKeepsNeeded", f"losing any {what} keeps {needed} of {needed} needed groups{unknown}"


def _loss_tolerated(snapshot: Snapshot, plan: Plan) -> Condition:
    found = _losses(snapshot)
    if found is None:
        return Condition(c.LOSS_TOLERATED, None, "NothingStands", "no group has nodes yet")
    reason, words = _told(snapshot, plan, found)
    return Condition(c.LOSS_TOLERATED, reason == "AnyLossKeepsNeeded", reason, words)


def _disrupted(snapshot: Snapshot, plan: Plan) -> Condition:
    spec = snapshot.deployment.spec
    told = "; ".join(
        f"g{group.group}: {plan.displaced[group.name]}" for group in snapshot.groups if group.name in plan.displaced
    )
    if not told:
        return Condition(c.DISRUPTED, False, "NoDisruption", "no group stands on a node that is about to go")
    if spec.disruption.on_cordon == "Ignore":
        return Condition(c.DISRUPTED, True, "DisruptionIgnored", f"{told}; disruption.onCordon is Ignore")
    if spec.pause != "None":
        return Condition(c.DISRUPTED, True, "Paused", f"{told}; nothing leaves while spec.pause is {spec.pause}")
    if plan.rollout.held:
        remedy = "add capacity, make the node schedulable again, or set disruption.whenNoCapacity: DownToNeeded"
        return Condition(c.DISRUPTED, True, "DisruptionBlocked", f"{told}; {plan.rollout.held}: {remedy}")
    return Condition(c.DISRUPTED, True, "LeavingNodes", f"{told}; replacements serve first")


def _foreign_budgets(snapshot: Snapshot) -> Condition:
    names = snapshot.foreign_budgets
    if not names:
        return Condition(c.FOREIGN_PDB_OVERLAP, False, "NoForeignPDB", "Berth's own disruption budget is the only one")
    return Condition(
        c.FOREIGN_PDB_OVERLAP,
        True,
        "PDBSelectsGroups",
        f"PodDisruptionBudget {', '.join(names)} selects pods of the groups beside Berth's own, and evicting pods with "
        "two fails: narrow its selector or delete it",
    )
