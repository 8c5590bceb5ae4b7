"""What was read from an object, until the object changes: many passes look at every node and pod."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from berth.kube.kinds import Object

T = TypeVar("T")


class Memo(Generic[T]):
    """Results of `read(object, resource name)` by UID and resource version."""

    def __init__(self, read: Callable[[Object, str], T]) -> None:
        self._read = read
        self._known: dict[tuple[str, str], tuple[str, T]] = {}

    def get(self, obj: Object, resource_name: str) -> T:
        metadata = obj["metadata"]
        key = (metadata["uid"], resource_name)
        known = self._known.get(key)
        if known is None or known[0] != metadata["resourceVersion"]:
            known = (metadata["resourceVersion"], self._read(obj, resource_name))
            self._known[key] = known
        return known[1]

    def keep(self, objects: Sequence[Object]) -> None:
        """Forget all others, once they are many."""
        if len(self._known) > 2 * len(objects) + 64:
            uids = {obj["metadata"]["uid"] for obj in objects}
            self._known = {key: known for key, known in self._known.items() if key[0] in uids}
