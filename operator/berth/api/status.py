"""Status of an LLMDeployment: output, written by one server-side apply, never by people.

Figures are strings as people read them ("412ms", "11.96"); what is unknown is absent (in `summary`: "-"), never 0.
All lists but `conditions` are atomic. Only observedGeneration, moves, calibration and resolved may be read back;
everything else is recomputed.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from berth.api.common import Backend, Conditions
from berth.api.placement import DecidedAllocation
from berth.api.schema import Int, Model

MAX_CANDIDATES = 10
MAX_GROUP_SUMMARIES = 100
MAX_RECENT_MOVES = 10

Count = Annotated[Int, Field(ge=0)]
Figure = Annotated[str, Field(max_length=64)]
"""A number as a person reads it; durations and decimals have their unit in the field's name or in the text."""
Words = Annotated[str, Field(max_length=1024)]
Time = Annotated[str, Field(max_length=40)]
"""RFC 3339 in UTC."""
Name = Annotated[str, Field(max_length=253)]
DecidedAllocations = Annotated[tuple[DecidedAllocation, ...], Field(max_length=8)]


class Summary(Model):
    """What the printer columns show; "-" for unknown."""

    ready: Figure | None = None
    """Serving groups of wanted ones, such as 2/2."""
    placement: Words | None = None
    """Pool, precision and layout, such as `h100 fp8 tp2`."""
    ttft_p95: Figure | None = None
    """Measured 95th percentile of the time to first token, such as 412ms."""
    tpot_p95: Figure | None = None
    """Measured 95th percentile of the time per output token, such as 24ms."""
    message: Words | None = None
    """How it stands, in a few words."""


class Range(Model):
    """A figure with its uncertainty; a measured one has only `mid`."""

    low: Figure | None = None
    """Pessimistic value."""
    mid: Figure | None = None
    """Expected or measured value."""
    high: Figure | None = None
    """Optimistic value."""


class Figures(Model):
    """Latency and throughput of the whole placement."""

    ttft_p95: Figure | None = None
    """95th percentile of the time to first token, such as 412ms; as an error, a share such as 0.12."""
    tpot_p95: Figure | None = None
    """95th percentile of the time per output token, such as 24.1ms; as an error, a share."""
    output_tokens_per_second: Range | None = None
    """Generated tokens per second of all groups together; as an error, a share."""


class Factors(Model):
    """What decides about a placement, in words with its own figures."""

    communication: Words | None = None
    """What GPUs of one group tell each other per token, and its share of a step."""
    parallelism: Words | None = None
    """Tensor against pipeline parallelism: step time and efficiency, here and with the next split."""
    batch: Words | None = None
    """Requests in flight at the planned traffic, how many fit, and where batching stops paying."""
    bandwidth: Words | None = None
    """Share of a step that reads weights and KV cache, and why more GPUs do not add up."""
    failure: Words | None = None
    """What one lost GPU takes down, and what groups and their spread save."""


class Candidate(Model):
    """A placement that was considered, with its predicted figures or the reason for its rejection."""

    allocations: DecidedAllocations = ()
    """The placement."""
    chosen: bool = False
    """Whether it is the one decided on."""
    predicted: Figures | None = None
    """Figures at the planned traffic; absent where it was rejected before."""
    gpus: Count | None = None
    """GPUs of all groups."""
    load: Figure | None = None
    """Planned traffic as a share of what the groups carry at the objectives."""
    availability: Figure | None = None
    """Predicted share of time in which the needed groups serve."""
    cost_per_hour: Figure | None = None
    """Price of all groups."""
    cost_per_million_output_tokens: Figure | None = None
    """Price per million demanded output tokens."""
    limited_by: Words | None = None
    """What bounds its throughput."""
    rejected: Words | None = None
    """Why it was not considered further; absent: it meets everything."""
    factors: Factors | None = None
    """Why it stands where it does; for the chosen candidate and the runner-up."""


class PlacementStatus(Model):
    """The placement in force, what was expected of it and what it does."""

    allocations: DecidedAllocations = ()
    """What runs where; two while a move is under way."""
    predicted: Figures | None = None
    """What the model expects at the current traffic."""
    measured: Figures | None = None
    """What was measured; rewritten on a change of more than a tenth, at most once a minute."""
    prediction_error: Figures | None = None
    """(predicted - measured) / measured, as shares such as 0.12."""
    limited_by: Words | None = None
    """What bounds the throughput."""
    cost_per_hour: Figure | None = None
    """Price of all groups, in the pools' currency."""
    cost_per_million_output_tokens: Figure | None = None
    """Price per million demanded output tokens."""
    groups_for_traffic: Count | None = None
    """Groups that carry the planned traffic at the objectives."""
    spec_hash: Name | None = None
    """Hash of the parts of spec it was decided from; another hash means another decision."""
    decided_at: Time | None = None
    """When it was decided."""
    reason: Words | None = None
    """Why it was chosen."""


class Resolved(Model):
    """Engine defaults of this revision: chosen once, kept over operator upgrades."""

    image: Annotated[str, Field(max_length=512)] | None = None
    """Image of the serving container."""
    backend: Backend | None = None
    """Backend of the engine."""
    max_batch_size: Count | None = None
    """Most requests in flight per group."""
    max_num_tokens: Count | None = None
    """Most prompt and generated tokens of one engine step."""
    max_seq_len: Count | None = None
    """Longest prompt plus answer, in tokens."""
    kv_cache_fraction: Figure | None = None
    """Share of the free GPU memory that becomes KV cache."""


class GroupSummary(Model):
    """One replica group in a line."""

    name: Name
    """g0, g1, ..."""
    pool: Name | None = None
    """Pool it runs on."""
    nodes: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    """Nodes of its members."""
    state: Name | None = None
    """Reserved, Starting, Warming, Serving, Draining or Failed."""
    incarnation: Count | None = None
    """How many lives the group has had."""
    since: Time | None = None
    """Since when it is in this state."""
    reason: Words | None = None
    """Why, where there is something to say."""


class CurrentMove(Model):
    """The move under way."""

    id: Name
    """Identifier, also on the groups' labels."""
    phase: Name | None = None
    """Reserving, Starting, WarmingUp, Flipping, Judging, Draining or Reverting; without surge Replacing first."""
    from_: Annotated[DecidedAllocations, Field(alias="from")] = ()
    """The placement that is left."""
    to: DecidedAllocations = ()
    """The placement that is taken."""
    since: Time | None = None
    """When the phase began."""
    deadline: Time | None = None
    """When the phase is given up."""


class FinishedMove(Model):
    """A move that ended."""

    id: Name
    """Identifier."""
    finished_at: Time | None = None
    """When it ended."""
    result: Name | None = None
    """Completed, RolledBack or Abandoned."""
    reason: Words | None = None
    """Why it was begun, and why it ended so."""
    placement_hash: Name | None = None
    """Hash of the placement it went to, so that a bad one is not tried again."""


class HeldMove(Model):
    """Why the deployment stays where it is."""

    reason: Name
    """A stable word, such as NothingBetter, CoolingDown or NoSurgePossible."""
    message: Words | None = None
    """In figures, as they were when it began."""
    since: Time | None = None
    """When it began."""


class MovesStatus(Model):
    """Moves under way and past."""

    current: CurrentMove | None = None
    """The move under way."""
    recent: Annotated[tuple[FinishedMove, ...], Field(max_length=MAX_RECENT_MOVES)] = ()
    """The last ten, newest first."""
    next_allowed_at: Time | None = None
    """When the cool-down ends."""
    hold: HeldMove | None = None
    """Why no move is begun now; absent while one is under way, and before anything was measured."""


class Failover(Model):
    """How a failover went; durations since the failure, such as 4.1s."""

    at: Time | None = None
    """When it happened."""
    detected_after: Figure | None = None
    """Until Berth knew."""
    traffic_cut_after: Figure | None = None
    """Until requests stopped arriving."""
    replaced_after: Figure | None = None
    """Until all replacement pods existed."""
    restored_after: Figure | None = None
    """Until the group served again."""


class LastFailover(Failover):
    """The last group that failed; durations since the failure, such as 4.1s."""

    group: Name | None = None
    """g0, g1, ..."""
    reason: Words | None = None
    """What happened."""


class RequestStatus(Model):
    """What came of the last request by annotation berth.dev/request."""

    text: Words | None = None
    """The request."""
    result: Name | None = None
    """Done, Refused or Waiting."""
    message: Words | None = None
    """What came of it, or why not."""
    at: Time | None = None
    """Since when it stands so."""


class AvailabilityStatus(Model):
    """Predicted availability."""

    predicted: Figure | None = None
    """Share of time in which the needed groups serve."""
    target: Figure | None = None
    """objectives.availability."""
    limited_by: Words | None = None
    """What binds it."""
    load_after_group_loss: Figure | None = None
    """Load of the others after the largest group is lost, as a share of what they carry."""


class DomainCount(Model):
    """One failure domain."""

    name: Words
    """Value of the topology key."""
    groups: Count
    """Groups of which it holds at least one member."""


class SpreadStatus(Model):
    """How the groups stand in failure domains, and what the worst single loss would leave."""

    topology_key: Words
    """Node label whose values are the domains."""
    domains: Annotated[tuple[DomainCount, ...], Field(max_length=64)] = ()
    """Domains with groups, most groups first; empty where no node carries the label."""
    after_node_loss: Count | None = None
    """Groups left after the loss of the node that matters most."""
    after_domain_loss: Count | None = None
    """Groups left after the loss of the domain that matters most."""
    message: Words | None = None
    """Whether that keeps the needed groups, in words."""


class Calibration(Model):
    """A factor learned from measurements."""

    scope: Words
    """Model, GPU type or pool it holds for."""
    metric: Name
    """Metric it corrects."""
    factor: Figure
    """Measured over predicted."""
    samples: Count | None = None
    """Effective number of samples behind it."""
    updated_at: Time | None = None
    """When it changed."""
    spec_hash: Name | None = None
    """Hash of model, variants, backend and image it was learned with; others begin anew."""


class LLMDeploymentStatus(Model):
    """What is."""

    observed_generation: Count | None = None
    """metadata.generation this status was computed from."""
    conditions: Conditions = ()
    """Standard conditions: Accepted, Placed, Available, Ready, Progressing, Degraded and others."""
    replicas: Count | None = None
    """Groups that count: no surge, none that drain."""
    ready_replicas: Count | None = None
    """Groups that serve."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Label selector of the groups' leaders, for the scale subresource."""
    summary: Summary | None = None
    """What the printer columns show."""
    url: Words | None = None
    """Address inside the cluster."""
    live: Words | None = None
    """Service of the operator's page of live figures, as namespace/name; absent where there is none."""
    needed: Count | None = None
    """Groups that must serve."""
    resolved: Resolved | None = None
    """Engine defaults of this revision."""
    placement: PlacementStatus | None = None
    """The placement in force."""
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MAX_CANDIDATES)] = ()
    """Placements considered, best first."""
    group_counts: Annotated[dict[str, Count], Field(max_length=16)] = Field(default_factory=dict)
    """Number of groups by state."""
    groups: Annotated[tuple[GroupSummary, ...], Field(max_length=MAX_GROUP_SUMMARIES)] = ()
    """Groups, failed first."""
    moves: MovesStatus | None = None
    """Moves under way and past."""
    last_failover: LastFailover | None = None
    """The last group that failed."""
    request: RequestStatus | None = None
    """The last request by annotation berth.dev/request."""
    availability: AvailabilityStatus | None = None
    """Predicted availability."""
    spread: SpreadStatus | None = None
    """How the groups stand in failure domains."""
    calibration: Annotated[tuple[Calibration, ...], Field(max_length=32)] = ()
    """Factors learned from measurements."""
