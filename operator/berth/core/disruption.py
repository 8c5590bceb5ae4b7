"""Nodes that are about to go, and which groups that concerns: cordons, deletions, notices of autoscalers and clouds.

A node that says nothing is not leaving: a node that is unknown here (deleted, not listed yet) displaces nobody, its
silence is the business of failure detection. What follows from a displaced group is decided in `berth.core.rollout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from berth.core.nodes import NodeView, matches
from berth.core.observed import Group

NOTICE_TAINTS: Final = (
    # Cluster Autoscaler and Karpenter (v1 and before) take the node away.
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    # AWS node termination handler.
    "aws-node-termination-handler/spot-itn",
    "aws-node-termination-handler/scheduled-maintenance",
    "aws-node-termination-handler/asg-lifecycle-termination",
    "aws-node-termination-handler/rebalance-recommendation",
    # Google Cloud: preemption, or maintenance of a machine with GPUs.
    "cloud.google.com/impending-node-termination",
    # Azure: node auto-drain of AKS.
    "remediator.kubernetes.azure.com/unschedulable",
    # The cloud provider says that the machine is off; the node maintenance operator drains.
    "node.cloudprovider.kubernetes.io/shutdown",
    "medik8s.io/drain",
)
"""Taint keys that announce a node's end; sources in docs/designs/016-disruptions.md."""
NOTICE_CONDITIONS: Final = (
    # Azure: AKS' node problem detector, and the termination plug-in for it.
    "PreemptScheduled",
    "TerminateScheduled",
    "RedeployScheduled",
    "RebootScheduled",
    "NodeTermination",
)
"""Node conditions that announce a node's end when True. VMEventScheduled is none: it is True for short freezes, too."""


@dataclass(frozen=True)
class Notices:
    """What counts as the announcement of a node's end, whatever the effect of the taint."""

    taints: frozenset[str] = frozenset(NOTICE_TAINTS)
    conditions: frozenset[str] = frozenset(NOTICE_CONDITIONS)

    def of(self, node: NodeView) -> str:
        """The announcement in words, as in `has taint karpenter.sh/disrupted:NoSchedule`; empty if there is none."""
        for taint in node.taints:
            if taint.key in self.taints:
                return f"has taint {taint}"
        told = sorted(kind for kind, status in node.conditions.items() if status == "True" and kind in self.conditions)
        return f"has condition {told[0]}" if told else ""

    def why_leaving(self, node: NodeView) -> str:
        """Why pods should leave this node before it goes, in words; empty while it stays."""
        if node.deleting:
            return "is being deleted"
        return "is cordoned" if node.unschedulable else self.of(node)


NOTICES: Final = Notices()
"""What this release knows of."""


def displaced(groups: Iterable[Group], nodes: Mapping[str, NodeView], notices: Notices) -> dict[str, str]:
    """By name of the ReplicaGroup: why it cannot stay where it is, as in `h100-3 is cordoned`. It goes as a whole."""
    found = {}
    for group in groups:
        told = (
            f"{name} {why}" for name in nodes_of(group) if name in nodes and (why := notices.why_leaving(nodes[name]))
        )
        if first := next(told, ""):
            found[group.name] = first
    return found


def nodes_of(group: Group) -> tuple[str, ...]:
    """Where its members stand; for those that are not bound yet, where they are planned."""
    planned = dict(enumerate(group.planned_nodes))
    bound = {member.index: member.node for member in group.members if member.node}
    return tuple(dict.fromkeys({**planned, **bound}.values()))


def overlapping_budgets(budgets: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Names of the PodDisruptionBudgets (raw) that select one of the pods with these labels."""
    every = list(pods)
    return tuple(
        sorted(
            str(budget["metadata"]["name"])
            for budget in budgets
            if any(_selects((budget.get("spec") or {}).get("selector"), pod) for pod in every)
        )
    )


def _selects(selector: Mapping[str, Any] | None, pod: Mapping[str, str]) -> bool:
    """As policy/v1 reads it: an empty selector selects everything, none selects nothing."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    return all(pod.get(key) == value for key, value in wanted.items()) and all(
        matches(pod, expression) for expression in selector.get("matchExpressions") or ()
    )
