"""Which serving runtime produced a figure: family, version and generation, read from what a source says about itself.

The same GPU served the same model up to three times faster in 2025 than in 2023, so a runtime's generation is part of
every prediction. Our own backends are generations too: `tensorrt` runs built engines, `pytorch` the LLM API.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Runtime:
    """A serving runtime as far as it matters for speed."""

    family: str
    """trtllm, vllm, sglang, turbomind, tgi, mlc, fastertransformer or other."""
    generation: str
    """Versions of a family that share their large coefficients."""
    version: str = ""
    """`family-version` where the source says so, for what differs inside a generation."""

    @property
    def style(self) -> str:
        """How the host drives the GPU: engines compiled ahead, kernels launched one by one, or captured graphs."""
        return _STYLES.get(self.generation, "graphs")


_STYLES: Final = {
    "trtllm-static": "engine",
    "trtllm-inflight": "engine",
    "trtllm-engine": "engine",
    "turbomind": "engine",
    "mlc": "engine",
    "fastertransformer": "engine",
    "vllm-2023": "eager",
    "tgi": "eager",
    "other-2023": "eager",
}

BACKENDS: Final = {
    "tensorrt": Runtime("trtllm", "trtllm-engine", "trtllm-0.17"),
    "pytorch": Runtime("trtllm", "trtllm-pytorch", "trtllm-1.0"),
    "simulated": Runtime("trtllm", "trtllm-pytorch", "trtllm-1.0"),
}
"""The runtime that each of our backends is predicted with."""

_FAMILIES: Final = (  # first match wins: a harness may name several, the engine comes first
    ("trtllm", r"tensorrt[-_ ]?llm|trt[-_ ]?llm"),
    ("sglang", r"sglang"),
    ("turbomind", r"turbomind|lmdeploy"),
    ("tgi", r"\btgi\b|text[- ]generation[- ]inference"),
    ("mlc", r"mlc[- _]llm|^mlc\b"),
    ("vllm", r"vllm"),
    ("fastertransformer", r"faster[- ]?transformer"),
)
_TRTLLM_IMPLIED: Final = r"\bnvidia\b(?! [a-z]*\d)|mlperf"
"""NVIDIA publishes what its own runtime does, and its MLPerf entries run on it. A GPU's name says nothing."""
_VERSION: Final = r"(?:docs|blog|[a-z]*)?[\s:=(]*v?(\d+)\.(\d+)"


def runtime_of(source: str, notes: str, model_year: int = 2023) -> Runtime:
    """The runtime that `source` and `notes` of a published figure speak of.

    Notes win over the source, because a source may collect several runtimes. Without a version the year decides, and
    without a year the model's: nothing ran before it was published.
    """
    family, text = _family(source, notes)
    implied = not text
    version = None if implied else _version(text, family) or _version(f"{notes} {source}", family)
    year = _year(f"{notes} {source}") or model_year
    label = f"{family}-{version[0]}.{version[1]}" if version else ""
    return Runtime(family, _generation(family, version, year), label)


def _family(source: str, notes: str) -> tuple[str, str]:
    for text in (notes, source):
        for family, pattern in _FAMILIES:
            if re.search(pattern, text, re.IGNORECASE):
                return family, text
    if re.search(_TRTLLM_IMPLIED, source, re.IGNORECASE):
        return "trtllm", ""
    return "other", f"{notes} {source}"


def _version(text: str, family: str) -> tuple[int, int] | None:
    for name, pattern in _FAMILIES:
        if name == family:
            found = re.search(rf"(?:{pattern})[\s]*{_VERSION}", text, re.IGNORECASE) or re.search(
                r"\bv(\d+)\.(\d+)", text, re.IGNORECASE
            )
            if found:
                return int(found.group(1)), int(found.group(2))
    return None


_MLPERF: Final = {"3.1": 2023, "4.0": 2024, "4.1": 2024, "5.0": 2025, "5.1": 2025}


def _year(text: str) -> int | None:
    round_ = re.search(r"mlperf[-\w ]*?v?(\d\.\d)", text, re.IGNORECASE)
    if round_ and round_.group(1) in _MLPERF:
        return _MLPERF[round_.group(1)]
    years = [int(year) for year in re.findall(r"\b(20[12]\d)\b", text)]
    return max(years) if years else None


def _generation(family: str, version: tuple[int, int] | None, year: int) -> str:
    if family == "trtllm":
        version = version or {2023: (0, 6), 2024: (0, 12)}.get(year, (1, 0))
        if version < (0, 10):
            return "trtllm-static"
        if version < (0, 13):
            return "trtllm-inflight"
        return "trtllm-engine" if version < (0, 20) else "trtllm-pytorch"
    if family == "vllm":
        version = version or {2023: (0, 2), 2024: (0, 5)}.get(year, (0, 10))
        if version < (0, 4):
            return "vllm-2023"
        return "vllm-2024" if version < (0, 7) else "vllm-2025"
    if family == "tgi":  # graphs came with 2.0
        return "tgi" if (version or {2023: (1, 0)}.get(year, (2, 0))) < (2, 0) else "tgi-2024"
    if family == "other":
        return "other-2023" if year <= 2023 else "other"
    return family


_TYPICAL: Final[dict[str, tuple[int, ...]]] = {"trtllm-static": (0, 6), "trtllm-inflight": (0, 12)}
"""Of sources that do not say their version."""


def attention_kernel(runtime: Runtime, queries_per_kv: float) -> str:
    """How decode attention treats query heads that share a key/value head.

    Early engines read the cache once per query head; from 0.7 groups of eight were read once, from 0.11 all groups
    (seen in the published tables: models with other groups gain 2-3x at long contexts between 0.10 and 0.11).
    """
    if queries_per_kv <= 1:
        return "multi-head"
    if runtime.family == "trtllm":
        version = _TYPICAL.get(runtime.generation, (1, 0))
        if runtime.version:
            version = tuple(int(part) for part in runtime.version.split("-")[-1].split("."))
        if version < (0, 7):
            return "per-head"
        if version < (0, 11):
            return "groups-of-eight" if queries_per_kv == 8 else "per-head-later"
    return "eager" if runtime.style == "eager" else "grouped"
