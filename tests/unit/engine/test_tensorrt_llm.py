"""The adapter to TensorRT-LLM's LLM API against a double with the published signatures.

Source of the signatures: github.com/NVIDIA/TensorRT-LLM, tests/unittest/api_stability/references_committed and
references (the calls that project promises and watches, read in versions from before and after release 1.2.1, which do
not differ here), tensorrt_llm/llmapi/llm.py, tensorrt_llm/executor/result.py and examples/ray_orchestrator; the
streaming call also at https://nvidia.github.io/TensorRT-LLM/1.2.1/examples/llm_inference_async_streaming.html. The
double binds every call to them, so a call that release 1.2.1 would not take fails here.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from berth.core.render import render_config_map
from berth.engine import contract
from berth.engine.bundle import MODEL_CONFIG, config_map_key
from berth.engine.engines import ray_cluster
from berth.engine.engines.base import LoadError, Piece, RequestError, Sampling
from berth.engine.engines.tensorrt_llm import TensorRTLLMEngine
from tests.unit.render import cases


def signature(*names: str, **defaults: Any) -> inspect.Signature:
    """Positional-or-keyword parameters."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    parameters += [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    return inspect.Signature(parameters)


SIGNATURES = {
    "LLM": signature(
        "model",
        tokenizer=None,
        tokenizer_mode="auto",
        skip_tokenizer_init=False,
        trust_remote_code=False,
        tensor_parallel_size=1,
        dtype="auto",
        revision=None,
        tokenizer_revision=None,
        # Of its many other arguments, which it takes as keywords, the ones that Berth uses.
        backend=None,
        pipeline_parallel_size=1,
        gpus_per_node=None,
        kv_cache_config=None,
        enable_chunked_prefill=False,
        max_batch_size=2048,
        max_num_tokens=8192,
        enable_iter_perf_stats=False,
        orchestrator_type=None,
    ),
    "LLM.generate_async": signature(
        "inputs",
        sampling_params=None,
        lora_request=None,
        prompt_adapter_request=None,
        streaming=False,
        kv_cache_retention_config=None,
        disaggregated_params=None,
    ),
    "LLM.get_stats_async": signature(timeout=2),
    "LLM.shutdown": signature(),
    "RequestOutput.abort": signature(),
    "SamplingParams": signature(
        max_tokens=32,
        temperature=None,
        top_k=None,
        top_p=None,
        frequency_penalty=None,
        presence_penalty=None,
        seed=None,
        stop=None,
    ),
}
RAY = {"port": 6379, "nodes": 2, "gpus_per_node": 8}
RECORD = {
    "iterLatencyMS": 20.0,
    "numActiveRequests": 3,
    "numQueuedRequests": 1,
    "kvCacheStats": {"usedNumBlocks": 10, "maxNumBlocks": 40, "tokensPerBlock": 32},
    "inflightBatchingStats": {"numGenRequests": 2, "numContextRequests": 1, "numCtxTokens": 500},
}


@dataclass
class CompletionOutput:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    text_diff: str = ""
    token_ids_diff: list[int] = field(default_factory=list)


class RequestOutput:
    """Yields itself once per token, as the original does."""

    prompt_token_ids = (1, 2, 3)

    def __init__(self, words: list[str]) -> None:
        self.outputs = [CompletionOutput()]
        self.finished = False
        self.aborted = False
        self._words = words

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        (sequence,) = self.outputs
        for number, word in enumerate(self._words):
            await asyncio.sleep(0)
            sequence.text_diff, sequence.token_ids_diff = word, [number]
            if number == len(self._words) - 1:
                self.finished, sequence.finish_reason = True, "length"
            yield self

    def abort(self, *args: Any, **kwargs: Any) -> None:
        SIGNATURES["RequestOutput.abort"].bind(*args, **kwargs)
        self.aborted = True


class LLM:
    """What the adapter is given instead of a GPU."""

    made: ClassVar[list[LLM]] = []
    fail: ClassVar[Exception | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = SIGNATURES["LLM"].bind(*args, **kwargs).arguments
        if LLM.fail:
            raise LLM.fail
        self.results: list[RequestOutput] = []
        self.parameters: dict[str, Any] = {}
        self.down = False
        self.records: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        LLM.made.append(self)

    def generate_async(self, *args: Any, **kwargs: Any) -> RequestOutput:
        given = SIGNATURES["LLM.generate_async"].bind(*args, **kwargs).arguments
        if given["inputs"] == "too long":
            raise ValueError("The sum of prompt length and max_tokens exceeds max_seq_len")
        assert given["streaming"]
        self.parameters = given["sampling_params"]
        self.results.append(RequestOutput(given["inputs"].split()))
        return self.results[-1]

    async def get_stats_async(self, *args: Any, **kwargs: Any) -> AsyncIterator[dict[str, Any]]:
        SIGNATURES["LLM.get_stats_async"].bind(*args, **kwargs)
        while not self.records.empty():
            yield self.records.get_nowait()

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        SIGNATURES["LLM.shutdown"].bind(*args, **kwargs)
        self.down = True


@pytest.fixture(autouse=True)
def tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt_llm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = lambda **given: SIGNATURES["SamplingParams"].bind(**given).arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_llm", module)
    monkeypatch.setattr(LLM, "fail", None)
    LLM.made.clear()


@pytest.fixture
async def engine() -> AsyncIterator[TensorRTLLMEngine]:
    engine = TensorRTLLMEngine({"model": "/weights", "tensor_parallel_size": 4, "kv_cache_config": {"dtype": "fp8"}})
    await engine.load()
    yield engine
    await engine.close()
    assert LLM.made[0].down


async def collect(engine: TensorRTLLMEngine, prompt: str, sampling: Sampling) -> list[Piece]:
    return [piece async for piece in engine.generate(prompt, sampling)]


async def test_every_option_reaches_the_llm_and_iterations_are_counted(engine: TensorRTLLMEngine) -> None:
    assert LLM.made[0].arguments == {
        "model": "/weights",
        "tensor_parallel_size": 4,
        "backend": "pytorch",
        "kv_cache_config": {"dtype": "fp8"},
        "enable_iter_perf_stats": True,
    }


@pytest.mark.parametrize("name", [name for name in cases.CASES if not name.startswith("simulated")])
def test_what_is_written_for_a_pod_is_what_the_llm_takes(name: str) -> None:
    text = render_config_map(cases.template(cases.CASES[name]))["data"][
        config_map_key(f"models/tensorrt_llm/{MODEL_CONFIG}")
    ]
    SIGNATURES["LLM"].bind(**json.loads(text)["llm"])


async def test_built_engines_have_their_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt_llm._tensorrt_engine")
    made: list[dict[str, Any]] = []
    module.LLM = lambda **options: made.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_llm._tensorrt_engine", module)
    engine = TensorRTLLMEngine({"model": "/weights", "backend": "tensorrt"})
    engine._watch = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    await engine.load()
    assert made == [{"model": "/weights"}]


async def test_a_ray_cluster_is_whole_before_the_llm_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ray"
    program.write_text(
        f"#!{sys.executable}\nimport sys; open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(contract.POD_IP, "10.0.0.7")
    monkeypatch.setattr(ray_cluster, "POLL", 0.0)
    alive = iter([1, 1, 2])
    ray = ModuleType("ray")
    ray.init = lambda **options: None  # type: ignore[attr-defined]
    ray.nodes = lambda: [{"Alive": True}] * next(alive) + [{"Alive": False}]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = TensorRTLLMEngine({"model": "/weights", "orchestrator_type": "ray"}, RAY)
    await engine.load()
    await engine.close()
    argv = (tmp_path / "argv").read_text()
    assert argv.startswith("start --head --port=6379 --num-gpus=8")
    assert argv.endswith("--node-ip-address=10.0.0.7")
    assert next(alive, None) is None
    assert LLM.made[0].arguments["orchestrator_type"] == "ray"


async def test_ray_that_does_not_start_is_a_failed_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match=r"Ray does not start: .*use an image"):
        await TensorRTLLMEngine({"model": "/weights"}, RAY).load()


async def test_pieces_are_what_came_since_the_last_one(engine: TensorRTLLMEngine) -> None:
    pieces = await collect(engine, "one two", Sampling(2))
    assert [(piece.text, piece.tokens, piece.input_tokens, piece.finish_reason) for piece in pieces] == [
        ("one", 1, 3, None),
        ("two", 1, 3, "length"),
    ]
    assert not LLM.made[0].results[0].aborted


async def test_only_what_was_asked_for_is_set(engine: TensorRTLLMEngine) -> None:
    await collect(engine, "one", Sampling(2))
    assert LLM.made[0].parameters == {"max_tokens": 2}
    await collect(engine, "one", Sampling(3, temperature=0.0, top_k=5, top_p=0.5, seed=7, stop=("x",)))
    assert LLM.made[0].parameters == {
        "max_tokens": 3,
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["x"],
    }


async def test_a_request_left_early_is_aborted(engine: TensorRTLLMEngine) -> None:
    pieces = engine.generate("one two three", Sampling(3))
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert LLM.made[0].results[0].aborted


async def test_a_request_it_does_not_take_is_the_clients_fault(engine: TensorRTLLMEngine) -> None:
    with pytest.raises(RequestError, match="exceeds max_seq_len"):
        await collect(engine, "too long", Sampling(3))


async def test_iterations_become_progress(engine: TensorRTLLMEngine) -> None:
    for _ in range(2):
        LLM.made[0].records.put_nowait(RECORD)
    async with asyncio.timeout(2):
        while engine.state.steps < 2:
            await asyncio.sleep(0.01)
    state = engine.state
    assert (state.running, state.waiting, state.kv_utilization) == (3, 1, 0.25)
    assert (state.step_decodes, state.step_prefill_tokens, state.step_context_tokens) == (4, 1000, 640)
    assert state.step_seconds == pytest.approx(0.04)


async def test_a_failed_load_keeps_the_engines_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "fail", RuntimeError("CUDA out of memory"))
    with pytest.raises(LoadError, match="RuntimeError: CUDA out of memory"):
        await TensorRTLLMEngine({"model": "/weights"}).load()
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(LoadError, match=r"cannot be imported.*use an image that holds it"):
        await TensorRTLLMEngine({"model": "/weights"}).load()
