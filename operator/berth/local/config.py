"""What a local cluster shall be, as options say it and as its folder keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from berth.core.discovery import pool_name
from berth.errors import BerthError
from berth.estimator import hardware

CONFIG: Final = "cluster.json"
ZONES: Final = ("a", "b")
MOST_NODES, MOST_GPUS, MOST_SIMULATED = 64, 16, 5000
_POOL: Final = re.compile(r"(?P<name>[^=]+)=(?P<nodes>\d+)x(?P<gpus>\d+)")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


class InvalidOption(BerthError):
    """An option of `berth local up` cannot be had; the message names it, its bounds and the remedy."""


def check_name(name: str) -> None:
    """Raises InvalidOption. A name becomes part of paths, and `down` removes what lies there."""
    if not _NAME.fullmatch(name):
        raise InvalidOption(f"--name {name!r}: use at most 32 of a-z, 0-9 and -, not at the ends")


@dataclass(frozen=True)
class PoolOption:
    """`nodes` nodes with `gpus` GPUs of one type each."""

    gpu: str
    nodes: int
    gpus: int

    @property
    def name(self) -> str:
        """Of the GPUPool that discovery makes of them, and the beginning of the names of the nodes."""
        return pool_name(self.gpu)

    @property
    def product(self) -> str:
        return hardware.gpu(self.gpu).product

    @classmethod
    def parse(cls, text: str, most_nodes: int = MOST_NODES) -> Self:
        """From `h100=2x8`: two nodes with eight GPUs each. Raises InvalidOption."""
        names = {pool_name(gpu): gpu for gpu in hardware.GPU_TYPES}
        match = _POOL.fullmatch(text)
        if not match:
            raise InvalidOption(f"{text!r} is no pool: write NAME=NODESxGPUS, such as h100=2x8")
        if match["name"] not in names:
            raise InvalidOption(f"{text!r}: GPU {match['name']} is not known: use one of {', '.join(names)}")
        nodes, gpus = int(match["nodes"]), int(match["gpus"])
        if not (1 <= nodes <= most_nodes and 1 <= gpus <= MOST_GPUS):
            raise InvalidOption(f"{text!r}: give 1 to {most_nodes} nodes and 1 to {MOST_GPUS} GPUs per node")
        return cls(names[match["name"]], nodes, gpus)


DEFAULT_POOLS: Final = (PoolOption("H100-SXM-80", 2, 8), PoolOption("A100-SXM-40", 2, 8))


@dataclass(frozen=True)
class Config:
    """One cluster. `simulated` are pools of nodes that kwok plays: real objects, no processes.

    `settings` of the operator are BERTH_* variables, beside those of the process that starts the cluster. After
    `node_silence` seconds a silent node is called so; Kubernetes' own 50 make for long demonstrations.
    """

    name: str
    pools: tuple[PoolOption, ...] = DEFAULT_POOLS
    simulated: tuple[PoolOption, ...] = ()
    storage: str | None = None
    operator: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    node_silence: int = 12

    def check(self) -> None:
        """Raises InvalidOption."""
        check_name(self.name)
        if sum(pool.nodes for pool in self.pools) > MOST_NODES:
            raise InvalidOption(f"--pool: {MOST_NODES} local nodes are the most; use --simulated for more")
        types = [pool.gpu for pool in (*self.pools, *self.simulated)]
        if twice := {gpu for gpu in types if types.count(gpu) > 1}:
            raise InvalidOption(f"--pool: {', '.join(sorted(twice))} is given twice: one pool per GPU type")
        if self.storage is not None and not Path(self.storage).is_dir():
            raise InvalidOption(f"--storage {self.storage}: is no folder: make it, with a folder per claim in it")

    def write(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        content = json.loads((folder / CONFIG).read_text())
        pools = {key: tuple(PoolOption(**each) for each in content[key]) for key in ("pools", "simulated")}
        return cls(**{**content, **pools})
