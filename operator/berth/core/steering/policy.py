"""What a spec allows and what is remembered, as the rules of moves and scaling read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from berth.api.common import number, seconds
from berth.api.llmdeployment import LLMDeploymentSpec
from berth.core.moves.rules import Past, Policy
from berth.core.timestamps import unix_seconds


def policy_of(spec: LLMDeploymentSpec) -> Policy:
    """What the user allows."""
    moves, limits = spec.placement.moves, spec.objectives.limits
    return Policy(
        mode=moves.mode,
        minimum_gain=number(moves.minimum_gain),
        pay_back_within=seconds(moves.pay_back_within),
        cooldown=seconds(moves.cooldown),
        max_per_day=moves.max_per_day,
        gpu_limit=limits.gpus,
        cost_limit=number(limits.cost_per_hour) if limits.cost_per_hour is not None else None,
        surge=spec.update.surge == "WhenCapacity",
        prefers_cost=spec.objectives.prefer == "Cost",
        changes_allowed=spec.pause == "None",
        fixed=spec.placement.mode == "Fixed",
    )


def past_of(moves: Mapping[str, Any], pace: float = 1.0) -> Past:
    """Moves as they are remembered, on a clock `pace` times faster; what cannot be read had not been."""
    recent = [each for each in moves.get("recent") or () if isinstance(each, Mapping)]
    ended = [unix_seconds(each.get("finishedAt")) for each in recent]
    return Past(
        ended=tuple(each * pace for each in ended if each is not None),
        cost_moves_from=(unix_seconds(moves.get("nextAllowedAt")) or 0.0) * pace,
        taken_back=frozenset(str(each.get("placementHash")) for each in recent if each.get("result") == "RolledBack"),
    )
