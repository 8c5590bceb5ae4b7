"""A well-behaved client: gRPC streams over a few connections that are kept, one retry when a server goes away.

Requests take the connections in turn. A request whose server went away or drains (UNAVAILABLE) is sent once more, from
its beginning, over a new connection, which takes the place of the old one. Its times are those of a user who watches:
from the first sending, to the first token of all, to the last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from berth.labels import MODEL_NAME
from berth.local.demo.trace import Request

OWN_CONNECTION: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
)
"""Otherwise all channels of a process to one address share a connection, and one that was refused waits for minutes;
and without keepalive a request to a machine that fell silent waits for ever, whatever the Service has learned. The time
of the ping is gRPC's own: without it a minute passes, whatever the time of the keepalive."""
ERRORS_WITH_CODES: Final = {"triton_grpc_error": "true"}
"""Asks Triton to end a stream with an error's code; otherwise a stream has only words, and UNAVAILABLE is lost."""
RETRY_PAUSE: Final = 1.0
"""Seconds; a Service needs about so long to forget a pod that died."""
ANSWER_SECONDS: Final = 120.0


class Unavailable(Exception):
    """The server went away or refuses new requests: worth another attempt."""


class Failed(Exception):
    """The request cannot be answered."""


@dataclass
class Outcome:
    """What became of one request; moments in seconds on the clock of the replay."""

    request: Request
    sent: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    broken_at: float | None = None
    """When the first attempt ended without its answer."""
    resumed_at: float | None = None
    """When the first token of the second attempt came."""
    error: str = ""

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first is None else self.first - self.sent

    @property
    def time_per_output_token(self) -> float | None:
        """Seconds, (last - first) / (tokens - 1); None for answers of one token."""
        if self.first is None or self.last is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1)


@dataclass
class Replay:
    """Sends `requests` at their times to `address` (host:port of a Service); `outcomes` grows as they end."""

    address: str
    requests: Sequence[Request]
    connections: int = 8
    longest: int = 1024
    """Tokens that a client asks for at most: what the engine reserves, whatever the answer's own length."""
    outcomes: list[Outcome] = field(default_factory=list)
    in_flight: int = 0
    tokens: int = 0
    _started: float = 0.0
    _stopped: bool = False

    def now(self) -> float:
        """Seconds since the beginning of the replay."""
        return time.monotonic() - self._started

    def stop(self) -> None:
        """Nothing more is sent; what was sent goes on."""
        self._stopped = True

    async def run(self) -> None:
        """Returns when every request has ended."""
        self._started = time.monotonic()
        connections = [_Connection(self.address) for _ in range(self.connections)]
        try:
            async with asyncio.TaskGroup() as sending:
                for number, request in enumerate(self.requests):
                    await asyncio.sleep(max(0.0, request.at - self.now()))
                    if self._stopped:
                        break
                    sending.create_task(self._serve(connections[number % len(connections)], request))
        finally:
            for connection in connections:
                await connection.close()

    async def _serve(self, connection: _Connection, request: Request) -> None:
        outcome, client = Outcome(request, sent=self.now()), connection.client
        self.in_flight += 1
        try:
            try:
                await self._attempt(client, outcome)
            except Unavailable:
                outcome.broken_at, outcome.tokens = self.now(), 0
                connection.renew(client)
                await asyncio.sleep(RETRY_PAUSE)
                await self._attempt(connection.client, outcome)
        except (Unavailable, Failed) as error:
            outcome.error = str(error)
        finally:
            self.in_flight -= 1
            self.outcomes.append(outcome)

    async def _attempt(self, client: Any, outcome: Outcome) -> None:
        """One stream from beginning to end. Raises Unavailable or Failed."""
        stream = client.stream_infer(
            _body(outcome.request, self.longest), stream_timeout=ANSWER_SECONDS, headers=ERRORS_WITH_CODES
        )
        try:
            async for result, error in stream:
                if error is not None:
                    raise _translated(error)
                if words := _words(result):
                    outcome.last = self.now()
                    outcome.first = outcome.first or outcome.last
                    if outcome.broken_at is not None:
                        outcome.resumed_at = outcome.resumed_at or outcome.last
                    outcome.tokens += words
                    self.tokens += words
        except (InferenceServerException, grpc.RpcError) as error:
            raise _translated(error) from error
        if outcome.tokens != outcome.request.output_tokens:
            raise Failed(f"{outcome.tokens} of {outcome.request.output_tokens} tokens came")


class _Connection:
    """One connection that is kept; a new one takes its place when its server goes away."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._all = [self._new()]

    @property
    def client(self) -> Any:
        return self._all[-1]

    def renew(self, broken: Any) -> None:
        """Unless somebody else has noticed before. What still runs over the old one goes on."""
        if broken is self.client:
            self._all.append(self._new())

    async def close(self) -> None:
        for client in self._all:
            await client.close()

    def _new(self) -> Any:
        return triton.InferenceServerClient(self._address, channel_args=OWN_CONNECTION)


def _words(result: Any) -> int:
    """Tokens of one piece of the answer; the last piece is empty."""
    text = result.as_numpy("text_output")
    return 0 if text is None else len(text[0].split())


def _translated(error: Exception) -> Unavailable | Failed:
    code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
    status = str(getattr(error, "status", lambda: "")() or "")
    gone = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) or "UNAVAILABLE" in status
    text = " ".join(str(error).split())[:200]
    return Unavailable(text) if gone or "[StatusCode.UNAVAILABLE]" in text else Failed(text)


async def _body(request: Request, longest: int) -> AsyncIterator[dict[str, Any]]:
    """A prompt of as many words as it had tokens, and a stop word where the real answer ended."""
    inputs = {
        "text_input": np.array([("token " * request.input_tokens).encode()], dtype=np.object_),
        "streaming": np.array([True]),
        "sampling_param_max_tokens": np.array([max(longest, request.output_tokens)], dtype=np.int32),
        "sampling_param_stop": np.array([f"w{request.output_tokens + 1}".encode()], dtype=np.object_),
    }
    tensors = []
    for name, value in inputs.items():
        tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    yield {"model_name": MODEL_NAME, "inputs": tensors, "enable_empty_final_response": True}
