"""The template hash: which edits of a spec replace running pods.

It is taken over what the user asked for, never over rendered manifests, so that neither an operator upgrade (new image
by default, new flags, new engine library) nor another reading of the same words rolls a fleet. Defaults are left out:
writing down a default changes nothing, and a field that a later release adds changes nothing until it is used.

It changes with: the model's name and architecture, the variant (precision, source, backend, ...), engine.backend,
engine.image, engine.multiNode (for groups of several pods), everything in spec.pod, and the allocation but for its
number of groups. It does not change with anything else: metadata, traffic, objectives, scaling, replicas, availability,
drain and update settings, the pool's price, selector or tolerations, other variants.
"""

from __future__ import annotations

from typing import Any

from berth.api.llmdeployment import LLMDeploymentSpec
from berth.api.model import Variant
from berth.api.placement import Allocation
from berth.api.pod import Pod
from berth.api.schema import Model
from berth.core import quantities
from berth.core.render.names import digest


def template_hash(spec: LLMDeploymentSpec, variant: Variant, allocation: Allocation, members: int) -> str:
    """10 hexadecimal digits; see the module."""
    return digest(
        {
            "model": {"name": spec.model.name, "architecture": _given(spec.model.architecture)},
            "variant": _given(variant),
            "backend": variant.backend or spec.engine.backend,
            "image": spec.engine.image,
            "multiNode": _given(spec.engine.multi_node) if members > 1 else None,
            "pod": _pod(spec.pod),
            "allocation": _given(allocation, without={"groups"}),
        },
        10,
    )


def _given(model: Model | None, without: set[str] | None = None) -> dict[str, Any] | None:
    if model is None:
        return None
    return model.model_dump(mode="json", exclude=without, exclude_defaults=True, exclude_none=True)


def _pod(pod: Pod) -> dict[str, Any] | None:
    """As given, with quantities by their value: 1, "1" and "1000m" of cpu are the same."""
    content = _given(pod)
    for amounts in (content or {}).get("resources", {}).values():
        amounts.update({name: str(quantities.parse(amount)) for name, amount in amounts.items()})
    return content
