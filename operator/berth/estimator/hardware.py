"""GPU types: memory, bandwidth, arithmetic rates, links, and which precisions run on them with which backend.

Names are those of `GPUPool.spec.gpu`. Figures are the vendor's data sheets (dense rates, no sparsity); memory is what
a process sees, which is a little less than what is printed on the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from berth.estimator.precision import precision as precision_of

NVLINK: Final = "NVLink"
NVLINK_BRIDGE: Final = "NVLinkBridge"
"""Joins pairs of cards only; wider groups talk over PCIe."""
PCIE: Final = "PCIe"

GIB: Final = 2**30


@dataclass(frozen=True)
class GPUType:
    """One type of GPU, as a data sheet describes it."""

    name: str
    product: str
    """Value of the node label `nvidia.com/gpu.product`, as GPU feature discovery writes it."""
    memory_gib: float
    bandwidth: float
    """Memory bandwidth, bytes per second."""
    flops_16bit: float
    """Dense FP16/BF16 operations per second."""
    flops_fp8: float
    """Dense FP8 operations per second, 0 where the GPU has no FP8."""
    flops_int8: float
    flops_fp4: float
    link: str
    link_bandwidth: float
    """Bytes per second and direction between two GPUs of a node."""
    link_domain: int
    """GPUs that reach each other over `link`; tensor parallel groups stay inside it."""
    compute_capability: float
    architecture: str

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * GIB

    def flops(self, arithmetic: str) -> float:
        """Dense operations per second for `16bit`, `fp8`, `int8` or `fp4`; 0 where the GPU lacks them."""
        return {
            "16bit": self.flops_16bit,
            "fp8": self.flops_fp8,
            "int8": self.flops_int8,
            "fp4": self.flops_fp4,
        }[arithmetic]

    def why_not(self, precision: str, backend: str | None = None, kv_precision: str | None = None) -> str | None:
        """Why weights of `precision` (and `kv_precision` for the KV cache) cannot run here; None if they can.

        `backend` is `pytorch`, `tensorrt` or `simulated` (which promises what pytorch does); None asks about the
        hardware alone, for runtimes other than ours. Source: support matrix of the TensorRT-LLM documentation.
        """
        name = precision_of(precision).name
        capability = self.compute_capability
        if name == "bf16" and capability < 8.0:
            return f"{self.architecture} has no BF16: use fp16"
        if name == "fp8" and not self.flops_fp8:
            return f"{self.architecture} has no FP8: use bf16 or int4-awq"
        if name == "fp4" and not self.flops_fp4:
            return f"{self.architecture} has no FP4: use fp8 or int4-awq"
        if name == "int8" and not self.flops_int8:
            return f"{self.architecture} has no INT8 tensor cores: use fp16"
        if name == "int8" and backend not in (None, "tensorrt"):
            return "int8 runs in built engines only: use backend tensorrt, or int4-awq"
        if name == "fp4" and backend == "tensorrt":
            return "fp4 does not run in built engines: use backend pytorch"
        if name.startswith("int4") and capability < 7.5:
            return f"{self.architecture} has no kernels for {name}: use fp16"
        if backend is not None and capability < 8.0:
            return f"{self.architecture} is not supported by TensorRT-LLM any more: use an Ampere or newer GPU"
        return self._why_not_kv(kv_precision, backend)

    def _why_not_kv(self, kv_precision: str | None, backend: str | None) -> str | None:
        if kv_precision is None:
            return None
        name = precision_of(kv_precision).name
        if name == "fp8" and not self.flops_fp8 and backend is not None:
            return f"{self.architecture} has no FP8: use kvPrecision bf16"
        if name == "int8" and backend not in (None, "tensorrt"):
            return "a KV cache in int8 runs in built engines only: use backend tensorrt, or kvPrecision bf16"
        if name.startswith("int4"):
            return f"no backend keeps its KV cache in {name}: use kvPrecision fp8 or bf16"
        return None

    def supports(self, precision: str, backend: str | None = None, kv_precision: str | None = None) -> bool:
        return self.why_not(precision, backend, kv_precision) is None


def _gpu(
    name: str,
    product: str,
    memory_gib: float,
    bandwidth_tb: float,
    tflops: tuple[float, float, float, float],
    link: tuple[str, float, int],
    chip: tuple[str, float],
) -> GPUType:
    bits16, fp8, int8, fp4 = (rate * 1e12 for rate in tflops)
    kind, gigabytes, domain = link
    architecture, capability = chip
    return GPUType(
        name, product, memory_gib, bandwidth_tb * 1e12, bits16, fp8, int8, fp4, kind, gigabytes * 1e9, domain,
        capability, architecture,
    )  # fmt: skip


_VOLTA = ("V100", 7.0)
_TURING = ("T4", 7.5)
_AMPERE = ("A100", 8.0)
_GA102 = ("A10/A6000", 8.6)
_GA100 = ("A30", 8.0)
_ADA = ("Ada", 8.9)
_HOPPER = ("Hopper", 9.0)
_BLACKWELL = ("Blackwell", 10.0)


def _nvlink(gigabytes: float, domain: int) -> tuple[str, float, int]:
    return NVLINK, gigabytes, domain


_BRIDGE = (NVLINK_BRIDGE, 300, 2)
_PCIE3 = (PCIE, 16, 8)
_PCIE4 = (PCIE, 32, 8)
_PCIE5 = (PCIE, 64, 8)

# fmt: off
_TYPES = (
    #    name           product label               GiB    TB/s   TFLOPS 16 bit, 8 bit float, int8, fp4
    _gpu("H100-SXM-80",  "NVIDIA-H100-80GB-HBM3",    79.6,  3.35,  (989, 1979, 1979, 0), _nvlink(450, 8), _HOPPER),
    _gpu("H100-PCIe-80", "NVIDIA-H100-PCIe",         79.6,  2.0,   (756, 1513, 1513, 0), _PCIE5, _HOPPER),
    _gpu("H100-NVL-94",  "NVIDIA-H100-NVL",          93.1,  3.9,   (835, 1671, 1671, 0), _BRIDGE, _HOPPER),
    _gpu("H200-SXM-141", "NVIDIA-H200",              139.8, 4.80,  (989, 1979, 1979, 0), _nvlink(450, 8), _HOPPER),
    _gpu("A100-SXM-80",  "NVIDIA-A100-SXM4-80GB",    79.2,  2.039, (312, 0, 624, 0), _nvlink(300, 8), _AMPERE),
    _gpu("A100-SXM-40",  "NVIDIA-A100-SXM4-40GB",    39.4,  1.555, (312, 0, 624, 0), _nvlink(300, 8), _AMPERE),
    _gpu("A100-PCIe-80", "NVIDIA-A100-80GB-PCIe",    79.2,  1.935, (312, 0, 624, 0), _PCIE4, _AMPERE),
    _gpu("A100-PCIe-40", "NVIDIA-A100-PCIE-40GB",    39.4,  1.555, (312, 0, 624, 0), _PCIE4, _AMPERE),
    _gpu("H800-SXM-80",  "NVIDIA-H800",              79.6,  3.35,  (989, 1979, 1979, 0), _nvlink(200, 8), _HOPPER),
    _gpu("A800-SXM-80",  "NVIDIA-A800-SXM4-80GB",    79.2,  2.039, (312, 0, 624, 0), _nvlink(200, 8), _AMPERE),
    _gpu("H20-SXM-96",   "NVIDIA-H20",               95.1,  4.0,   (148, 296, 296, 0), _nvlink(450, 8), _HOPPER),
    _gpu("GH200-96",     "NVIDIA-GH200-480GB",       94.5,  4.0,   (989, 1979, 1979, 0), _nvlink(450, 32), _HOPPER),
    _gpu("GH200-144",    "NVIDIA-GH200-144G-HBM3e",  142.5, 4.9,   (989, 1979, 1979, 0), _nvlink(450, 32), _HOPPER),
    _gpu("B200-SXM-180", "NVIDIA-B200", 178.4, 7.7, (2250, 4500, 4500, 9000), _nvlink(900, 8), _BLACKWELL),
    _gpu("GB200-186", "NVIDIA-GB200", 184.0, 8.0, (2500, 5000, 5000, 10000), _nvlink(900, 72), _BLACKWELL),
    _gpu("L40S-48",      "NVIDIA-L40S",              44.4,  0.864, (362, 733, 733, 0), _PCIE4, _ADA),
    _gpu("L40-48",       "NVIDIA-L40",               44.4,  0.864, (181, 362, 362, 0), _PCIE4, _ADA),
    _gpu("L4-24",        "NVIDIA-L4",                22.0,  0.300, (121, 242, 242, 0), _PCIE4, _ADA),
    _gpu("RTX-4090-24",  "NVIDIA-GeForce-RTX-4090",  23.6,  1.008, (165, 330, 660, 0), _PCIE4, _ADA),
    _gpu("A10-24",       "NVIDIA-A10",               22.0,  0.600, (125, 0, 250, 0), _PCIE4, _GA102),
    _gpu("A10G-24",      "NVIDIA-A10G",              22.0,  0.600, (70, 0, 140, 0), _PCIE4, _GA102),
    _gpu("A30-24",       "NVIDIA-A30",               23.6,  0.933, (165, 0, 330, 0), _PCIE4, _GA100),
    _gpu("RTX-A6000-48", "NVIDIA-RTX-A6000",         47.5,  0.768, (155, 0, 310, 0), _PCIE4, _GA102),
    _gpu("V100-SXM-32",  "Tesla-V100-SXM2-32GB",     31.7,  0.900, (125, 0, 0, 0), _nvlink(150, 8), _VOLTA),
    _gpu("V100-SXM-16",  "Tesla-V100-SXM2-16GB",     15.8,  0.900, (125, 0, 0, 0), _nvlink(150, 8), _VOLTA),
    _gpu("T4-16",        "Tesla-T4",                 14.6,  0.320, (65, 0, 130, 0), _PCIE3, _TURING),
)
# fmt: on

GPU_TYPES: Final = {gpu.name: gpu for gpu in _TYPES}


def gpu(name: str) -> GPUType:
    """The type of this name; ValueError lists the known names."""
    found = GPU_TYPES.get(name)
    if found is None:
        raise ValueError(f"gpu {name!r} is not known: use one of {', '.join(GPU_TYPES)}")
    return found
