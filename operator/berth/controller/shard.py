"""Which LLMDeployments and GPUPools this installation works on, where several divide them by labels.

What the others' deployments hold is seen all the same: groups and pods of all count where room is looked for. Only
what is selected is reconciled, measured and written to. A deployment whose labels change is let go by one installation
and taken by the other, as it stands; for a moment both may see it, and their writes are the same.
"""

from __future__ import annotations

from berth.controller.world import Key
from berth.core.selectors import Selector
from berth.kube.kinds import Object


class Shard:
    """`selector` decides; what it does not select is remembered by key, so that changes around it wake nobody."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._others: set[Key] = set()

    def takes(self, obj: Object) -> bool:
        return self._selector.matches(obj["metadata"].get("labels") or {})

    def told(self, key: Key, deployment: Object, *, gone: bool) -> bool:
        """A watch event; whether a pass should look at it: at what is ours, and once at what is not ours any more."""
        known = key in self._others
        if gone or self.takes(deployment):
            self._others.discard(key)
            return not (gone and known)
        self._others.add(key)
        return not known

    def ignores(self, key: Key) -> bool:
        return key in self._others
