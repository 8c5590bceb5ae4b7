"""Time of the collective that tensor parallelism pays for: one all-reduce, by link, group width and message size.

Measured tables on one grid of sizes, so that any number of them can be interpolated at once. Source: the custom
all-reduce and NCCL measurements published with aiconfigurator-core 0.12.0 (H100 and A100 over NVLink, L40S over PCIe,
16 bit elements); PCIe is the better of two hosts, the other was up to ten times slower.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from berth.estimator.hardware import NVLINK, NVLINK_BRIDGE, GPUType

Floats = npt.NDArray[np.float64]

_KIB, _MIB = 2**10, 2**20
SIZES = np.array([256, 16 * _KIB, 128 * _KIB, 512 * _KIB, _MIB, 2 * _MIB, 8 * _MIB, 16 * _MIB, 128 * _MIB, 1024 * _MIB])
"""Message sizes of the tables, bytes."""

_Table = Mapping[int, tuple[float, ...]]

_H100: _Table = {  # microseconds; NVLink 4, 450 GB/s each way
    2: (2.7, 2.8, 3.3, 4.5, 6.1, 9.4, 37.5, 78.5, 471.8, 3243),
    4: (2.8, 3.3, 4.3, 7.9, 12.9, 26.1, 63.8, 100.7, 618.8, 4534),
    8: (3.2, 3.6, 6.2, 17.6, 26.0, 35.5, 79.4, 122.3, 575.5, 4008),
}
_A100: _Table = {  # NVLink 3, 300 GB/s each way
    2: (3.8, 5.1, 5.2, 7.8, 11.6, 47.6, 80.9, 128.9, 750.9, 5297),
    4: (4.0, 6.3, 7.3, 13.9, 23.1, 48.3, 112.5, 185.5, 1004, 7250),
    8: (4.4, 8.4, 11.7, 28.3, 40.0, 53.6, 128.8, 216.8, 1174, 8264),
}
_PCIE: _Table = {  # PCIe 4, 32 GB/s each way
    2: (7.0, 8.4, 19.8, 51.1, 78.5, 123, 429, 840, 6678, 53269),
    4: (11.8, 16.1, 50.0, 91.2, 124, 199, 649, 1252, 9779, 76670),
}
_MEASURED_ON = {"H100": 450e9, "A100": 300e9, "PCIe": 32e9}


def all_reduce_table(gpu: GPUType, tensor_parallel: int) -> Floats:
    """Log seconds of one all-reduce among `tensor_parallel` GPUs for every size in SIZES; all -inf for a single GPU.

    Links that were not measured take the table of the nearest one with the part beyond its latency scaled by
    bandwidth. A width between two measured ones takes the wider; over PCIe beyond four GPUs messages cross sockets,
    taken as twice the time of four. An NVLink bridge joins pairs; wider groups talk over PCIe.
    """
    if tensor_parallel <= 1:
        return np.full(len(SIZES), -np.inf)
    if gpu.link == NVLINK or (gpu.link == NVLINK_BRIDGE and tensor_parallel <= 2):
        table, measured_on = (_H100, "H100") if gpu.link_bandwidth >= 400e9 else (_A100, "A100")
        bandwidth = gpu.link_bandwidth
    else:
        table, measured_on = _PCIE, "PCIe"
        bandwidth = gpu.link_bandwidth if gpu.link != NVLINK_BRIDGE else _MEASURED_ON["PCIe"]
    width = min((w for w in table if w >= tensor_parallel), default=max(table))
    microseconds = np.array(table[width], dtype=np.float64) * 2.0 ** max(np.log2(tensor_parallel / width), 0)
    latency = microseconds[0]
    microseconds = latency + (microseconds - latency) * _MEASURED_ON[measured_on] / bandwidth
    result: Floats = np.log(microseconds * 1e-6)
    return result


def all_reduce_time(table: Floats, message_bytes: Floats) -> Floats:
    """Seconds of one all-reduce of `message_bytes`; log-log interpolation, proportional beyond the largest size.

    `table` has shape (..., len(SIZES)) whose leading part broadcasts against `message_bytes`.
    """
    sizes = np.log(SIZES)
    size = np.log(np.maximum(message_bytes, SIZES[0]))
    left = np.clip(np.searchsorted(sizes, size, side="right") - 1, 0, len(SIZES) - 2)
    share = (size - sizes[left]) / (sizes[left + 1] - sizes[left])
    beyond = np.maximum(share - 1, 0) * (sizes[left + 1] - sizes[left])
    share = np.minimum(share, 1)
    shape = np.broadcast_shapes(table.shape[:-1], np.shape(left))
    table = np.broadcast_to(table, (*shape, len(SIZES)))
    left = np.broadcast_to(left, shape)[..., None]
    low = np.take_along_axis(table, left, -1)[..., 0]
    high = np.take_along_axis(table, left + 1, -1)[..., 0]
    with np.errstate(invalid="ignore"):
        seconds = np.exp(low + (high - low) * share + beyond)
    result: Floats = np.where(np.isneginf(low), 0.0, seconds)
    return result
