"""The Triton model with a double of Triton's Python API: one final answer per request, whatever happens."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from berth.engine import contract
from berth.engine.control import Control
from berth.engine.exchange import Reader

FINAL = 1
SIMULATED = {
    "parameters_b": 8.03,
    "precision": "bf16",
    "gpu": "H100-SXM-80",
    "weight_gib": 15.0,
    "kv_bytes_per_token": 131072,
    "load_seconds": 0,
    "time_scale": 5,
}


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError(Exception):
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = range(4)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.error = error
        self.outputs = {each.name(): each.as_numpy()[0] for each in output_tensors or []}


class Sender:
    """Collects the answers of one request."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.finals = 0
        self.cancelled = False
        self.questions = self.late_questions = 0
        self.threads: set[int] = set()

    def send(self, response: Response, flags: int = 0) -> None:
        assert not self.finals, "an answer after the final one"
        self.threads.add(threading.get_ident())
        self.responses.append(response)
        self.finals += flags == FINAL

    def is_cancelled(self) -> bool:
        self.threads.add(threading.get_ident())
        self.questions += 1
        self.late_questions += self.finals
        return self.cancelled

    @property
    def text(self) -> str:
        return b"".join(each.outputs["text_output"] for each in self.responses if each.outputs).decode()

    @property
    def error(self) -> TritonError | None:
        return self.responses[-1].error


class Request:
    def __init__(self, name: str = "", **inputs: Any) -> None:
        self._name = name
        self._inputs = inputs
        self.sender = Sender()

    def request_id(self) -> str:
        return self._name

    def inputs(self) -> list[Tensor]:
        return [
            Tensor(name, np.array(value if isinstance(value, list) else [value], dtype=object))
            for name, value in self._inputs.items()
        ]

    def get_response_sender(self) -> Sender:
        return self.sender


class Logger:
    @staticmethod
    def log_warn(message: str) -> None:
        raise AssertionError(message)


class Bench:
    """A loaded model and its files."""

    def __init__(self, module: ModuleType, directory: Path) -> None:
        self.directory = directory
        self.control = Control(directory / contract.CONTROL_FILE)
        self._reader = Reader(directory / contract.STATE_FILE)
        self.model = module.TritonPythonModel()
        self._loaded = True

    def load(self, **config: Any) -> Bench:
        document = {"engine": "simulated", "simulated": SIMULATED, **config}
        (self.directory / "1").mkdir(exist_ok=True)
        (self.directory / "1" / "model.yaml").write_text(json.dumps(document))
        self.model.initialize({"model_repository": str(self.directory), "model_version": "1"})
        return self

    def unload(self) -> None:
        if self._loaded:
            self.model.finalize()
        self._loaded = False

    def ask(self, name: str = "", **inputs: Any) -> Sender:
        request = Request(name, **{"text_input": b"a b c", **inputs})
        self.model.execute([request])
        return request.sender

    def answer(self, name: str = "", **inputs: Any) -> Sender:
        sender = self.ask(name, **inputs)
        until(lambda: sender.finals)
        return sender

    def state(self) -> dict[str, Any]:
        return self._reader.read()


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    double = ModuleType("triton_python_backend_utils")
    vars(double).update(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        TritonError=TritonError,
        TritonModelException=TritonError,
        InferenceResponse=Response,
        Tensor=Tensor,
        Logger=Logger,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", double)
    monkeypatch.delitem(sys.modules, "berth.engine.model", raising=False)
    monkeypatch.setenv(contract.RUN_DIR, str(tmp_path))
    module = importlib.import_module("berth.engine.model")
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.02)
    bench = Bench(module, tmp_path)
    yield bench
    bench.unload()
    monkeypatch.delitem(sys.modules, "berth.engine.model")


def test_streams_pieces_and_ends_with_one_final(bench: Bench) -> None:
    sender = bench.load().answer(streaming=True, sampling_param_max_tokens=4, return_finish_reason=True)
    assert (sender.text, len(sender.responses), sender.finals) == ("w1 w2 w3 w4", 4, 1)
    assert sender.responses[-1].outputs["finish_reason"] == b"length"
    assert "finish_reason" not in sender.responses[0].outputs


def test_without_streaming_the_answer_comes_whole(bench: Bench) -> None:
    sender = bench.load().answer(sampling_param_max_tokens=4, sampling_param_exclude_input_from_output=False)
    assert (sender.text, len(sender.responses)) == ("a b cw1 w2 w3 w4", 1)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"text_input": b""}, TritonError.INVALID_ARG, "text_input is missing or empty"),
        ({"text_input": b"\xff"}, TritonError.INVALID_ARG, "text_input is not UTF-8"),
        ({"text_input": [b"a", b"b"]}, TritonError.INVALID_ARG, "text_input has 2 values: send one"),
        ({"sampling_param_max_tokens": 10**6}, TritonError.INVALID_ARG, "give a number from 1 to 1024"),
        ({"stop": True}, TritonError.INVALID_ARG, "stop needs the id"),
    ],
)
def test_bad_requests_get_their_error_and_a_final(bench: Bench, inputs: dict[str, Any], code: int, words: str) -> None:
    sender = bench.load().answer(**inputs)
    assert sender.error is not None
    assert (sender.error.code, words in sender.error.message) == (code, True)
    until(lambda: bench.state()["in_flight"] == 0)


def test_a_failing_engine_is_an_internal_error(bench: Bench) -> None:
    (bench.directory / "faults.json").write_text('{"errors": true}')
    sender = bench.load().answer()
    assert sender.error is not None
    assert (sender.error.code, sender.error.message[:13]) == (TritonError.INTERNAL, "RuntimeError:")
    until(lambda: bench.state()["failures"]["engine"] == 1)


def test_a_client_that_goes_away_ends_its_request(bench: Bench) -> None:
    bench.load(simulated={**SIMULATED, "time_scale": 0.1})
    sender = bench.ask(streaming=True, sampling_param_max_tokens=1000)
    until(lambda: bench.state()["running"] == 1)
    sender.cancelled = True
    until(lambda: sender.finals)
    assert sender.error is not None
    assert sender.error.code == TritonError.CANCELLED
    until(lambda: (bench.state()["in_flight"], bench.state()["running"]) == (0, 0))


def test_a_request_that_is_over_is_never_asked_about(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(bench.model).__module__], "REPORT_SECONDS", 0.0005)
    bench.load(simulated={**SIMULATED, "time_scale": 50})
    senders = [bench.ask(streaming=True, sampling_param_max_tokens=1 + number % 7) for number in range(300)]
    until(lambda: all(sender.finals for sender in senders))
    bench.unload()
    assert sum(sender.questions for sender in senders) > 0
    assert not [sender for sender in senders if sender.late_questions], "Triton's server dies of it"
    assert len(set().union(*(sender.threads for sender in senders))) == 1, "a question never crosses an answer"


def test_stop_ends_all_requests_of_a_name(bench: Bench) -> None:
    bench.load(simulated={**SIMULATED, "time_scale": 0.1})
    named = [bench.ask("mine", sampling_param_max_tokens=1000) for _ in range(2)]
    other = bench.ask("other", sampling_param_max_tokens=1)
    until(lambda: bench.state()["in_flight"] >= 2)
    assert bench.answer("mine", stop=True).text == "2 requests ended"
    until(lambda: all(sender.finals for sender in (*named, other)))
    assert other.text == "w1"


def test_draining_refuses_all_but_canaries(bench: Bench) -> None:
    bench.load()
    bench.control.drain(0.0)
    refused = bench.answer()
    assert refused.error is not None
    assert (refused.error.code, refused.error.message[:22]) == (TritonError.UNAVAILABLE, "this group is draining")
    assert bench.answer(contract.CANARY_ID, sampling_param_max_tokens=1).text == "w1"
    until(lambda: bench.state()["control"] == 1)
    bench.control.resume()
    assert bench.answer(sampling_param_max_tokens=1).text == "w1"
    until(lambda: bench.state()["failures"]["draining"] == 1)


def test_objectives_become_edges(bench: Bench) -> None:
    bench.load().control.set_objectives({"time_to_first_token": 0.123})
    until(lambda: 0.123 in bench.state()["histograms"]["first_token"]["edges"])


def test_requests_in_flight_get_an_answer_when_the_model_is_unloaded(bench: Bench) -> None:
    bench.load(simulated={**SIMULATED, "time_scale": 0.1})
    sender = bench.ask(sampling_param_max_tokens=1000)
    until(lambda: bench.state()["running"] == 1)
    bench.unload()
    assert sender.finals == 1


@pytest.mark.parametrize(
    ("config", "overlay", "words"),
    [
        ({"engine": "vllm"}, "", "engine is 'vllm': use simulated or tensorrt_llm"),
        ({"limits": {"max_output_tokens": 0}}, "", "limits.max_output_tokens is 0"),
        ({}, '{"precision": "fp3"}', "precision 'fp3' is unknown"),
        ({}, "[]", "must be JSON objects"),
        ({}, "{", "is no JSON object"),
    ],
)
def test_a_failed_load_tells_the_launcher_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], overlay: str, words: str
) -> None:
    monkeypatch.setenv(contract.SIMULATED, overlay)
    with pytest.raises(TritonError):
        bench.load(**config)
    assert bench.state()["phase"] == "failed"
    assert words in bench.state()["reason"]
