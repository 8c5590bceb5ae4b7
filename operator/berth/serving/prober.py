"""How Berth talks to the leader of a group: a token from Triton, the launcher's own account, an order to drain.

Only addresses of pods whose owner was verified are ever passed in; every call is bounded in time and size and follows
no redirects. What comes back is untrusted: numbers are clamped, text is cut.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import aiohttp
import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from berth.core.groups import ROUTING_SETTLE_SECONDS
from berth.engine import contract
from berth.errors import Transient

MAX_BODY_BYTES = 64 * 1024
MAX_IN_FLIGHT = 1_000_000
CANARY_PROMPT = "berth"
_NO_MEMORY = (("grpc.use_local_subchannel_pool", 1),)
"""Without it channels to one address share a back-off of up to two minutes: a leader that was refused once while it
started would be called dead long after it serves."""


@dataclass(frozen=True)
class Progress:
    """The launcher's account of its engine; `steps` and `tokens` never decrease within one life of the process."""

    in_flight: int
    """Requests accepted and not yet answered in full."""
    steps: int
    tokens: int
    draining: bool = False
    """It takes no new requests."""


class Prober(Protocol):
    """What the monitor needs of a leader at `address` (IP). Every method raises Transient with the reason."""

    async def token(self, address: str) -> None:
        """Return once the leader has produced one token."""
        ...

    async def progress(self, address: str) -> Progress:
        """What the launcher says of the engine. Cheap: one small page."""
        ...

    async def drain(self, address: str) -> None:
        """Ask the leader to take nothing new and to close connections as they fall idle.

        Not at once: what Services still send it while they learn of the cut is answered, for who repeats nothing.
        """
        ...

    async def resume(self, address: str) -> None:
        """Ask a leader that drains to take requests again."""
        ...


class TritonProber:
    """The real thing: gRPC to Triton, HTTP to the launcher's page."""

    def __init__(self, timeout_seconds: float = 5.0, page_seconds: float = 2.0) -> None:
        self._timeout = timeout_seconds
        self._page_seconds = page_seconds
        self._session: aiohttp.ClientSession | None = None

    async def token(self, address: str) -> None:
        """Reads the stream to its end: Triton (2.51) keeps what belongs to one that is cut off as its last answer goes,
        and waits for it in vain, for its whole exit time-out, when it is stopped.
        """
        client = triton.InferenceServerClient(url=f"{address}:{contract.PORT_GRPC}", channel_args=_NO_MEMORY)
        answered = False
        try:
            async for result, error in client.stream_infer(_canary(), stream_timeout=self._timeout):
                if error is not None:
                    raise Transient(f"no token from {address}: {_short(error)}")
                answered = answered or result.as_numpy("text_output") is not None
        except (InferenceServerException, grpc.RpcError) as error:
            if not answered:
                raise Transient(f"no token from {address}: {_short(error)}") from error
        finally:
            await client.close()
        if not answered:
            raise Transient(f"no token from {address}: the stream ended without an answer")

    async def progress(self, address: str) -> Progress:
        state = await self._request("GET", address, "/state")
        in_flight, steps, tokens = (state.get(name) for name in ("in_flight", "steps", "tokens"))
        if not (_is_count(in_flight) and _is_count(steps) and _is_count(tokens)):
            raise Transient(f"launcher of {address} does not say what its engine does")
        return Progress(min(in_flight, MAX_IN_FLIGHT), steps, tokens, state.get("draining") is True)

    async def drain(self, address: str) -> None:
        await self._request("POST", address, f"/drain?grace={ROUTING_SETTLE_SECONDS:g}")

    async def resume(self, address: str) -> None:
        await self._request("DELETE", address, "/drain")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _request(self, method: str, address: str, path: str) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._page_seconds))
        url = f"http://{address}:{contract.PORT_PAGE}{path}"
        try:
            async with self._session.request(method, url, allow_redirects=False) as response:
                body = await response.content.read(MAX_BODY_BYTES)
                if response.status >= 300:
                    raise Transient(f"launcher of {address} answered {response.status} to {method} {path}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Transient(f"launcher of {address} cannot be reached: {_short(error)}") from error
        try:
            parsed = json.loads(body)
        except ValueError as error:
            raise Transient(f"launcher of {address} did not answer in JSON") from error
        return parsed if isinstance(parsed, dict) else {}


async def _canary() -> AsyncIterator[dict[str, Any]]:
    inputs = [
        _input("text_input", np.array([CANARY_PROMPT.encode()], dtype=np.object_)),
        _input("streaming", np.array([True])),
        _input("sampling_param_max_tokens", np.array([1], dtype=np.int32)),
    ]
    yield {"model_name": contract.MODEL_NAME, "inputs": inputs, "request_id": f"{contract.CANARY_ID}-operator"}


def _input(name: str, value: np.ndarray[Any, Any]) -> Any:
    tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(error: BaseException) -> str:
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return (text or type(error).__name__)[:200]
