"""CPU, memory, GPUs and shared memory of one pod, and what a whole group asks of its pool.

Requests are rules of thumb of TensorRT-LLM deployments: cores for the server, its Python model and two per GPU worker;
host memory for loading and pinned buffers. No limits but the GPUs': a CPU limit throttles the scheduler loop of the
engine, and a memory limit guessed here would kill a loader that reads a checkpoint through the page cache.
`spec.pod.resources` overrides each amount.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from berth.api.common import Backend
from berth.api.pod import ResourceRequirements
from berth.core import quantities
from berth.errors import InvalidSpec

Amounts = Mapping[str, int | str]

_OVERCOMMITTABLE: Final = ("cpu", "memory", "ephemeral-storage")


def container_resources(
    backend: Backend, gpus: int, resource_name: str, wanted: ResourceRequirements
) -> dict[str, dict[str, str]]:
    """`resources` of the serving container.

    A limit without a request requests as much. Raises InvalidSpec for amounts that the API server would refuse.
    """
    if resource_name in (*wanted.requests, *wanted.limits):
        raise InvalidSpec(
            "InvalidSpec",
            f"spec.pod.resources: {resource_name} counts the pool's GPUs, and the placement decides on them: remove it",
        )
    requests = {**_defaults(backend, gpus), **_text(wanted.limits), **_text(wanted.requests)}
    limits = _text(wanted.limits)
    for name in (*wanted.requests, *wanted.limits):
        _check(name, requests[name], limits.get(name))
        if name not in _OVERCOMMITTABLE:
            limits.setdefault(name, requests[name])
    limits[resource_name] = requests[resource_name] = str(gpus)
    return {"limits": dict(sorted(limits.items())), "requests": dict(sorted(requests.items()))}


def _defaults(backend: Backend, gpus: int) -> dict[str, str]:
    if backend == "simulated":
        return {"cpu": "100m", "memory": "256Mi"}
    return {"cpu": str(4 + 2 * gpus), "memory": f"{32 * gpus}Gi"}


def _text(amounts: Amounts) -> dict[str, str]:
    return {name: str(amount) for name, amount in amounts.items()}


def _check(name: str, request: str, limit: str | None) -> None:
    extended = "/" in name
    if name not in _OVERCOMMITTABLE and not extended and not name.startswith("hugepages-"):
        raise InvalidSpec(
            "InvalidSpec",
            f"spec.pod.resources: {name} is no resource: use cpu, memory, ephemeral-storage, hugepages-<size> or "
            "an extended resource such as rdma/hca",
        )
    amount = quantities.parse(request)
    if limit is not None:
        most = quantities.parse(limit)
        if amount > most or (name not in _OVERCOMMITTABLE and amount != most):
            bound = "equal" if name not in _OVERCOMMITTABLE else "not be above"
            raise InvalidSpec(
                "InvalidSpec",
                f"spec.pod.resources: the request {request} of {name} must {bound} its limit {limit}: correct one",
            )
    if extended and amount.denominator != 1:
        raise InvalidSpec("InvalidSpec", f"spec.pod.resources: {request} of {name} must be a whole number: round it")
    # A thousandth of a core is the smallest step the API knows; a fraction of a byte is refused as well.
    if amount < (Fraction(1, 1000) if name == "cpu" else 1):
        raise InvalidSpec("InvalidSpec", f"spec.pod.resources: {request} of {name} is too small: raise it")


def shared_memory(backend: Backend, gpus: int, members: int) -> str:
    """Size of /dev/shm. NCCL and Triton's Python stub live there; the container default of 64 MB breaks NCCL.

    2Gi for one GPU, 8Gi up to four, 16Gi for a whole node, 64Gi where RDMA buffers between nodes come on top.
    """
    if backend == "simulated":
        return "256Mi"
    if members > 1:
        return "64Gi"
    if gpus == 1:
        return "2Gi"
    return "8Gi" if gpus <= 4 else "16Gi"
