"""The Triton Python model: requests in, text out, on one engine. Runs in Triton's stub process.

Threads: Triton calls `execute` and never waits; the engine lives on an asyncio loop in a thread of its own; a second
thread sends the answers, because sending waits for the server, and asks in between who has cancelled; a third reports
to the launcher, so that a frozen engine still reports and a frozen process does not.

Invariant: every request that came in gets exactly one final answer, whatever happens to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from berth.engine import contract
from berth.engine.engines.base import Engine, LoadError, Piece, RequestError
from berth.engine.engines.faults import FaultFile
from berth.engine.engines.simulated import SimulatedEngine
from berth.engine.engines.tensorrt_llm import TensorRTLLMEngine
from berth.engine.exchange import Reader, Writer
from berth.engine.meter import Failure, Meter, Ticket
from berth.engine.request import PREFIX, Limits, Request, parse

REPORT_SECONDS = 0.25
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
DRAINING = "this group is draining: reconnect and send the request again"


class TritonPythonModel:
    """Names and calls are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the engine. Raises TritonModelException, which ends the server; the launcher reads why in the state."""
        run_dir = Path(os.environ[contract.RUN_DIR])
        self._meter = Meter(time.monotonic)
        self._control = Reader(run_dir / contract.CONTROL_FILE)
        self._state = Writer(run_dir / contract.STATE_FILE)
        self._phase, self._reason = "loading", ""
        self._engine: Engine | None = None
        self._active: dict[int, _Active] = {}
        self._answers: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._parent = os.getppid()
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("engine", self._loop.run_forever), ("answers", self._send), ("report", self._report))
        ]
        for thread in self._threads:
            thread.start()
        try:
            config = read_config(args)
            self._limits = Limits.of(config.get("limits", {}))
            self._engine = build_engine(config, self._limits, run_dir, self._member_lost)
            asyncio.run_coroutine_threadsafe(self._engine.load(), self._loop).result()
        except Exception as error:
            self._phase = "failed"
            self._reason = (
                str(error) if isinstance(error, LoadError | ValueError) else f"{type(error).__name__}: {error}"
            )
            self._write_state()
            raise pb_utils.TritonModelException(f"cannot load: {self._reason}") from error
        self._phase = "ready"
        self._write_state()

    def execute(self, batch: list[Any]) -> None:
        """Hands the requests to the loop; answers go through their senders."""
        for request in batch:
            sender = Outlet(request.get_response_sender())
            try:
                self._accept(request, sender)
            except Exception as error:
                self._answer_error(sender, error)

    def finalize(self) -> None:
        """Ends the requests still here with an error, then the engine and the threads."""
        self._ended.set()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=10)
        self._answers.put(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(timeout=5)
        self._loop.close()

    # --- requests ----------------------------------------------------------------------------------------------------
    def _accept(self, request: Any, sender: Outlet) -> None:
        inputs = read_inputs(request)
        name = request.request_id()
        if inputs.get("stop"):
            self._stop(name, sender)
            return
        canary = name.startswith(contract.CANARY_ID)
        until = self._control.read().get("accept_until")
        if until is not None and not canary and time.monotonic() >= until:
            self._meter.refuse()
            raise Draining(DRAINING)
        ticket = self._meter.accept(canary=canary)
        asyncio.run_coroutine_threadsafe(self._serve(name, inputs, sender, ticket), self._loop)

    async def _serve(self, name: str, inputs: dict[str, Any], sender: Outlet, ticket: Ticket) -> None:
        task = asyncio.current_task()
        assert task is not None
        active = _Active(name, sender, task)
        self._active[id(active)] = active
        failure: Failure | None = None
        try:
            await self._generate(parse(inputs, self._limits), sender, ticket)
        except RequestError as error:
            failure = "invalid"
            self._answer_error(sender, error)
        except asyncio.CancelledError:
            failure = "cancelled"
            self._answer_error(sender, Cancelled("the request was cancelled"))
        except Exception as error:
            failure = "engine"
            self._answer_error(sender, error)
        finally:
            del self._active[id(active)]
            self._meter.close(ticket, failure)

    async def _generate(self, request: Request, sender: Outlet, ticket: Ticket) -> None:
        assert self._engine is not None
        ticket.requested_tokens = request.sampling.max_tokens
        texts = [request.prompt] if request.echo else []
        pieces = self._engine.generate(request.prompt, request.sampling)
        try:
            async for piece in pieces:
                ticket.input_tokens = piece.input_tokens
                ticket.scheduled = ticket.scheduled or piece.scheduled
                self._meter.tokens(ticket, piece.tokens)
                texts.append(piece.text)
                if request.streaming or piece.finish_reason:
                    self._answer(sender, request, "".join(texts), piece, ticket)
                    texts.clear()
                if piece.finish_reason:
                    return
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # generators have it; ends the request in the engine
        raise RuntimeError("the engine ended the answer without a reason")

    def _stop(self, name: str, sender: Outlet) -> None:
        """`stop` with a request id cancels the requests of that id; the answer says how many."""
        if not name:
            raise RequestError("stop needs the id of the request that is to end")
        found = [active for active in list(self._active.values()) if active.name == name]
        for active in found:
            self._loop.call_soon_threadsafe(active.task.cancel)
        response = pb_utils.InferenceResponse([text_tensor("text_output", f"{len(found)} requests ended")])
        self._answers.put(lambda: sender.send(response, flags=FINAL))

    # --- answers -----------------------------------------------------------------------------------------------------
    def _answer(self, sender: Outlet, request: Request, text: str, piece: Piece, ticket: Ticket) -> None:
        output = [text_tensor("text_output", text)]
        if piece.finish_reason and request.reasons:
            output.append(text_tensor("finish_reason", piece.finish_reason))
        if piece.finish_reason and request.stop_reasons:
            output.append(text_tensor("stop_reason", piece.stop_reason or ""))
        if piece.finish_reason and request.times:
            output += [pb_utils.Tensor(name, np.array([value], np.int64)) for name, value in times(ticket).items()]
        flags = FINAL if piece.finish_reason else 0
        response = pb_utils.InferenceResponse(output)
        self._answers.put(lambda: sender.send(response, flags=flags))

    def _answer_error(self, sender: Outlet, error: Exception) -> None:
        response = pb_utils.InferenceResponse(error=triton_error(error))
        self._answers.put(lambda: sender.send(response, flags=FINAL))

    def _send(self) -> None:
        while (send := self._answers.get()) is not None:
            try:
                send()
            except Exception as error:
                pb_utils.Logger.log_warn(f"an answer could not be sent: {error}")

    # --- reporting ---------------------------------------------------------------------------------------------------
    def _report(self) -> None:
        while not self._ended.wait(REPORT_SECONDS):
            if os.getppid() != self._parent:
                os._exit(1)  # the server is gone; nobody else would end this process
            self._meter.set_objectives(self._control.read().get("objectives") or {})
            self._write_state()
            for active in list(self._active.values()):
                if not active.question:  # a slow server still has the last one to answer
                    active.question = True
                    self._answers.put(partial(self._end_if_cancelled, active))

    def _end_if_cancelled(self, active: _Active) -> None:
        active.question = False
        if active.sender.is_cancelled():
            self._loop.call_soon_threadsafe(active.task.cancel)

    def _member_lost(self) -> bool:
        return bool(self._control.read().get("member_lost"))

    def _write_state(self) -> None:
        engine = self._engine
        self._state.write(
            {
                "written": time.monotonic(),
                "pid": os.getpid(),
                "phase": self._phase,
                "reason": self._reason,
                "control": self._control.read().get("number", 0),
                "engine": engine.name if engine else "",
                "note": engine.note if engine else "",
                **(self._meter.document(engine.state) if engine else {}),
            }
        )

    async def _close(self) -> None:
        tasks = [active.task for active in self._active.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._engine:
            await self._engine.close()


class Outlet:
    """The way back to one client, used by the thread that sends and by no other.

    Once a final answer is on its way the server has freed what `is_cancelled` looks at, and a question that crosses it
    ends the whole server with SIGSEGV (Triton 2.51).
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._ended = False

    def send(self, response: Any, flags: int = 0) -> None:
        self._ended = self._ended or flags == FINAL
        self._sender.send(response, flags=flags)

    def is_cancelled(self) -> bool:
        return not self._ended and bool(self._sender.is_cancelled())


class _Active:
    """A request that is being served."""

    __slots__ = ("name", "question", "sender", "task")

    def __init__(self, name: str, sender: Outlet, task: asyncio.Task[None]) -> None:
        self.name = name
        self.sender = sender
        self.task = task
        self.question = False
        """Whether its client is gone is about to be asked."""


class Draining(Exception):
    """The group takes no new requests."""


class Cancelled(Exception):
    """The client went away or asked to stop."""


def triton_error(error: Exception) -> Any:
    """What the client sees; an unexpected error with its type."""
    match error:
        case RequestError():
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        case Draining():
            return pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
        case Cancelled():
            return pb_utils.TritonError(str(error), pb_utils.TritonError.CANCELLED)
    return pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def text_tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=object))


def times(ticket: Ticket) -> dict[str, int]:
    """Moments of one request in nanoseconds of CLOCK_MONOTONIC, under the names of TensorRT-LLM's Triton model."""
    moments = {
        "arrival_time_ns": ticket.arrived,
        "first_scheduled_time_ns": ticket.scheduled,
        "first_token_time_ns": ticket.first,
        "last_token_time_ns": ticket.last,
    }
    return {name: int(moment * 1e9) for name, moment in moments.items() if moment is not None}


def read_inputs(request: Any) -> dict[str, Any]:
    """Tensor name -> str, bool, number, or tuple of str for the stop words. Raises RequestError."""
    inputs: dict[str, Any] = {}
    for tensor in request.inputs():
        values = tensor.as_numpy().reshape(-1).tolist()
        try:
            values = [value.decode() if isinstance(value, bytes) else value for value in values]
        except UnicodeDecodeError as error:
            raise RequestError(f"{tensor.name()} is not UTF-8: {error.reason} at byte {error.start}") from error
        if tensor.name() == PREFIX + "stop":
            inputs[tensor.name()] = tuple(values)
        elif len(values) != 1:
            raise RequestError(f"{tensor.name()} has {len(values)} values: send one")
        else:
            inputs[tensor.name()] = values[0]
    return inputs


def read_config(args: dict[str, str]) -> dict[str, Any]:
    """The model's configuration, with what the environment lays over it. Raises ValueError."""
    beside = Path(args["model_repository"]) / args["model_version"] / "model.yaml"
    path = Path(os.environ.get(contract.MODEL_CONFIG) or beside)
    try:
        config = json.loads(path.read_text())
        overlay = json.loads(os.environ.get(contract.SIMULATED) or "{}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} or {contract.SIMULATED} is no JSON object: {error}") from error
    if not isinstance(config, dict) or not isinstance(overlay, dict):
        raise ValueError(f"{path} and {contract.SIMULATED} must be JSON objects")
    if overlay:
        config["simulated"] = {**config.get("simulated", {}), **overlay}
    return config


def build_engine(config: dict[str, Any], limits: Limits, run_dir: Path, member_lost: Callable[[], bool]) -> Engine:
    """The engine that the configuration names. Raises ValueError."""
    match config.get("engine"):
        case "simulated":
            faults = os.environ.get(contract.FAULT_FILE) or run_dir / contract.DEFAULT_FAULT_FILE
            return SimulatedEngine(
                config.get("simulated", {}),
                faults=FaultFile(Path(faults)),
                max_input_tokens=limits.max_input_tokens,
                pool=os.environ.get(contract.POOL, ""),
                member_lost=member_lost,
            )
        case "tensorrt_llm":
            return TensorRTLLMEngine(config.get("llm", {}), config.get("ray"))
        case other:
            raise ValueError(f"engine is {other!r}: use simulated or tensorrt_llm")
