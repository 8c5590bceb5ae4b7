"""What the queueing model needs to know of one model copy: room for KV, batch limits and the time of one step.

The performance model builds `EngineModel`s; queueing and simulation only read them, so that either can be replaced
or tested alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EngineModel:
    """One model copy under in-flight batching. All times in seconds, all sizes in tokens.

    `step(decodes, context, prefill, pairs)` is the time of one engine iteration that generates one token for each of
    `decodes` requests whose contexts add up to `context` tokens, and processes `prefill` prompt tokens which attend to
    `pairs` (query, key) positions in all. All four arguments broadcast as arrays.
    """

    step: Callable[[Floats, Floats, Floats, Floats], Floats]
    kv_tokens: int
    """Tokens of KV cache of the whole copy; admission reserves prompt + requested maximum output, in whole blocks."""
    max_batch_size: int
    max_num_tokens: int
    """Most prompt + generated tokens of one iteration; longer prompts are chunked over iterations."""
    request_overhead: float
    """Seconds per request outside the engine: network, tokenizer, scheduling."""
    block_tokens: int = 32
