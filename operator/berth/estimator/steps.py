"""Time of one engine iteration, as a sum of parts that each have a name.

    matrix products   smooth maximum of reading the weights and of multiplying by them
    output head       the same, in 16 bit, for the tokens that are sampled
    KV cache          every decoding request reads its own context
    attention         query times key and value of prompts, in 16 bit
    activations       norms, residuals and the like: memory traffic that grows with tokens
    all-reduce        by link, from measured tables
    overhead          launches per layer, host work per iteration and per request

Formulas are the usual roofline ones; coefficients come from `coefficients`, fitted to published measurements. Times
are seconds, and every argument broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from berth.estimator.copies import ModelCopy, Numbers
from berth.estimator.network import all_reduce_time

_HEAD_COMPUTE = 0.7  # share of the 16 bit rate that the output head reaches; a few per cent of any step


@dataclass(frozen=True)
class Coefficients:
    """What data sheets do not say: efficiencies (shares of the data sheet), overheads (seconds), and shapes."""

    bandwidth: Numbers
    """Share of memory bandwidth reached when weights are read."""
    kv_bandwidth: Numbers
    compute: Numbers
    """Share of the arithmetic rate reached by large matrix products."""
    attention_compute: Numbers
    softness: Numbers
    """Exponent of the smooth maximum of memory and compute: large is a sharp corner, 1 is their sum."""
    narrowing: Numbers
    """Loss of compute efficiency when tensor parallelism narrows the matrices: time grows with tp ** narrowing."""
    ungrouped_attention: Numbers
    """Share of KV that is read again for every further query head of a group: 0 for kernels that know groups."""
    replicated_activations: Numbers
    """16 bit passes over the hidden state per token and layer that every GPU repeats."""
    split_activations: Numbers
    """The same over query and feed-forward state, which tensor parallelism splits."""
    all_reduce: Numbers
    """Time of an all-reduce inside an engine against the measured one."""
    all_reduce_wait: Numbers
    """Seconds per all-reduce and doubling of the group: GPUs wait for the slowest."""
    layer_overhead: Numbers
    hiding: Numbers
    """Exponent of the smooth maximum of launches and GPU work: 1 adds them up, large hides the shorter."""
    matrix_launches: Numbers
    """Seconds per layer that launching its matrix products takes beyond `layer_overhead`."""
    prompts_apart: Numbers
    """1 where prompts run in iterations of their own, 0 where they share iterations with decoding."""
    step_overhead: Numbers
    sequence_overhead: Numbers
    """Seconds per iteration and decoding request: sampling, scheduling, detokenizing."""
    interference: Numbers
    """Share of the prompts of other requests that time per output token sees in a benchmark with a fixed number of
    clients: a scheduler that runs a burst of prompts before it decodes shows them in the time to first token instead.
    """
    reserve: Numbers
    """Bytes per GPU that neither weights nor activations nor KV cache explain: contexts, libraries, fragmentation."""


@dataclass(frozen=True)
class StepParts:
    """Seconds of one iteration by cause. `weights` and `compute` are the two sides of the smooth maximum `matrices`."""

    weights: Numbers
    compute: Numbers
    matrices: Numbers
    head: Numbers
    kv_cache: Numbers
    attention: Numbers
    activations: Numbers
    all_reduce: Numbers
    overhead: Numbers
    """Launches as far as they are not hidden, and host work."""

    @property
    def work(self) -> Numbers:
        """What the GPU is busy with."""
        return self.matrices + self.head + self.kv_cache + self.attention + self.activations + self.all_reduce

    @property
    def total(self) -> Numbers:
        return self.work + self.overhead


def step_parts(
    copy: ModelCopy,
    coefficients: Coefficients,
    decodes: Numbers,
    context: Numbers,
    prefill: Numbers = 0.0,
    pairs: Numbers = 0.0,
    sampled: Numbers | None = None,
) -> StepParts:
    """Parts of an iteration that decodes one token of `decodes` requests and processes `prefill` prompt tokens.

    `context` is the sum of the decoding requests' contexts, `pairs` the (query, key) positions of the prompt tokens,
    `sampled` the tokens that pass the output head (default: the decodes). With pipeline stages the batch is split into
    as many micro-batches as there are stages (or requests, if fewer), and a token takes as long as all stages do.
    """
    c = coefficients
    stages = copy.pipeline_parallel
    micro = np.clip(decodes, 1, stages)
    tokens = (decodes + prefill) / micro
    layers = copy.stage_layers * stages
    gpu_bandwidth = copy.bandwidth * copy.tensor_parallel

    weights = layers * copy.layer_bytes_read(tokens) / (gpu_bandwidth * c.bandwidth)
    operations = 2 * tokens * layers * copy.active_layer_parameters
    compute = operations / (copy.tensor_parallel * copy.flops * c.compute) * copy.tensor_parallel**c.narrowing
    head_tokens = (decodes if sampled is None else sampled) / micro
    head_read = 2 * copy.head_parameters / (gpu_bandwidth * c.bandwidth)
    head_compute = 2 * head_tokens * copy.head_parameters / (copy.tensor_parallel * copy.flops_16bit * _HEAD_COMPUTE)
    reread = 1 + c.ungrouped_attention * (copy.queries_per_kv - 1)
    attention_flops = copy.tensor_parallel * copy.flops_16bit * c.attention_compute
    state = c.replicated_activations * copy.hidden
    state = state + c.split_activations * (copy.query_width + copy.feed_forward_width) / copy.tensor_parallel
    wait = c.all_reduce_wait * np.log2(copy.tensor_parallel)
    one_all_reduce = c.all_reduce * all_reduce_time(copy.all_reduce, np.asarray(2 * tokens * copy.hidden)) + wait
    hop = np.where(stages > 1, stages * 2 * tokens * copy.hidden / copy.link_bandwidth, 0.0)
    parts = StepParts(
        weights=weights,
        compute=compute,
        matrices=smooth_maximum(weights, compute, c.softness),
        head=micro * smooth_maximum(head_read, head_compute, c.softness),
        kv_cache=layers * context / micro * copy.kv_bytes / (copy.bandwidth * c.kv_bandwidth) * reread,
        attention=4 * pairs / micro * layers * copy.query_width / attention_flops,
        activations=2 * tokens * layers * state / copy.bandwidth,
        all_reduce=layers * copy.all_reduces * one_all_reduce + hop,
        overhead=0.0,
    )
    launches = smooth_maximum(parts.work, layers * (c.layer_overhead + c.matrix_launches), c.hiding) - parts.work
    host = stages * (c.step_overhead + c.sequence_overhead * decodes / micro)
    return replace(parts, overhead=launches + host)


def smooth_maximum(a: Numbers, b: Numbers, softness: Numbers) -> Numbers:
    """(a^s + b^s)^(1/s): the larger of two times, plus what two overlapping phases of like length cost each other."""
    high = np.maximum(np.maximum(a, b), 1e-30)
    low = np.minimum(a, b)
    return high * (1 + (low / high) ** softness) ** (1 / softness)
