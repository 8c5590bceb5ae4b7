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
from berth.api.architecture import Architecture
from berth.api.common import Backend, KvPrecision, ObjectMeta, Precision, parse
from berth.api.placement import MAX_GROUPS, Allocation, Parallelism, PoolName, VariantName
from berth.api.pod import Pod
from berth.api.schema import (
    CrdDefault,
    DnsName,
    Duration,
    Int,
    LabelKey,
    ListMap,
    ListSet,
    Matches,
    Model,
    Quantity,
    Rule,
    Satisfies,
    seconds,
)
from berth.api.status import LLMDeploymentStatus

Tokens = Annotated[Int, Field(ge=1, le=16_777_216)]
GpuType = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Matches("[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?", "must be a GPU type such as H100-SXM-80: correct it"),
]
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


# --- model ------------------------------------------------------------------------------------------------------------
class PersistentVolumeClaimSource(Model):
    """Weights on a volume of the same namespace, mounted read-only."""

    claim_name: DnsName
    """Name of the PersistentVolumeClaim."""
    path: (
        Annotated[
            str,
            Field(min_length=1, max_length=256),
            Matches(
                "[A-Za-z0-9_][-A-Za-z0-9_.]*(/[A-Za-z0-9_][-A-Za-z0-9_.]*)*",
                "must be a relative path of plain segments (letters, digits, '-', '_', '.', none beginning with '.'), "
                "without '..', leading '/', URL or blanks: give the folder inside the volume",
            ),
        ]
        | None
    ) = None
    """Folder inside the volume; absent: its root."""


class HuggingFaceSource(Model):
    """Weights the pod downloads from the Hugging Face hub. The operator itself never contacts it."""

    repository: Annotated[
        str,
        Field(min_length=1, max_length=193),
        Matches(
            "[A-Za-z0-9][-A-Za-z0-9_.]{0,95}/[A-Za-z0-9][-A-Za-z0-9_.]{0,95}",
            "must be a repository such as meta-llama/Llama-3.1-70B-Instruct, not a URL: give owner/name",
        ),
    ]
    """owner/name on the hub."""
    revision: (
        Annotated[
            str,
            Field(min_length=1, max_length=128),
            Matches(
                "[A-Za-z0-9][-A-Za-z0-9_.]*(/[A-Za-z0-9][-A-Za-z0-9_.]*)*",
                "must be a commit, tag or branch name of plain segments: prefer a commit, which never changes",
            ),
        ]
        | None
    ) = None
    """Commit, tag or branch; absent: the repository's default. A commit keeps all groups equal."""
    token_secret_name: DnsName | None = None
    """Secret whose key `token` becomes HF_TOKEN in the pod; absent: public repository. Berth never reads it."""


class Source(Model):
    """Where weights come from: exactly one of the members."""

    rules = (
        Rule(
            "has(self.persistentVolumeClaim) != has(self.huggingFace)",
            "exactly one of persistentVolumeClaim and huggingFace must be given: add or remove one",
            lambda source: (source.persistent_volume_claim is None) != (source.hugging_face is None),
        ),
    )

    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A volume that already holds the weights."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of the Hugging Face hub."""


class Variant(Model):
    """One checkpoint (or set of built engines) that may be served. The planner chooses among these and nothing else."""

    rules = (
        Rule(
            "!has(self.backend) || self.backend != 'tensorrt' || (has(self.gpus) && has(self.tensorParallel))",
            "backend tensorrt serves engines built for one GPU type and layout: give gpus and tensorParallel "
            "(and pipelineParallel, if not 1)",
            lambda variant: variant.backend != "tensorrt" or (variant.gpus and variant.tensor_parallel),
        ),
    )

    name: VariantName
    """Name that allocations refer to; unique in the list."""
    precision: Precision
    """Precision of the weights."""
    kv_precision: KvPrecision | None = None
    """Precision of the KV cache; absent: 16 bit."""
    source: Source
    """Where the weights come from."""
    gpus: Annotated[tuple[GpuType, ...], Field(min_length=1, max_length=16), ListSet()] | None = None
    """GPU types it may run on; absent: all that support its precision."""
    tensor_parallel: Parallelism | None = None
    """The only tensor parallelism it may run with; absent: any."""
    pipeline_parallel: Parallelism | None = None
    """The only pipeline parallelism it may run with; absent: any."""
    backend: Backend | None = None
    """Backend that reads it; absent: engine.backend."""

    @property
    def effective_kv_precision(self) -> KvPrecision:
        """Precision of the KV cache; 16 bit unless given."""
        return self.kv_precision or ("fp16" if self.precision == "fp16" else "bf16")


class LanguageModel(Model):
    """What is served."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=100),
        Matches("[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", "must be a model name such as llama-3.1-70b-instruct"),
    ]
    """Name in the built-in catalogue; with `architecture`, any name."""
    architecture: Architecture | None = None
    """Shape of a model that the catalogue does not know."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=16), ListMap("name")]
    """What may be served."""

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)


# --- demand -----------------------------------------------------------------------------------------------------------
class InputTokens(Model):
    """Lengths of prompts."""

    rules = (
        Rule(
            "self.mean <= self.p95 && self.p95 <= self.max",
            "mean must not be above p95, nor p95 above max: correct them",
            lambda tokens: tokens.mean <= tokens.p95 <= tokens.max,
        ),
    )

    mean: Tokens
    """Mean, in tokens."""
    p95: Tokens
    """95th percentile, in tokens."""
    max: Tokens
    """Longest prompt that must be served, in tokens."""


class OutputTokens(Model):
    """Lengths of answers."""

    rules = (
        Rule(
            "self.mean <= self.p95 && self.p95 <= self.maxRequested",
            "mean must not be above p95, nor p95 above maxRequested: correct them",
            lambda tokens: tokens.mean <= tokens.p95 <= tokens.max_requested,
        ),
    )

    mean: Tokens
    """Mean, in tokens."""
    p95: Tokens
    """95th percentile, in tokens."""
    max_requested: Tokens
    """Largest max_tokens that clients ask for; the engine reserves KV cache for it whether it is used or not."""


class Traffic(Model):
    """What to plan for until there are measurements."""

    rules = (
        Rule(
            "has(self.arrival) && self.arrival == 'Closed' ? has(self.concurrency) && !has(self.requestsPerSecond) "
            ": has(self.requestsPerSecond) && !has(self.concurrency)",
            "arrival Open needs requestsPerSecond and no concurrency, arrival Closed needs concurrency and no "
            "requestsPerSecond: give the one that belongs to arrival",
            lambda traffic: (
                (traffic.concurrency is not None, traffic.requests_per_second is not None)
                == (traffic.arrival == "Closed", traffic.arrival == "Open")
            ),
        ),
    )

    requests_per_second: Annotated[int | str, Quantity("0", "100000", above=True)] | None = None
    """Mean arrivals of the whole deployment per second; for arrival Open."""
    input_tokens: InputTokens
    """Lengths of prompts."""
    output_tokens: OutputTokens
    """Lengths of answers."""
    peak_to_mean: Annotated[int | str, Quantity("1", "100")] = "1.4"
    """Requests in the busiest minute against the mean minute."""
    cached_input_fraction: Annotated[int | str, Quantity("0", "0.99")] = "0"
    """Share of prompt tokens whose KV cache can be re-used."""
    arrival: Literal["Open", "Closed"] = "Open"
    """Open: requests come whether or not others finished. Closed: each of `concurrency` clients awaits its answer."""
    concurrency: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Clients that each keep one request in flight; for arrival Closed."""


class TimeToFirstToken(Model):
    """Objective for the time from the request to its first token."""

    p95: Annotated[str, Duration("1ms", "1h")]
    """95th percentile."""


class TimePerOutputToken(Model):
    """Objective for the time per token after the first, per request: (last - first) / (n - 1)."""

    p95: Annotated[str, Duration("1ms", "1m")]
    """95th percentile."""


class Limits(Model):
    """Bounds of everything at every moment, surge included."""

    gpus: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """GPUs; absent: no bound."""
    cost_per_hour: Annotated[int | str, Quantity("0", "100000000", above=True)] | None = None
    """Price per hour in the pools' currency; absent: no bound."""


class Objectives(Model):
    """What is promised to clients, and what to optimise within it."""

    time_to_first_token: TimeToFirstToken | None = None
    """Absent: not an objective."""
    time_per_output_token: TimePerOutputToken | None = None
    """Absent: not an objective."""
    availability: Annotated[int | str, Quantity("0.5", "0.999999")] | None = None
    """Share of time in which the needed groups serve; absent: not an objective."""
    prefer: Literal["Cost", "Latency", "Throughput"] = "Cost"
    """Cost: least $/h per demanded token. Latency: lowest predicted p95 time per output token, then time to first
    token, within limits. Throughput: highest sustainable tokens/s within limits."""
    limits: Limits = Limits()
    """Bounds on GPUs and price."""


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
            "duration(has(self.initialBackoff) ? self.initialBackoff : '10s') <= "
            "duration(has(self.maxBackoff) ? self.maxBackoff : '10m')",
            "initialBackoff must not be above maxBackoff: lower initialBackoff or raise maxBackoff",
            lambda recovery: seconds(recovery.initial_backoff) <= seconds(recovery.max_backoff),
        ),
    )

    max_failures: Annotated[Int, Field(ge=1, le=100)] = 5
    """Failures of one group within `window` after which it stays down (condition Stalled)."""
    window: Annotated[str, Duration("1m", "168h")] = "1h"
    """Time for which a failure counts."""
    initial_backoff: Annotated[str, Duration("1s", "1h")] = "10s"
    """Wait before the second replacement in a row; doubles each time. The first replacement never waits."""
    max_backoff: Annotated[str, Duration("1s", "24h")] = "10m"
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
