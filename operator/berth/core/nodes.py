"""What the planner knows of a node, read from the raw Kubernetes object, and what may stand on it.

Nothing here knows pods: free capacity is the business of `berth.core.capacity`. A node that does not say Ready is not
ready, a resource that it does not report is zero: silence never adds capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from berth.core import quantities

_BLOCKING_EFFECTS: Final = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Taint:
    """A taint that keeps pods away (`effect` NoSchedule, PreferNoSchedule or NoExecute)."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True)
class Toleration:
    """A pod's toleration; empty `key` with `operator` Exists tolerates everything, empty `effect` every effect."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    @classmethod
    def from_manifest(cls, raw: Mapping[str, Any]) -> Toleration:
        """From one entry of a pod's `tolerations`."""
        return cls(
            key=raw.get("key") or "",
            operator=raw.get("operator") or "Equal",
            value=raw.get("value") or "",
            effect=raw.get("effect") or "",
        )

    def covers(self, taint: Taint) -> bool:
        """True when a pod with this toleration may stand on a node with the taint."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.operator == "Exists":
            return self.key in ("", taint.key)
        return self.key == taint.key and self.value == taint.value


@dataclass(frozen=True)
class NodeView:
    """One node as the planner sees it. Allocatable amounts; `gpu_capacity` only tells how many GPUs are sick."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    ready: bool = True
    deleting: bool = False
    gpu_capacity: int = 0
    gpu_allocatable: int = 0
    cpu_millicores: int = 0
    memory_bytes: int = 0
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Condition type -> status (True, False, Unknown)."""
    condition_reasons: Mapping[str, str] = field(default_factory=dict)
    """Condition type -> reason, where there is one."""

    @property
    def unhealthy_gpus(self) -> int:
        """GPUs that the device plugin has withdrawn."""
        return max(0, self.gpu_capacity - self.gpu_allocatable)

    def domain(self, topology_key: str) -> str:
        """The failure domain of this node; nodes without the label share one, which is the careful guess."""
        return self.labels.get(topology_key, "")


def node_view(node: Mapping[str, Any], resource_name: str) -> NodeView:
    """Read a raw Kubernetes Node.

    Raises ValueError naming the node and the resource when a quantity cannot be read.
    """
    metadata, spec, status = (_mapping(node.get(part)) for part in ("metadata", "spec", "status"))
    name = str(metadata.get("name") or "")
    capacity, allocatable = _mapping(status.get("capacity")), _mapping(status.get("allocatable"))
    conditions = {str(c.get("type")): str(c.get("status")) for c in _mappings(status.get("conditions"))}

    def amount(amounts: Mapping[str, Any], resource: str, unit: str = "") -> int:
        try:
            return (
                quantities.millicores(amounts.get(resource, 0))
                if unit == "m"
                else quantities.ceil_units(amounts.get(resource, 0))
            )
        except ValueError as error:
            raise ValueError(f"node {name}, resource {resource}: {error}") from None

    return NodeView(
        name=name,
        labels={str(key): str(value) for key, value in _mapping(metadata.get("labels")).items()},
        taints=tuple(
            Taint(str(t.get("key") or ""), str(t.get("value") or ""), str(t.get("effect") or ""))
            for t in _mappings(spec.get("taints"))
        ),
        unschedulable=bool(spec.get("unschedulable")),
        ready=conditions.get("Ready") == "True",
        deleting=bool(metadata.get("deletionTimestamp")),
        gpu_capacity=amount(capacity, resource_name),
        gpu_allocatable=amount(allocatable, resource_name),
        cpu_millicores=amount(allocatable, "cpu", "m"),
        memory_bytes=amount(allocatable, "memory"),
        conditions=conditions,
        condition_reasons={
            str(c.get("type")): str(c.get("reason")) for c in _mappings(status.get("conditions")) if c.get("reason")
        },
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """What should be an object; anything else, as in a file somebody edited, says nothing."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def held_back(node: NodeView, tolerations: Sequence[Toleration]) -> str | None:
    """Why this node takes no new pods, in words; None when it does.

    A toleration never opens a node that is not ready or cordoned: pods tolerate those taints to survive a partition
    where they are, not to be started there.
    """
    if node.deleting:
        return "is being deleted"
    if not node.ready:
        return "is not ready"
    if node.unschedulable:
        return "is cordoned"
    return untolerated(node, tolerations)


def untolerated(node: NodeView, tolerations: Sequence[Toleration]) -> str | None:
    """Which taint keeps pods away from this node even when nothing is wrong with it; None when none does."""
    for taint in node.taints:
        if taint.effect in _BLOCKING_EFFECTS and not any(t.covers(taint) for t in tolerations):
            return f"has taint {taint}"
    return None


def has_labels(node: NodeView, selector: Mapping[str, str]) -> bool:
    """True when the node carries every label with exactly this value."""
    return not selector or all(node.labels.get(key) == value for key, value in selector.items())


def matches_terms(node: NodeView, terms: Iterable[Mapping[str, Any]]) -> bool:
    """Kubernetes `nodeSelectorTerms` (any term, all of its expressions), as in the node affinity of a volume."""
    return any(_matches_term(node, term) for term in terms)


def _matches_term(node: NodeView, term: Mapping[str, Any]) -> bool:
    expressions = term.get("matchExpressions") or ()
    fields = term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    return all(matches(node.labels, e) for e in expressions) and all(
        matches({"metadata.name": node.name}, f) for f in fields
    )


def matches(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    """One expression of a node or label selector against these labels; an operator nobody knows matches nothing."""
    label = labels.get(str(expression.get("key")))
    values = [str(v) for v in expression.get("values") or ()]
    match expression.get("operator"):
        case "In":
            return label in values
        case "NotIn":
            return label not in values
        case "Exists":
            return label is not None
        case "DoesNotExist":
            return label is None
        case "Gt" | "Lt" as operator:
            if label is None or len(values) != 1 or not _is_integer(label) or not _is_integer(values[0]):
                return False
            return int(label) > int(values[0]) if operator == "Gt" else int(label) < int(values[0])
        case _:
            return False


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii()
