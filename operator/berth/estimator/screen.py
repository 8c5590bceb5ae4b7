"""Fast screen: latency of one model copy from a birth-death chain per minute level, for many loads at once.

With n requests in flight a copy finishes X(n) = n / (output t(n) + n p(n)) requests per second: each takes the steps
t(n) of its answer, and every finish makes room for one prompt that holds up all n by p(n). Processor sharing of this
kind is insensitive to the distribution of answer lengths, so under Poisson arrivals at rate a the number in flight has
P(n) proportional to the product of a / X(k) over k = 1..n; past the C requests that fit (KV cache, batch limit) X
stays X(C) and requests queue. Arrivals are Poisson only within a minute: chains are mixed over minute levels, each with
its own rate and mean lengths. A level that offers more than X(C) is taken to last: its requests wait for ever.

Every array is over some of: loads (R), levels (L), requests in flight (N), lengths (J), quantiles (Q). The simulation
is the yardstick; how far the screen is from it is in `docs/designs/009-queueing.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from berth.estimator.engine_model import EngineModel, Floats
from berth.estimator.traffic import LEVELS, TokenLengths, TrafficProfile, lengths_at, minutes, normal_quantile

_GROUPS = (0, 5, 10, 13, 16, 18, 19)  # first of the minute levels that are treated as one
_EDGES = np.array([*np.arange(0, 0.81, 0.1), 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0])
_NODES, _WEIGHTS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)  # lengths of a level, finer where p95 lies
_BISECTIONS = 24
_SHORTEST, _LONGEST = np.log(1e-4), np.log(1e5)  # of the seconds between which time to first token is sought
_BUSIEST = 0.98  # share of time with prompts in work beyond which approximations of waiting lose their meaning


@dataclass(frozen=True)
class Screened:
    """Seconds (R, Q); mean requests in flight and requests per second (R,)."""

    ttft: Floats
    tpot: Floats
    in_flight: Floats
    throughput: Floats


@dataclass(frozen=True)
class _Chain:
    """What arrivals meet at each load and level."""

    rate: Floats
    """Arrivals per second, (R, L)."""
    found: Floats
    """Probability of n = 0..N requests in flight, (R, L, N + 1)."""
    full: Floats
    """Probability of finding no room, (R, L)."""
    ahead: Floats
    """Seconds of requests that are always ahead, (R, L)."""


class Screen:
    """The chains of one engine and one profile, ready for any load."""

    def __init__(self, engine: EngineModel, profile: TrafficProfile) -> None:
        self._engine = engine
        self._closed = profile.closed
        self._cached = profile.cached_input_fraction
        self._further_tokens = profile.output_tokens.max > 1
        levels = minutes(profile)
        starts, size = np.array(_GROUPS), np.diff([*_GROUPS, LEVELS])
        self._time = size / LEVELS  # (L,)
        self._rate = np.add.reduceat(levels.rate, starts) / size  # against the mean
        self._share = self._time * self._rate  # of all requests
        score = np.add.reduceat(levels.rate * levels.score, starts) / (size * self._rate)
        self._prompt = self._lengths(profile.input_tokens, levels.input_correlation, score)  # (L, J)
        answer = self._lengths(profile.output_tokens, levels.output_correlation, score)
        prompt_mean, answer_mean = self._prompt @ _WEIGHTS, answer @ _WEIGHTS
        self._per_token = 1 / np.maximum(answer - 1, 1) @ _WEIGHTS
        self._context = prompt_mean + answer**2 @ _WEIGHTS / (2 * answer_mean)  # of one request in flight
        mean_slots, self._slots = self._fitting(profile)

        number = np.arange(1, mean_slots.max() + 1, dtype=float)  # (N,)
        decode = self._step(number[None, :])
        prefill = self._prefill(number[None, :], prompt_mean[:, None])
        self._tpot = decode + (number - 1) * prefill / answer_mean[:, None]  # (L, N)
        self._finish = number / (answer_mean[:, None] * decode + number * prefill)  # X
        self._hindrance = np.where(number > self._slots[:, None], np.inf, np.log(self._finish).cumsum(axis=1))
        rows = np.arange(len(score))
        self._most = self._finish[rows, self._slots - 1]  # X(C)
        self.saturation = float(1 / (self._share @ (1 / self._finish[rows, mean_slots - 1])))
        """Requests per second of a copy that is never without waiting requests."""

    def at(self, loads: Floats, quantiles: tuple[float, ...]) -> Screened:
        """At `loads` (R,): requests per second, or clients if the profile is closed."""
        chain = self._closed_chain(loads) if self._closed else self._open_chain(loads)
        in_flight = chain.found @ np.arange(chain.found.shape[2])
        prefill = self._prefill(in_flight[..., None], self._prompt)  # (R, L, J)
        wanted = np.array(quantiles)
        return Screened(
            ttft=self._ttft(chain, in_flight, prefill, wanted),
            tpot=self._tpot_quantiles(chain, prefill, wanted),
            in_flight=in_flight @ self._time,
            throughput=chain.rate @ self._time,
        )

    def _open_chain(self, loads: Floats) -> _Chain:
        rate = np.maximum(loads, 1e-9)[:, None] * self._rate
        log = np.log(rate)[..., None] * np.arange(1, self._hindrance.shape[1] + 1) - self._hindrance
        log = np.concatenate([np.zeros((*rate.shape, 1)), log], axis=2)
        weight = np.exp(log - log.max(axis=2, keepdims=True))
        load = rate / self._most
        stable = load < 1
        # States past C form a geometric series in load; all of them have C in flight.
        at_limit = np.arange(weight.shape[2]) == self._slots[:, None]
        limit = (weight * at_limit).sum(axis=2)
        queued = limit * np.where(stable, load / np.where(stable, 1 - load, 1), 0)
        found = (weight + at_limit * queued[..., None]) / (weight.sum(axis=2) + queued)[..., None]
        found = np.where(stable[..., None], found, at_limit)
        full = (found * at_limit).sum(axis=2)
        return _Chain(rate=rate, found=found, full=full, ahead=np.zeros_like(rate))

    def _closed_chain(self, loads: Floats) -> _Chain:
        clients = np.maximum(np.rint(loads), 1)[:, None]
        running = np.minimum(clients, self._slots).astype(int)
        rate = self._finish[np.arange(len(self._slots)), running - 1]
        found = (np.arange(self._finish.shape[1] + 1) == running[..., None]).astype(float)
        return _Chain(rate=rate, found=found, full=np.zeros_like(rate), ahead=(clients - running) / rate)

    def _ttft(self, chain: _Chain, in_flight: Floats, prefill: Floats, wanted: Floats) -> Floats:
        """Rest of the step under way, prompts ahead, requests ahead where there is no room, own prompt.

        Waiting for prompts is exponential with the mean of an M/G/1 queue, lengthened because all prompts of a step
        end together; waiting for room is exponential with the spare rate X(C) - a.
        """
        decode = self._step(in_flight[..., None])[..., 0]
        work = prefill @ _WEIGHTS
        busy = np.minimum(chain.rate * work, _BUSIEST)
        wait = (prefill**2 @ _WEIGHTS) / (2 * work * (1 - busy)) * (1 + 1.5 * busy)
        spare = np.maximum(self._most - chain.rate, 0)
        sure = self._engine.request_overhead + (1.5 - 0.5 * chain.found[..., 0]) * decode + chain.ahead
        sure = (sure[..., None] + prefill)[:, None]  # (R, 1, L, J)
        busy, wait, full, spare = (x[:, None, :, None] for x in (busy, wait, chain.full, spare))
        low = np.full((len(chain.rate), len(wanted)), _SHORTEST)
        high = np.full_like(low, _LONGEST)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            rest = np.exp(middle)[..., None, None] - sure  # (R, Q, L, J)
            left = np.maximum(rest, 0)
            late = np.minimum(busy * np.exp(-left / wait) + full * np.exp(-left * spare), 1)
            above = np.where(rest > 0, late, 1) @ _WEIGHTS @ self._share > 1 - wanted
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(high == _LONGEST, np.inf, np.exp(high))

    def _tpot_quantiles(self, chain: _Chain, prefill: Floats, wanted: Floats) -> Floats:
        """Of the requests in flight that an arrival makes one more, widened by the prompts that come by chance.

        Prompts come in busy periods: against a fixed number of decode steps the variance of an M/G/1 queue's work is
        rate * E[work^2] / (1 - busy)^3 per second without prompts. Answers of one token wait for no other.
        """
        if not self._further_tokens:
            return np.zeros((len(chain.rate), len(wanted)))
        joined = np.minimum(np.arange(chain.found.shape[2]), self._slots[:, None] - 1)  # (L, N + 1)
        tpot = np.take_along_axis(self._tpot, joined, axis=1)
        weight = (chain.found * self._share[:, None]).reshape(len(chain.rate), -1)
        mean = weight @ tpot.ravel()
        busy = np.minimum(chain.rate * (prefill @ _WEIGHTS), 0.9)
        work = chain.rate * (prefill**2 @ _WEIGHTS) / (1 - busy) ** 2
        variance = (chain.found * tpot).sum(axis=2) * work * self._per_token @ self._share
        order = np.argsort(tpot, axis=None)
        reached = weight[:, order].cumsum(axis=1)
        place = (reached[:, None, :] < wanted[:, None] - 1e-9).sum(axis=2)
        beyond = tpot.ravel()[order][np.minimum(place, len(order) - 1)] - mean[:, None]
        widened = np.hypot(beyond, normal_quantile(wanted) * np.sqrt(variance)[:, None])
        found: Floats = mean[:, None] + np.where(wanted > 0.5, widened, beyond)
        return found

    def _fitting(self, profile: TrafficProfile) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Requests that fit per level (L,), on average and while others wait.

        What is left of the cache when the next request does not fit is half a length-biased request; because lengths
        vary, so does the number that fits, and requests wait mostly when it is small: half a standard deviation less.
        """
        reserved = self._prompt + profile.output_tokens.max + self._engine.block_tokens / 2
        mean, square = reserved @ _WEIGHTS, reserved**2 @ _WEIGHTS
        fitting = np.maximum((self._engine.kv_tokens - square / (2 * mean)) / mean, 1)
        varied = np.maximum(square / mean**2 - 1, 0)  # where all are alike, rounding makes it less than nothing
        waiting = fitting - 0.5 * np.sqrt(fitting * varied)
        batch = min(self._engine.max_batch_size, self._engine.max_num_tokens)
        return np.clip(fitting, 1, batch).astype(np.int64), np.clip(waiting, 1, batch).astype(np.int64)

    def _lengths(self, lengths: TokenLengths, correlation: float, score: Floats) -> Floats:
        """Of each level (L, J), with the right mean over all requests."""
        drawn = lengths_at(lengths, correlation, score, _NODES)
        return drawn * (lengths.mean / float(self._share @ (drawn @ _WEIGHTS)))

    def _step(self, decodes: Floats, fresh: Floats | float = 0.0, pairs: Floats | float = 0.0) -> Floats:
        """Of `decodes` requests in flight and `fresh` prompt tokens, all (.., L, any)."""
        arguments = np.broadcast_arrays(decodes, decodes * self._context[:, None], fresh, pairs)
        return self._engine.step(*arguments)

    def _prefill(self, decodes: Floats, prompt: Floats) -> Floats:
        """Seconds by which prompts hold up `decodes` requests, both (.., L, any); in chunks if they are long."""
        cached = prompt * self._cached
        fresh = prompt - cached
        chunk = np.minimum(fresh, self._engine.max_num_tokens)
        pairs = (cached + fresh / 2) * chunk  # mean (query, key) pairs of a chunk
        held_up = self._step(decodes, chunk, pairs) - self._step(decodes)
        return np.asarray(np.maximum(held_up, 1e-9) * fresh / chunk)
