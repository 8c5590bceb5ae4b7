"""What makes two placements the same place to run, and two moves the same move."""

from __future__ import annotations

from typing import Any

from berth.api.placement import CopyShape
from berth.core.render.names import digest


def placement_hash(shape: CopyShape) -> str:
    """10 hexadecimal digits of pool, variant and split; the number of groups and batch limits do not change it."""
    return digest(layout_of(shape), 10)


def layout_of(shape: CopyShape) -> dict[str, Any]:
    """What makes two placements the same place to run."""
    return {
        "pool": shape.pool,
        "variant": shape.variant,
        "tensorParallel": shape.tensor_parallel,
        "pipelineParallel": shape.pipeline_parallel,
    }


def move_id(uid: str, start: CopyShape, to: CopyShape, moves_before: float) -> str:
    """Of the move from here to there that follows one that ended at `moves_before` (Unix seconds; 0: the first)."""
    return digest({"uid": uid, "from": layout_of(start), "to": layout_of(to), "after": int(moves_before)}, 8)
