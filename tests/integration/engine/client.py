"""A gRPC client as applications use it: tritonclient, one stream, one channel kept."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as grpcclient
from tritonclient.utils import np_to_triton_dtype

from berth.local.demo.client import ERRORS_WITH_CODES
from tests.integration.engine.pod import Pod

TYPES: dict[type, Any] = {bool: np.bool_, int: np.int32, float: np.float32, str: np.object_}


@dataclass
class Answer:
    """What came back for one request."""

    words: list[str] = field(default_factory=list)
    error: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)

    def take(self, result: grpcclient.InferResult) -> None:
        self.arrivals.append(time.monotonic())
        for output in result.get_response().outputs:
            value = result.as_numpy(output.name)[0]
            self.outputs[output.name] = value.decode() if isinstance(value, bytes) else int(value)
            if output.name == "text_output":
                self.words += value.decode().split()


def inputs(prompt: str | None, **parameters: Any) -> list[grpcclient.InferInput]:
    values = {"streaming": True, **parameters}
    if prompt is not None:
        values["text_input"] = prompt
    made = []
    for name, value in values.items():
        array = np.array([value], dtype=TYPES[type(value)])
        tensor = grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


async def ask(
    pod: Pod,
    prompt: str | None,
    *,
    client: grpcclient.InferenceServerClient | None = None,
    name: str = "",
    codes: bool = False,
    **parameters: Any,
) -> Answer:
    """One streamed request to its end. `codes`: errors have gRPC codes, which Triton's streams have only if asked."""
    if client is None:
        async with grpcclient.InferenceServerClient(pod.grpc) as own:
            return await ask(pod, prompt, client=own, name=name, codes=codes, **parameters)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": "tensorrt_llm",
            "inputs": inputs(prompt, **parameters),
            "request_id": name,
            "enable_empty_final_response": True,
        }

    answer = Answer()
    try:
        async for result, error in client.stream_infer(requests(), headers=ERRORS_WITH_CODES if codes else None):
            if error:
                answer.error = str(error)
            else:
                answer.take(result)
    except grpc.RpcError as error:
        answer.error = str(error)
    return answer
