"""Rows of published measurements: what was measured, on what, under which load. `value` is never read.

A row that cannot be understood or cannot run becomes an `Unsupported` whose text starts with the field at fault.
What a source does not state is inferred, in one place each, from what it does state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from berth.estimator.copies import model_copy
from berth.estimator.hardware import GPU_TYPES, NVLINK, NVLINK_BRIDGE, PCIE, GPUType
from berth.estimator.memory import KV_FRACTION
from berth.estimator.models import ModelSpec, catalogue, model
from berth.estimator.precision import precision as precision_of
from berth.estimator.runtimes import Runtime, runtime_of

Row = Mapping[str, str]

NOT_STATED: Final = frozenset({"", "n/a", "n/s", "na", "none", "not stated", "unknown", "-"})

ALL_REDUCE: Final = "all-reduce"
STATIC: Final = "static"
"""A fixed batch that starts and ends together."""
CLOSED: Final = "closed"
"""A fixed number of clients, each sending its next request when one is answered."""
SATURATED: Final = "saturated"
"""Everything queued at once: in-flight batching at its limits."""
OPEN: Final = "open"
"""Arrivals at a rate of their own."""

METRICS: Final = {
    "out_tok_s": "throughput",
    "system_out_tok_s": "throughput",
    "tpot_ms": "tpot",
    "tpot_p99_ms": "tpot",
    "ttft_ms": "ttft",
    "ttft_p99_ms": "ttft",
    "e2e_latency_ms": "e2e",
    "prompt_phase_ms": "ttft",
    "allreduce_us": ALL_REDUCE,
}
"""Metric of a row to the quantity it measures."""


@dataclass(frozen=True)
class Limits:
    """How a benchmark's engine was run, as far as its source says it."""

    batch_size: float = 4096.0
    num_tokens: float = 8192.0
    """Token budget of an iteration."""
    kv_fraction: float = KV_FRACTION
    requests: int = 0
    """Requests of the whole run; 0: by their length."""


class Unsupported(Exception):
    """This row cannot be predicted; the text names the field."""


@dataclass(frozen=True)
class Measurement:
    """What one row says was measured."""

    quantity: str
    load: str
    model: ModelSpec
    gpu: GPUType
    tensor_parallel: int
    pipeline_parallel: int
    precision: str
    kv_precision: str
    runtime: Runtime
    clients: float
    """Requests in flight or batch size; infinite when saturated; requests per second when open. Of one copy: a system
    spreads what it is sent over its copies."""
    prompt: float
    output: float
    scale: float
    """Factor from seconds or tokens per second of one copy to the row's unit."""
    percentile: bool = False
    """The value is a 99th percentile, not a mean or median."""
    between_tokens: bool = False
    """Time per output token is the median of single steps, which prompts of other requests do not touch."""
    whole_request: bool = False
    """Time per output token is request time / tokens."""
    requests: int = 0
    """Requests of the whole run; 0 if not stated."""
    varied: bool = False
    """Prompts and answers are those of conversations, of all lengths, not made to measure."""
    limits: Limits = Limits()
    message_bytes: float = 0.0
    """Of an all-reduce."""
    nccl: bool = False


def measurement(row: Row) -> Measurement:
    """Reads one row; raises Unsupported naming the field that is missing, unknown or out of bounds."""
    metric = _text(row, "metric")
    quantity = METRICS.get(metric)
    if quantity is None:
        raise Unsupported(f"metric: {metric or 'missing'} is not one of {', '.join(METRICS)}")
    gpu = _gpu(row)
    pipeline_parallel = _whole(row, "pp", 1, 64)
    notes = f"{_text(row, 'notes')}"
    if quantity == ALL_REDUCE:
        return _all_reduce(row, gpu, notes)
    spec = _model(row)
    runtime = runtime_of(_text(row, "source"), notes, _year(spec, gpu))
    system = _system_gpus(row)
    most = (_whole(row, "tp", 0, 64) or (system or gpu.link_domain) // pipeline_parallel) * pipeline_parallel
    precision = _precision(row, gpu, spec, most)
    kv_precision = _kv_precision(row, precision, runtime)
    tensor_parallel = _whole(row, "tp", _smallest_that_fits(spec, gpu, pipeline_parallel, precision, system), 64)
    _check_heads(spec, tensor_parallel, pipeline_parallel)
    load, clients = _load(row, quantity, runtime, notes)
    if system:
        clients /= max(system / (tensor_parallel * pipeline_parallel), 1)
    prompt, output = _lengths(row, notes)
    if quantity == "tpot" and output < 2:
        raise Unsupported(f"output_tokens: {output:g} token has no time per output token: needs 2 or more")
    return Measurement(
        quantity=quantity,
        load=load,
        model=spec,
        gpu=gpu,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        precision=precision,
        kv_precision=kv_precision,
        runtime=runtime,
        clients=max(clients, 1.0) if load in (STATIC, CLOSED) else clients,
        prompt=prompt,
        output=output,
        scale=_scale(row, quantity, tensor_parallel * pipeline_parallel, system),
        percentile="p99" in metric,
        between_tokens=bool(re.search(r"p50 token latency|median (itl|inter-token)", notes, re.IGNORECASE)),
        whole_request="over whole request" in notes,
        requests=_requests(notes),
        limits=_DOCUMENTED.get(runtime.version, Limits()) if load == SATURATED else Limits(),
        varied=_of_conversations(row, notes),
    )


def _text(row: Row, field: str) -> str:
    return (row.get(field) or "").strip()


def _stated(row: Row, field: str) -> str | None:
    text = _text(row, field)
    return None if text.lower() in NOT_STATED else text


def _number(field: str, text: str, lowest: float, highest: float) -> float:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        raise Unsupported(f"{field}: {text!r} is not a number") from None
    if math.isnan(value) or not lowest <= value <= highest:
        raise Unsupported(f"{field}: {text} must be from {lowest:g} to {highest:g}")
    return value


def _whole(row: Row, field: str, default: int, highest: int) -> int:
    text = _stated(row, field)
    if text is None:
        return default
    value = _number(field, text, 1, highest)
    if value != int(value):
        raise Unsupported(f"{field}: {text} must be a whole number")
    return int(value)


# --- hardware ---------------------------------------------------------------------------------------------------------
_CHIP: Final = r"(GH200|GB200|H100|H200|H800|H20|A100|A800|B200|L40S|L40|L4|A10G|A10|A30|A6000|V100|T4|4090)"


def _gpu(row: Row) -> GPUType:
    """The catalogued type whose chip and form match and whose memory is nearest to what is stated."""
    text = _text(row, "gpu")
    chips = re.findall(rf"(?<![A-Z0-9]){_CHIP}(?![0-9])", re.sub(r"^\s*\d+\s*[xX*]\s*", "", text).upper())
    if len(set(chips)) != 1:
        raise Unsupported(f"gpu: {text or 'missing'} is not a known type: use a name such as H100-SXM or A100-PCIe")
    interconnect = _text(row, "interconnect").lower()
    candidates = [gpu for gpu in GPU_TYPES.values() if chips[0] in gpu.name.split("-") or f"RTX-{chips[0]}" in gpu.name]
    form = _form(text, interconnect)
    candidates = [gpu for gpu in candidates if form in gpu.name] or candidates
    stated = _stated(row, "gpu_mem_gb") or _memory_in_words(chips[0], text, _text(row, "notes"))
    if stated is None:
        gpu = max(candidates, key=lambda candidate: candidate.memory_gib)
    else:
        size = _number("gpu_mem_gb", stated, 1, 2000)
        gpu = min(candidates, key=lambda candidate: abs(candidate.memory_gib - size))
        if not 0.75 < gpu.memory_gib / size < 1.25:
            raise Unsupported(f"gpu_mem_gb: no {text} has {stated} GB")
    return _with_link(gpu, interconnect)


def _memory_in_words(chip: str, gpu: str, notes: str) -> str | None:
    """`A100-SXM4-40GB` and `8x A100 40GB` say it where the column does not."""
    for text, unit in ((gpu, r"(?=\s*G|\s|$)"), (notes, r"(?=\s*G)")):
        found = re.search(rf"{chip}[-\w ]*?[- ](\d{{2,3}}){unit}", text, re.IGNORECASE)
        if found:
            return found.group(1)
    return None


def _form(gpu: str, interconnect: str) -> str:
    for form, words in (("PCIe", r"pcie?"), ("NVL-", r"nvl(?!ink)"), ("SXM", r"sxm")):
        if re.search(words, gpu, re.IGNORECASE):
            return form
    return "PCIe" if "pcie" in interconnect and "nvlink" not in interconnect else "SXM"


def _with_link(gpu: GPUType, interconnect: str) -> GPUType:
    """The same GPU on the link that the row states, where that is not its own."""
    if "nvlink" in interconnect and gpu.link == PCIE:
        return replace(gpu, link=NVLINK_BRIDGE, link_bandwidth=300e9)
    if "pcie" in interconnect and "nvlink" not in interconnect and gpu.link == NVLINK:
        return replace(gpu, link=PCIE, link_bandwidth=32e9 if gpu.compute_capability < 9 else 64e9)
    return gpu


# --- model ------------------------------------------------------------------------------------------------------------
_NOT_DENSE: Final = r"\d+x\d+b|-a\d+b|deepseek-?[vr]\d|kimi|mixtral|moe|grok|maverick|glm-?4\.[5-9]"


def _model(row: Row) -> ModelSpec:
    name = _text(row, "model")
    try:
        return model(name)
    except ValueError:
        stated = _stated(row, "params_b")
        if stated is None:
            raise Unsupported(
                f"model: {name or 'missing'} is not in the catalogue and params_b is not stated"
            ) from None
    if re.search(_NOT_DENSE, name, re.IGNORECASE):
        raise Unsupported(
            f"model: {name} is a mixture of experts that is not in the catalogue: its size alone says little"
        )
    return _dense_model(name, _number("params_b", stated, 0.05, 5000) * 1e9)


def _dense_model(name: str, parameters: float) -> ModelSpec:
    """A model that is not in the catalogue, as the dense one nearest in size with its layers scaled to match."""
    dense = (spec for spec in catalogue().values() if not spec.experts)
    nearest = min(dense, key=lambda spec: abs(math.log(spec.parameters / parameters)))
    layers = (parameters - nearest.embedding_parameters) / nearest.layer_parameters
    return replace(nearest, name=name, layers=max(round(layers), 1))


def _smallest_that_fits(spec: ModelSpec, gpu: GPUType, pipeline_parallel: int, precision: str, system: int) -> int:
    """Tensor parallelism where none is stated: the smallest that leaves a tenth of the memory to the KV cache."""
    most = max((system or gpu.link_domain) // pipeline_parallel, 1)
    widths = [width for width in (1, 2, 4, 8, 16) if width <= most and spec.heads % width == 0]
    copies = (model_copy(spec, gpu, width, pipeline_parallel, precision) for width in widths)
    fitting = (int(copy.tensor_parallel) for copy in copies if copy.stage_weights < 0.9 * copy.memory)
    return next(fitting, widths[-1])


def _check_heads(spec: ModelSpec, tensor_parallel: int, pipeline_parallel: int) -> None:
    if spec.heads % tensor_parallel:
        raise Unsupported(f"tp: {tensor_parallel} does not divide the {spec.heads} attention heads of {spec.name}")
    if pipeline_parallel > spec.layers:
        raise Unsupported(f"pp: {pipeline_parallel} stages for {spec.layers} layers of {spec.name}")


def _year(spec: ModelSpec, gpu: GPUType) -> int:
    """The earliest year in which this model could have run on this GPU."""
    newest = re.match(
        r"(llama-3\.3|llama-4|qwen2\.5|qwen3|gpt-oss|gemma-3|phi-4|mistral-small|deepseek-v3|kimi)", spec.name
    )
    if newest or gpu.architecture == "Blackwell":
        return 2025
    recent = re.match(
        r"(llama-3|qwen2|qwen1\.5|gemma|phi|mixtral-8x22b|mistral-(nemo|large)|dbrx|starcoder2|deepseek-v2)", spec.name
    )
    return 2024 if recent or gpu.name.startswith(("H200", "GH200")) else 2023


# --- precision --------------------------------------------------------------------------------------------------------
_NATIVE: Final = {"gpt-oss": "fp4", "deepseek-v3": "fp8", "kimi-k2": "fp8"}
"""Models that are published in one quantised precision."""
_IN_NAMES: Final = r"fp8|mxfp4|nvfp4|awq|gptq|w4a16|int4|w8a8|int8|bf16|fp16"


def _unstated_precision(row: Row, gpu: GPUType, spec: ModelSpec, gpus: int) -> str:
    """What the model's name says, else what it is published in, else the widest that so many GPUs hold."""
    named = re.search(_IN_NAMES, _text(row, "model"), re.IGNORECASE)
    if named:
        return named.group(0)
    native = next((name for family, name in _NATIVE.items() if spec.name.startswith(family)), None)
    if native:
        return native
    widest = "bf16" if gpu.compute_capability >= 8 else "fp16"
    for name in (widest, "fp8", "int4-awq"):
        weights = spec.body_parameters * precision_of(name).weight_bytes + 2 * spec.embedding_parameters
        if gpu.supports(name) and weights < 0.95 * gpu.memory_bytes * gpus:
            return name
    return widest


def _precision(row: Row, gpu: GPUType, spec: ModelSpec, gpus: int) -> str:
    stated = _stated(row, "weights_precision") or _unstated_precision(row, gpu, spec, gpus)
    try:
        name = precision_of(stated).name
    except ValueError as error:
        raise Unsupported(f"weights_precision: {error}") from None
    unpacked = name == "fp4" and spec.name.startswith("gpt-oss") and gpu.compute_capability >= 8
    reason = gpu.why_not(name)
    if reason and not unpacked:  # its weights are FP4 everywhere, and multiplied in 16 bit where FP4 is not
        raise Unsupported(f"weights_precision: {reason}")
    return name


def _kv_precision(row: Row, precision: str, runtime: Runtime) -> str:
    """Stated, or what the runtime does by default: built FP8 engines keep their cache in FP8, others in 16 bit."""
    stated = _stated(row, "kv_precision")
    if stated is None:
        return "fp8" if precision in ("fp8", "fp4") and runtime.family == "trtllm" else "bf16"
    try:
        return precision_of(stated).name
    except ValueError as error:
        raise Unsupported(f"kv_precision: {error}") from None


# --- load -------------------------------------------------------------------------------------------------------------
_SATURATED_WORDS: Final = frozenset({"max", "inf", "infinite", "offline", "max-throughput", "saturated"})
_SINGLE_WORDS: Final = frozenset({"small", "min-latency", "low-latency", "idle"})


def _load(row: Row, quantity: str, runtime: Runtime, notes: str) -> tuple[str, float]:
    """How the load was made, and its size."""
    text = (_stated(row, "concurrency") or "").lower()
    if not text:
        return (SATURATED, math.inf) if quantity == "throughput" else (CLOSED, 1.0)
    if text in _SATURATED_WORDS:
        return SATURATED, math.inf
    if text in _SINGLE_WORDS:
        return CLOSED, 1.0
    rate = re.fullmatch(r"(?:qps|rps|rate)\s*=\s*(\S+)", text)
    if rate:
        if rate.group(1) in _SATURATED_WORDS:
            return SATURATED, math.inf
        return OPEN, _number("concurrency", rate.group(1), 1e-6, 1e6)
    clients = _number("concurrency", text, 1, 1e6)
    fixed = re.search(r"static|fixed batch|whole batch|median of \d+ runs", notes, re.IGNORECASE)
    batch = fixed or runtime.generation == "trtllm-static" or _text(row, "metric") == "prompt_phase_ms"
    return (STATIC if batch else CLOSED), clients


_SHARED_CHATS: Final = (230.0, 203.0)
"""Mean prompt and answer of the ShareGPT conversations that vLLM's serving benchmark draws: 229,711 and 203,068 tokens
of 1,000 requests (vLLM, pull request 18566)."""
_UNSTATED: Final = (128.0, 128.0)
_RANDOM_LENGTHS: Final = 0.9
"""Mean length against the stated one in InferenceMAX: it draws from 0.8 to 1 times that (`RANDOM_RANGE_RATIO` in its
README)."""


def _lengths(row: Row, notes: str) -> tuple[float, float]:
    default = _SHARED_CHATS if _of_conversations(row, notes) else _UNSTATED
    shortened = _RANDOM_LENGTHS if re.search(r"inference(max|x)\b", _text(row, "source"), re.IGNORECASE) else 1.0
    lengths = []
    for field, inferred in zip(("input_tokens", "output_tokens"), default, strict=True):
        stated = _stated(row, field)
        lengths.append(inferred if stated is None else _number(field, stated, 1, 1e7) * shortened)
    return lengths[0], lengths[1]


def _of_conversations(row: Row, notes: str) -> bool:
    return "sharegpt" in f"{notes} {_text(row, 'source')}".lower()


_DOCUMENTED: Final = {
    "trtllm-0.10": Limits(batch_size=2048, num_tokens=2048, kv_fraction=0.9, requests=2000),
    "trtllm-0.11": Limits(kv_fraction=0.99),
    "trtllm-0.12": Limits(kv_fraction=0.99),
}
"""How the performance overviews of these versions say that their tables were made (0.11: most models)."""


def _requests(notes: str) -> int:
    found = re.search(r"\b(\d{2,6}) (?:requests|prompts)\b", notes, re.IGNORECASE)
    return int(found.group(1)) if found else 0


def _system_gpus(row: Row) -> int:
    """GPUs of a whole system of copies whose tokens were counted together; 0 if one copy was measured."""
    found = re.search(r"for (\d+)\s*(?:x\s*)?gpu", _text(row, "unit").lower())
    return int(_number("unit", found.group(1), 1, 1e6)) if found else 0


def _scale(row: Row, quantity: str, gpus: int, system: int) -> float:
    """Factor from seconds, or tokens per second of one copy, to the unit of the row."""
    unit = _text(row, "unit").lower()
    if quantity != "throughput":
        if re.match(r"(ms|us|s)\b", unit) or not unit:
            return {"us": 1e6, "s": 1.0}.get(unit.split("/")[0].split()[0] if unit else "", 1e3)
        raise Unsupported(f"unit: {unit} is not a unit of time: use ms")
    if unit and not unit.startswith(("tok", "token")):
        raise Unsupported(f"unit: {unit} is not tokens per second: use tok/s total or tok/s for N GPUs")
    if system:
        return system / gpus
    if _text(row, "metric") == "system_out_tok_s":
        raise Unsupported("unit: a system's throughput needs its number of GPUs: use tok/s for N GPUs")
    return 1 / gpus if re.search(r"(/|per )\s*gpu", unit) else 1.0


def _all_reduce(row: Row, gpu: GPUType, notes: str) -> Measurement:
    tensor_parallel = _whole(row, "tp", 1, 64)
    if tensor_parallel == 1:
        raise Unsupported("tp: an all-reduce needs at least 2 GPUs")
    size = re.search(r"(\d+)\s*bytes", notes)
    if size is None:
        raise Unsupported("notes: an all-reduce needs its message size in bytes")
    unit = _text(row, "unit").lower() or "us"
    return Measurement(
        quantity=ALL_REDUCE,
        load=ALL_REDUCE,
        model=model("llama-3.1-8b"),
        gpu=gpu,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=1,
        precision="bf16",
        kv_precision="bf16",
        runtime=Runtime("other", "other"),
        clients=1,
        prompt=1,
        output=1,
        scale={"us": 1e6, "ms": 1e3, "s": 1.0}.get(unit, 1e6),
        message_bytes=_number("notes", size.group(1), 1, 1e12),
        nccl="nccl" in f"{_text(row, 'source')} {notes}".lower(),
    )
