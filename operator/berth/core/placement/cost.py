"""What a placement costs: its price, what it adds to the bill, and the price of a demanded token.

The price counts every GPU that is paid because of the placement: its own where GPUs are billed, whole nodes where
nodes are. GPUs of a reserved pool are paid anyway: they have a price, but choosing them adds nothing to the bill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from berth.core.capacity import Demand
from berth.core.placement.supply import Supply, nodes_paid_for

_MILLION = 1e6


@dataclass(frozen=True)
class Cost:
    """Per hour, in the pool's currency."""

    per_hour: float
    added_per_hour: float
    """What the bill grows by: 0 where the GPUs are paid anyway."""
    per_million_output_tokens: float | None
    """Price of the whole placement over the tokens that are demanded, not over those it could make; None if nothing
    comes of it."""


def cost_of(
    supply: Supply, demand: Demand, layout: Sequence[Sequence[str]], output_tokens_per_second: float
) -> Cost | None:
    """Of groups that stand as `layout` says; None where the pool has no price."""
    price = supply.price
    if price is None:
        return None
    gpus = len(layout) * demand.gpus
    if supply.pool.spec.billing == "PerNode":
        nodes = nodes_paid_for(layout, supply.pool, demand, known=supply.nodes is not None)
        gpus = nodes * supply.pool.spec.gpus_per_node
    per_hour = price * gpus
    added = 0.0 if supply.pool.spec.billing == "Reserved" else per_hour
    rate = output_tokens_per_second
    return Cost(per_hour, added, per_hour / (3600 * rate) * _MILLION if rate > 0 else None)
