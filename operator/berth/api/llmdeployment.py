"""LLMDeployment: the one object a person writes.

Defaults are Python's, not the CRD's (but for `replicas`): a stored object without a field behaves the same, and a
later release may choose better where the field says so. What only other objects can tell (pools, claims, catalogue)
is checked elsewhere and ends in the condition Accepted.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from berth import labels
from berth.api.common import Backend, ObjectMeta, parse
from berth.api.demand import Limits, Objectives, Traffic
from berth.api.model import LanguageModel, Variant
from berth.api.placement import MAX_GROUPS, Allocation, PoolName
from berth.api.pod import Pod
from berth.api.quantities import Duration, Quantity, seconds
from berth.api.schema import CrdDefault, DnsName, Int, LabelKey, ListSet, Matches, Model, Rule, Satisfies
from berth.api.status import LLMDeploymentStatus

__all__ = [
    "Disruption",
    "Engine",
    "FixedPlacement",
    "LLMDeployment",
    "LLMDeploymentSpec",
    "LanguageModel",
    "Limits",
    "Moves",
    "MultiNode",
    "Objectives",
    "Placement",
    "Recovery",
    "ReplicaGroups",
    "Scaling",
    "Spread",
    "Traffic",
    "Update",
    "Variant",
    "parse_llmdeployment",
]

INITIAL_BACKOFF = "10s"
MAX_BACKOFF = "10m"

ImageName = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Matches(
        "[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
        "(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?",
        "must be an image reference such as registry.example/triton:26.07, without blanks: correct it",
    ),
    Satisfies(
        (
            Rule(
                "self.matches('(:[^/:@]+|@sha256:[0-9a-f]+)$') && !self.endsWith(':latest')",
                "must have a tag other than latest, or a digest, so that all groups run the same: add one",
                lambda image: re.search("(:[^/:@]+|@sha256:[0-9a-f]+)$", image) and not image.endswith(":latest"),
            ),
        )
    ),
]


# --- groups -----------------------------------------------------------------------------------------------------------
class Scaling(Model):
    """Who decides the number of groups, and between which bounds."""

    rules = (
        Rule(
            "!has(self.max) || self.max >= (has(self.min) ? self.min : 1)",
            "max must not be below min: raise max or lower min",
            lambda scaling: scaling.max is None or scaling.max >= scaling.min,
        ),
    )

    mode: Literal["Auto", "Manual"] = "Auto"
    """Auto: Berth decides. Manual: spec.replicas decides (kubectl scale, HorizontalPodAutoscaler)."""
    min: Annotated[Int, Field(ge=1, le=MAX_GROUPS)] = 1
    """Fewest groups; for mode Auto."""
    max: Annotated[Int, Field(ge=1, le=MAX_GROUPS)] | None = None
    """Most groups; for mode Auto; absent: bounded by objectives.limits and capacity only."""


class Spread(Model):
    """How groups are spread over failure domains."""

    topology_key: LabelKey = "topology.kubernetes.io/zone"
    """Node label whose values are the domains."""
    when_unsatisfiable: Literal["Prefer", "Require"] = "Prefer"
    """Prefer: spread as well as capacity allows. Require: rather wait than share a domain unevenly."""


class Recovery(Model):
    """How failed groups come back."""

    rules = (
        Rule(
            f"duration(has(self.initialBackoff) ? self.initialBackoff : '{INITIAL_BACKOFF}') <= "
            f"duration(has(self.maxBackoff) ? self.maxBackoff : '{MAX_BACKOFF}')",
            "initialBackoff must not be above maxBackoff: lower initialBackoff or raise maxBackoff",
            lambda recovery: seconds(recovery.initial_backoff) <= seconds(recovery.max_backoff),
        ),
    )

    max_failures: Annotated[Int, Field(ge=1, le=100)] = 5
    """Failures of one group within `window` after which it stays down (condition Stalled)."""
    window: Annotated[str, Duration("1m", "168h")] = "1h"
    """Time for which a failure counts."""
    initial_backoff: Annotated[str, Duration("1s", "1h")] = INITIAL_BACKOFF
    """Wait before the second replacement in a row; doubles each time. The first replacement never waits."""
    max_backoff: Annotated[str, Duration("1s", "24h")] = MAX_BACKOFF
    """Longest wait between replacements."""
    force_delete: Literal["Never", "NodeUnreachable"] = "Never"
    """NodeUnreachable: pods on a silent node are removed by force, accepting that they may still run there."""


class ReplicaGroups(Model):
    """Availability of the groups."""

    min_available: Annotated[Int, Field(ge=0, le=MAX_GROUPS)] = 1
    """Groups that must serve at any time, even if traffic needs fewer."""
    spread: Spread = Spread()
    """Failure domains."""
    recovery: Recovery = Recovery()
    """Failures and back-off."""
    drain_timeout: Annotated[str, Duration("1s", "24h")] | None = None
    """Time for requests in flight to finish before a group ends; absent: from the largest requested output and
    the time per token."""


# --- placement --------------------------------------------------------------------------------------------------------
class FixedPlacement(Model):
    """A placement decided by the user."""

    allocations: Annotated[tuple[Allocation, ...], Field(min_length=1, max_length=1)]
    """What runs where; exactly one for now."""


class Moves(Model):
    """When a running deployment may change its placement."""

    mode: Literal["Auto", "Advise", "Off"] = "Auto"
    """Auto: move. Advise: only say so in status. Off: neither."""
    minimum_gain: Annotated[int | str, Quantity("0.01", "1")] = "0.15"
    """Expected share of the cost that a move must save."""
    pay_back_within: Annotated[str, Duration("10m", "720h")] = "6h"
    """Time within which the saving must have paid for the move."""
    cooldown: Annotated[str, Duration("1m", "720h")] = "6h"
    """Least time between moves; moves for cost wait three times the expected pay-back, if longer."""
    max_per_day: Annotated[Int, Field(ge=1, le=48)] = 4
    """Most moves in 24 hours."""


class Placement(Model):
    """Who decides the placement, and among which pools."""

    rules = (
        Rule(
            "(has(self.mode) && self.mode == 'Fixed') == has(self.fixed)",
            "mode Fixed needs fixed, mode Auto forbids it: add fixed.allocations with mode Fixed, or remove fixed",
            lambda placement: (placement.mode == "Fixed") == (placement.fixed is not None),
        ),
        Rule(
            "!has(self.fixed) || !has(self.pools) || size(self.pools) == 0 || "
            "self.fixed.allocations.all(allocation, allocation.pool in self.pools)",
            "fixed.allocations must use the pools listed in pools: add the pool or remove pools",
            lambda placement: (
                not placement.fixed
                or not placement.pools
                or all(allocation.pool in placement.pools for allocation in placement.fixed.allocations)
            ),
        ),
    )

    mode: Literal["Auto", "Fixed"] = "Auto"
    """Auto: Berth decides. Fixed: `fixed` decides."""
    fixed: FixedPlacement | None = None
    """The placement, for mode Fixed."""
    pools: Annotated[tuple[PoolName, ...], Field(max_length=64), ListSet()] = ()
    """GPUPools to choose from; empty: all that allow this namespace."""
    moves: Moves = Moves()
    """Changing the placement later."""


# --- changes ----------------------------------------------------------------------------------------------------------
class Update(Model):
    """How changes of the spec and moves are rolled out."""

    rules = (
        Rule(
            "!has(self.surge) || self.surge != 'Never' || (has(self.maxUnavailable) && self.maxUnavailable > 0)",
            "surge Never with maxUnavailable 0 leaves no way to update: set maxUnavailable to 1 or more, "
            "or surge: WhenCapacity",
            lambda update: update.surge != "Never" or update.max_unavailable > 0,
        ),
    )

    surge: Literal["WhenCapacity", "Never"] = "WhenCapacity"
    """WhenCapacity: start the new group before the old one ends, if GPUs are free. Never: replace in place."""
    max_unavailable: Annotated[Int, Field(ge=0, le=MAX_GROUPS)] = 0
    """Groups that may be down because of an update; never below what is needed."""
    deadline: Annotated[str, Duration("1m", "24h")] = "20m"
    """Time for a step to find capacity and serve before it is given up and said."""


class Disruption(Model):
    """What happens when nodes are cordoned or drained."""

    on_cordon: Literal["Migrate", "Ignore"] = "Migrate"
    """Migrate: start a replacement elsewhere, then drain the group. Ignore: stay until the node is gone."""
    when_no_capacity: Literal["Block", "DownToNeeded"] = "Block"
    """Block: stay until there is room. DownToNeeded: leave at once while enough others serve."""


class MultiNode(Model):
    """Groups of several pods."""

    rules = (
        Rule(
            "(has(self.launcher) && self.launcher == 'SSH') == has(self.sshSecretName)",
            "launcher SSH needs sshSecretName, launcher Ray has no use for it: add the Secret's name or remove it",
            lambda multi_node: (multi_node.launcher == "SSH") == (multi_node.ssh_secret_name is not None),
        ),
    )

    launcher: Literal["Ray", "SSH"] = "Ray"
    """Ray: no ssh at all. SSH: mpirun with the key pair of a Secret that the user brings."""
    ssh_secret_name: DnsName | None = None
    """Secret of type kubernetes.io/ssh-auth, for launcher SSH. Berth never reads it."""


class Engine(Model):
    """What runs in the pods."""

    backend: Backend = "pytorch"
    """pytorch: TensorRT-LLM's LLM API on a checkpoint. tensorrt: built engines. simulated: no GPU."""
    image: ImageName | None = None
    """Image of the serving container, with a tag other than latest or a digest; absent: resolved once per revision."""
    multi_node: MultiNode = MultiNode()
    """Groups of several pods."""


# --- the object -------------------------------------------------------------------------------------------------------
class LLMDeploymentSpec(Model):
    """What a person wants served, for which traffic, how well and where."""

    rules = (
        Rule(
            "has(self.traffic) || (has(self.placement) && has(self.placement.mode) && self.placement.mode == 'Fixed')",
            "traffic is required unless placement.mode is Fixed: add traffic, or fix the placement",
            lambda spec: spec.traffic is not None or spec.placement.mode == "Fixed",
        ),
        Rule(
            "!has(self.placement) || !has(self.placement.fixed) || self.placement.fixed.allocations.all(allocation, "
            "self.model.variants.exists(variant, variant.name == allocation.variant))",
            "placement.fixed.allocations must name a variant of model.variants: correct variant or add it",
            lambda spec: all(spec.model.variant(allocation.variant) for allocation in spec.fixed_allocations),
        ),
        Rule(
            "!has(self.placement) || !has(self.placement.fixed) || self.placement.fixed.allocations.all(allocation, "
            "self.model.variants.all(variant, variant.name != allocation.variant || "
            "((!has(variant.tensorParallel) || variant.tensorParallel == "
            "(has(allocation.tensorParallel) ? allocation.tensorParallel : 1)) && "
            "(!has(variant.pipelineParallel) || variant.pipelineParallel == "
            "(has(allocation.pipelineParallel) ? allocation.pipelineParallel : 1)))))",
            "tensorParallel and pipelineParallel in placement.fixed.allocations must be those of the variant: "
            "change the allocation or choose another variant",
            lambda spec: all(
                variant.name != allocation.variant
                or (
                    variant.tensor_parallel in (None, allocation.tensor_parallel)
                    and variant.pipeline_parallel in (None, allocation.pipeline_parallel)
                )
                for allocation in spec.fixed_allocations
                for variant in spec.model.variants
            ),
        ),
        Rule(
            "!has(self.scaling) || !has(self.scaling.max) || (has(self.scaling.mode) && self.scaling.mode == 'Manual') "
            "|| (has(self.replicaGroups) && has(self.replicaGroups.minAvailable) "
            "? self.replicaGroups.minAvailable : 1) <= self.scaling.max",
            "replicaGroups.minAvailable must not be above scaling.max: lower minAvailable or raise max",
            lambda spec: (
                spec.scaling.mode == "Manual"
                or spec.scaling.max is None
                or spec.replica_groups.min_available <= spec.scaling.max
            ),
        ),
    )

    model: LanguageModel
    """What is served."""
    traffic: Traffic | None = None
    """What to plan for until there are measurements; optional if the placement is fixed."""
    objectives: Objectives = Objectives()
    """What is promised, and what to optimise within it."""
    scaling: Scaling = Scaling()
    """Number of groups."""
    replicas: Annotated[Int, Field(ge=1, le=MAX_GROUPS), CrdDefault()] = 1
    """Groups wanted in scaling.mode Manual; ignored in Auto (condition ReplicasIgnored)."""
    replica_groups: ReplicaGroups = ReplicaGroups()
    """Availability of the groups."""
    placement: Placement = Placement()
    """Where they run."""
    update: Update = Update()
    """Rolling out changes."""
    disruption: Disruption = Disruption()
    """Cordoned and drained nodes."""
    engine: Engine = Engine()
    """What runs in the pods."""
    pod: Pod = Pod()
    """Additions to the pods."""
    pause: Literal["None", "Changes", "All"] = "None"
    """None: Berth acts. Changes: failed groups are replaced, nothing else changes. All: hands off."""

    @property
    def fixed_allocations(self) -> tuple[Allocation, ...]:
        """Allocations of a fixed placement; empty in mode Auto."""
        return self.placement.fixed.allocations if self.placement.fixed else ()


class LLMDeployment(Model):
    """A large language model served on GPUs that Berth chooses, keeps serving and moves when that is better."""

    rules = (
        Rule(
            f"size(self.metadata.name) <= {labels.MAX_DEPLOYMENT_NAME} && "
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            f"metadata.name must be at most {labels.MAX_DEPLOYMENT_NAME} lower case letters, digits and '-', beginning "
            "with a letter, since Services and pods are named after it: choose another name",
            lambda deployment: (
                len(deployment.metadata.name) <= labels.MAX_DEPLOYMENT_NAME
                and re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", deployment.metadata.name) is not None
            ),
        ),
    )

    api_version: Literal["berth.dev/v1alpha1"] = "berth.dev/v1alpha1"
    kind: Literal["LLMDeployment"] = "LLMDeployment"
    metadata: ObjectMeta
    spec: LLMDeploymentSpec
    """What is wanted."""
    status: LLMDeploymentStatus = LLMDeploymentStatus()
    """What is; written by Berth alone."""


def parse_llmdeployment(obj: Any, *, known_fields_only: bool = False) -> LLMDeployment:
    """Read an LLMDeployment as stored or written by a person; see `berth.api.common.parse`."""
    return parse(LLMDeployment, obj, known_fields_only=known_fields_only)
