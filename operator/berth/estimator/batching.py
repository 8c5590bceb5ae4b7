"""Closed forms for many requests on one model copy: a static batch, and in-flight batching in its steady state.

All requests of a call have the same prompt and output length; lengths in tokens, times in seconds, and every argument
broadcasts. Means only: percentiles under real arrivals are the matter of `queueing` and `simulation`.
"""

from __future__ import annotations

import numpy as np

from berth.estimator.copies import ModelCopy, Numbers
from berth.estimator.steps import Coefficients, step_parts


def prefill_time(copy: ModelCopy, c: Coefficients, requests: Numbers, prompt: Numbers) -> Numbers:
    """One iteration that processes the whole prompts of `requests` requests and nothing else."""
    pairs = requests * prompt * (prompt + 1) / 2
    return step_parts(copy, c, 0.0 * requests, 0.0 * requests, requests * prompt, pairs, sampled=requests).total


def decode_step(copy: ModelCopy, c: Coefficients, requests: Numbers, context: Numbers) -> Numbers:
    """One iteration that generates a token of each of `requests` requests with a mean context of `context`."""
    return step_parts(copy, c, requests, requests * context).total


def static_batch_time(copy: ModelCopy, c: Coefficients, requests: Numbers, prompt: Numbers, output: Numbers) -> Numbers:
    """From the start of the prompts to the last token of a batch that starts and ends together."""
    decode = decode_step(copy, c, requests, prompt + output / 2)
    return prefill_time(copy, c, requests, prompt) + (output - 1) * decode


def iteration_time(
    copy: ModelCopy,
    c: Coefficients,
    in_flight: Numbers,
    prompt: Numbers,
    output: Numbers,
    max_num_tokens: Numbers,
    interfering: Numbers | None = None,
) -> Numbers:
    """Mean seconds between two tokens of a request while `in_flight` requests are served in steady state.

    Every finished request is replaced, so prompts of `interfering` requests (default: all in flight) are processed per
    `output` iterations. A prompt is one chunk of an iteration, or several if it is longer than the token budget: most
    iterations carry none while requests are few, all carry some when they are many, and when even that is not enough
    the budget bounds how many can decode. Schedulers that keep prompts apart run each in an iteration without decodes.
    """
    interfering = in_flight if interfering is None else interfering
    decodes = np.maximum(np.minimum(in_flight, max_num_tokens / (1 + prompt / output)), 1)
    interfering = interfering * decodes / np.maximum(in_flight, 1)
    budget = np.maximum(max_num_tokens - decodes, 1)
    share = np.minimum(interfering / output * np.maximum(prompt / budget, 1), 1)
    chunk = interfering * prompt / output / np.maximum(share, 1e-12)
    context = decodes * (prompt + output / 2)
    plain = step_parts(copy, c, decodes, context).total
    pairs = chunk * (prompt + 1) / 2
    shared = step_parts(copy, c, decodes, context, chunk, pairs).total - plain
    apart = step_parts(copy, c, 0.0 * decodes, 0.0 * decodes, chunk, pairs, sampled=chunk / prompt).total
    return (plain + share * np.where(c.prompts_apart, apart, shared)) * in_flight / decodes


def time_per_output_token(
    copy: ModelCopy, c: Coefficients, in_flight: Numbers, prompt: Numbers, output: Numbers, max_num_tokens: Numbers
) -> Numbers:
    """(last token - first token) / (tokens - 1) of a request: its own prompt is over, those of the others are not."""
    return iteration_time(copy, c, in_flight, prompt, output, max_num_tokens, (in_flight - 1) * c.interference)


def time_to_first_token(
    copy: ModelCopy, c: Coefficients, in_flight: Numbers, prompt: Numbers, output: Numbers, max_num_tokens: Numbers
) -> Numbers:
    """Of a request that is admitted at once: the rest of the running iteration, then its own prompt beside decodes.

    Request overhead outside the engine is not included.
    """
    others = np.maximum(in_flight - 1, 0)
    iteration = iteration_time(copy, c, np.maximum(others, 1), prompt, output, max_num_tokens)
    alone = prefill_time(copy, c, 1.0 + 0 * in_flight, prompt)
    decodes = step_parts(copy, c, others, others * (prompt + output / 2)).kv_cache
    return alone + np.where(others > 0, iteration / 2 + decodes, 0.0)


def request_time(
    copy: ModelCopy, c: Coefficients, in_flight: Numbers, prompt: Numbers, output: Numbers, max_num_tokens: Numbers
) -> Numbers:
    """From sending to the last token with `in_flight` requests in service.

    Whoever waits for the prompts of the others, all of them are processed: what a scheduler keeps out of the time per
    token (`Coefficients.interference`) is in the time to first token, and makes no request faster.
    """
    first = time_to_first_token(copy, c, in_flight, prompt, output, max_num_tokens)
    return first + (output - 1) * iteration_time(copy, c, in_flight, prompt, output, max_num_tokens, in_flight - 1)


def finite_run_throughput(
    copy: ModelCopy,
    c: Coefficients,
    in_flight: Numbers,
    prompt: Numbers,
    output: Numbers,
    max_num_tokens: Numbers,
    requests: Numbers,
) -> Numbers:
    """Output tokens per second of a benchmark that queues `requests` equal requests at once and waits for the last.

    Equal requests that start together end together, so the run is a number of full waves of `in_flight` requests and
    one of the rest: with few waves the rest weighs.
    """
    wave = np.minimum(in_flight, requests)
    full = np.floor(requests / wave + 1e-9)
    rest = np.maximum(requests - full * wave, 0.0)
    last = iteration_time(copy, c, np.maximum(rest, 1), prompt, output, max_num_tokens)
    iterations = full * iteration_time(copy, c, wave, prompt, output, max_num_tokens) + np.where(rest > 0.5, last, 0.0)
    return requests / iterations
