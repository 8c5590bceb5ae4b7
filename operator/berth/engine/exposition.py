"""The launcher's metrics page: the model's document as Prometheus text. Pure; names as in docs/designs/006."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

HISTOGRAMS: Final = {
    "first_token": ("trtllm_time_to_first_token_seconds", "From arrival to the first token"),
    "per_token": ("trtllm_time_per_output_token_seconds", "Per request: (last - first token) / (tokens - 1)"),
    "end_to_end": ("trtllm_e2e_request_latency_seconds", "From arrival to the final answer"),
    "queue": ("trtllm_request_queue_time_seconds", "From arrival until the engine started on the request"),
    "input": ("nv_llm_input_token_len", "Prompt tokens of a request"),
    "output": ("nv_llm_output_token_len", "Generated tokens of a request"),
}
STEP_SUMS: Final = {
    "seconds": "Time in engine iterations",
    "decodes": "Requests that were decoding, summed over iterations",
    "context_tokens": "Tokens in the KV cache, summed over iterations",
    "prefill_tokens": "Prompt tokens processed",
}


def render(state: dict[str, Any], *, serving: bool, draining: bool, now: float, wall: float) -> str:
    """`now` is the clock of `state` (monotonic), `wall` the same moment in Unix time."""
    return "\n".join(_lines(state, serving, draining, now, wall)) + "\n"


def _lines(state: dict[str, Any], serving: bool, draining: bool, now: float, wall: float) -> Iterator[str]:
    yield from _single("berth_serving", "gauge", "1 while the group takes requests", float(serving))
    yield from _single("berth_draining", "gauge", "1 while no new requests are taken", float(draining))
    if "histograms" not in state:
        return
    for key, (name, about) in HISTOGRAMS.items():
        yield from _histogram(name, about, state["histograms"][key])
    squares = state["squares"]
    yield from _single("berth_input_tokens_squared_total", "counter", "Sum of squared prompt lengths", squares["input"])
    yield from _single(
        "berth_output_tokens_squared_total", "counter", "Sum of squared answer lengths", squares["output"]
    )
    yield from _single(
        "berth_requested_tokens_total", "counter", "Sum of requested maximum output", squares["requested"]
    )
    yield from _single("trtllm_num_requests_running", "gauge", "Requests the engine works on", state["running"])
    yield from _single("trtllm_num_requests_waiting", "gauge", "Requests waiting for room", state["waiting"])
    yield from _single("trtllm_kv_cache_utilization", "gauge", "Share of the KV cache in use", state["kv_utilization"])
    yield from _single("berth_requests_total", "counter", "Requests accepted", state["requests"])
    yield from _single("berth_generated_tokens_total", "counter", "Tokens generated", state["tokens"])
    clients = state["clients"]
    yield from _single("berth_client_requests_total", "counter", "Requests but canaries", clients["requests"])
    yield from _single("berth_client_tokens_total", "counter", "Tokens generated for them", clients["tokens"])
    yield from _header("berth_request_failures_total", "counter", "Requests that ended without an answer")
    for reason, count in state["failures"].items():
        yield f'berth_request_failures_total{{reason="{reason}"}} {count}'
    yield from _single("berth_engine_steps_total", "counter", "Engine iterations", state["steps"])
    for key, about in STEP_SUMS.items():
        yield from _single(f"berth_engine_step_{key}_total", "counter", about, state["step_sums"][key])
    if state["last_token"] is not None:
        moment = wall - (now - state["last_token"])
        yield from _single("berth_last_token_timestamp_seconds", "gauge", "When the last token came out", moment)


def _header(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _single(name: str, kind: str, about: str, value: float) -> Iterator[str]:
    yield from _header(name, kind, about)
    yield f"{name} {value!r}"


def _histogram(name: str, about: str, document: dict[str, Any]) -> Iterator[str]:
    yield from _header(name, "histogram", about)
    below = 0
    for edge, count in zip(document["edges"], document["counts"], strict=False):
        below += count
        yield f'{name}_bucket{{le="{edge:g}"}} {below}'
    total = sum(document["counts"])
    yield f'{name}_bucket{{le="+Inf"}} {total}'
    yield f"{name}_sum {document['sum']!r}"
    yield f"{name}_count {total}"
