"""How many bytes a weight and a KV element take, and what each spelling of a precision means.

`fp16, bf16, fp8, int8, int4-awq, int4-gptq` are the precisions a variant may have; `fp4` is known so that published
measurements can be read. Embeddings and the output head stay in 16 bit under every precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Precision:
    """One weight or KV precision: stored bytes per element and the arithmetic it computes in."""

    name: str
    weight_bytes: float
    """Bytes per weight in the transformer body, scales and zero points included."""
    kv_bytes: float
    """Bytes per KV cache element."""
    arithmetic: str
    """Which of a GPU's rates multiplies these weights: `16bit`, `fp8`, `int8` or `fp4`; int4 is unpacked to 16 bit."""


_GROUP = 128  # weights per scale of AWQ and GPTQ checkpoints; 16 bit scale + 4 bit zero point each
_INT4_BYTES = 0.5 + (2 + 0.5) / _GROUP

PRECISIONS: Final = {
    precision.name: precision
    for precision in (
        Precision("fp16", 2, 2, "16bit"),
        Precision("bf16", 2, 2, "16bit"),
        Precision("fp8", 1, 1, "fp8"),
        Precision("int8", 1, 1, "int8"),
        Precision("int4-awq", _INT4_BYTES, 0.5, "16bit"),
        Precision("int4-gptq", _INT4_BYTES, 0.5, "16bit"),
        Precision("fp4", 0.5 + 1 / 16, 0.5 + 1 / 16, "fp4"),  # NVFP4: one 8 bit scale per 16 elements
    )
}

_SPELLINGS: Final = {
    "float16": "fp16",
    "half": "fp16",
    "16bit": "fp16",
    "bfloat16": "bf16",
    "fp8_e4m3": "fp8",
    "e4m3": "fp8",
    "w8a8-fp8": "fp8",
    "w8a8": "int8",
    "w8a16": "int8",
    "int4": "int4-awq",
    "w4a16": "int4-awq",
    "awq": "int4-awq",
    "gptq": "int4-gptq",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}


def precision(name: str) -> Precision:
    """The precision of this name or of a common spelling of it; ValueError lists the known ones."""
    key = name.strip().lower()
    found = PRECISIONS.get(_SPELLINGS.get(key, key))
    if found is None:
        raise ValueError(f"precision {name!r} is not known: use one of {', '.join(PRECISIONS)}")
    return found
