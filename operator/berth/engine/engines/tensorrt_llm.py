"""TensorRT-LLM through its LLM API (release 1.2.1), imported only in the pod.

One node: the LLM spawns its own ranks. Several nodes: the launch command brings the ranks (mpirun with
trtllm-llmapi-launch), or this engine heads a Ray cluster that the workers' `ray start` joins
(https://nvidia.github.io/TensorRT-LLM/features/ray-orchestrator.html).

Progress is its iteration counter: `get_stats_async` yields one record per iteration of the executor, also while it
works on a long prompt and no token comes out. The calls used, with their signatures, are listed in
tests/unit/engine/test_tensorrt_llm.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from berth.engine.engines import ray_cluster
from berth.engine.engines.base import EngineState, LoadError, Piece, RequestError, Sampling

STATS_SECONDS = 1.0
"""Longest wait for the next iteration record; an idle engine has none."""


class TensorRTLLMEngine:
    """`options`: arguments of `LLM`, as they are; `ray`: `{port, nodes, gpus_per_node}` of a cluster to head."""

    name = "tensorrt_llm"

    def __init__(self, options: dict[str, Any], ray: dict[str, int] | None = None) -> None:
        self.note = f"TensorRT-LLM, {options.get('model')}"
        self.state = EngineState()
        self._options = options
        self._ray = ray
        self._llm: Any = None
        self._watcher: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Loads in a thread, so that the process goes on reporting."""
        loop = asyncio.get_running_loop()
        if self._ray:
            await loop.run_in_executor(None, partial(ray_cluster.head, **self._ray))
        make = self._constructor()
        try:
            self._llm = await loop.run_in_executor(None, make)
        except Exception as error:
            raise LoadError(f"{type(error).__name__}: {error}") from error
        self._watcher = asyncio.create_task(self._watch())

    async def generate(self, prompt: str, sampling: Sampling) -> AsyncIterator[Piece]:
        try:
            result = self._llm.generate_async(prompt, self._parameters(sampling), streaming=True)
        except (ValueError, TypeError) as error:
            raise RequestError(str(error)) from error
        try:
            async for output in result:
                (sequence,) = output.outputs
                yield Piece(
                    text=sequence.text_diff,
                    tokens=len(sequence.token_ids_diff),
                    input_tokens=len(output.prompt_token_ids),
                    finish_reason=(sequence.finish_reason or "stop") if output.finished else None,
                    stop_reason=None if sequence.stop_reason is None else str(sequence.stop_reason),
                )
        finally:
            if not result.finished:
                result.abort()

    async def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        if self._llm is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._llm.shutdown)

    def _constructor(self) -> Callable[[], Any]:
        """Built engines have an LLM class of their own, which counts iterations without being asked."""
        options = dict(self._options)
        built = options.pop("backend", "pytorch") == "tensorrt"
        try:
            from tensorrt_llm import LLM, SamplingParams  # exists only in the pod's image

            if built:
                from tensorrt_llm._tensorrt_engine import LLM
        except ImportError as error:
            raise LoadError(f"TensorRT-LLM cannot be imported: {error}; use an image that holds it") from error
        self._sampling_params = SamplingParams
        if not built:
            options |= {"backend": "pytorch", "enable_iter_perf_stats": True}
        return partial(LLM, **options)

    def _parameters(self, sampling: Sampling) -> Any:
        wanted = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        return self._sampling_params(max_tokens=sampling.max_tokens, **given)

    async def _watch(self) -> None:
        """Follows the executor's iterations for as long as it lives."""
        while True:
            async for record in self._llm.get_stats_async(timeout=STATS_SECONDS):
                self._observe(record)
            # The iterator ends on its first idle second (and is empty before the first request).
            await asyncio.sleep(0.1)

    def _observe(self, record: dict[str, Any]) -> None:
        state = self.state
        cache = record.get("kvCacheStats") or {}
        batch = record.get("inflightBatchingStats") or {}
        used, room = cache.get("usedNumBlocks", 0), cache.get("maxNumBlocks", 0)
        state.steps += 1
        state.step_seconds += record.get("iterLatencyMS", 0.0) / 1000
        state.step_decodes += batch.get("numGenRequests", 0)
        state.step_prefill_tokens += batch.get("numCtxTokens", 0)
        state.step_context_tokens += used * cache.get("tokensPerBlock", 0)
        state.running = record.get("numActiveRequests", 0)
        state.waiting = record.get("numQueuedRequests", 0)
        state.kv_utilization = used / room if room else 0.0
