"""LLMDeployments as the server told them last, by a watch, a read or the answer to a write of ours.

A pass that follows close on such news need not ask again. What is older than BELIEVED_SECONDS is not believed: a watch
loses events now and then, and a deletion that nobody told would stay unseen. Versions only grow, whoever tells them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from berth.controller.world import Key, deployment_key
from berth.kube.kinds import Object
from berth.kube.sharing import shared

BELIEVED_SECONDS = 60.0


@dataclass(frozen=True)
class _Copy:
    object: Object
    version: int
    at: float
    own: bool
    """The answer to a write of ours that changed nothing but what we wrote: its echo in the watch is no news."""


class Copies:
    """The newest known state of each deployment, for a while; `now` is monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._copies: OrderedDict[Key, _Copy] = OrderedDict()
        """Oldest news first."""

    def get(self, key: Key) -> Object | None:
        """The object, if anybody told it lately."""
        self._forget_old()
        copy = self._copies.get(key)
        return copy.object if copy else None

    def tell(self, obj: Object) -> bool:
        """Somebody saw this; whether a pass should look at it."""
        key, known = key_of(obj), self._copies.get(key_of(obj))
        if known is not None and known.version >= _version(obj):
            return not (known.own and known.version == _version(obj))
        self._put(key, obj, own=False)
        return True

    def wrote(self, before: Object, answer: Object) -> None:
        """The answer to a write of ours over `before`."""
        key, known = key_of(answer), self._copies.get(key_of(answer))
        if known is None or known.version < _version(answer):
            self._put(key, answer, own=_wanted(before) == _wanted(answer))

    def drop(self, key: Key) -> None:
        """It is gone, or not what we took it for: the next pass asks."""
        self._copies.pop(key, None)

    def _put(self, key: Key, obj: Object, *, own: bool) -> None:
        self._forget_old()
        metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        kept = shared({**obj, "metadata": metadata})
        self._copies[key] = _Copy(kept, _version(obj), self._now(), own)
        self._copies.move_to_end(key)

    def _forget_old(self) -> None:
        while self._copies:
            key, copy = next(iter(self._copies.items()))
            if self._now() - copy.at < BELIEVED_SECONDS:
                return
            del self._copies[key]


def key_of(obj: Object) -> Key:
    return deployment_key(obj["metadata"]["namespace"], obj["metadata"]["name"])


def _version(obj: Object) -> int:
    """Comparable for everything stored in etcd."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _wanted(obj: Object) -> tuple[Any, ...]:
    """All of it that others decide."""
    told = ("managedFields", "resourceVersion")
    return obj.get("spec"), {name: value for name, value in obj["metadata"].items() if name not in told}
