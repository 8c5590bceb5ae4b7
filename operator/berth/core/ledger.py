"""What is taken on each node, kept while pods and reservations come, change and go.

Law: at every moment it says what `berth.core.usage.usage_by_node` says of all pods and reservations of that moment. So
what a question costs does not grow with how many hold something.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from berth.core.usage import PodUsage, Reservation, Usage

_NOTHING = Usage()


class Ledger:
    """For one resource name."""

    def __init__(self) -> None:
        self._taken: dict[str, Usage] = {}
        self._pods: dict[Hashable, PodUsage] = {}
        self._of_owner: dict[str, set[Hashable]] = {}
        self._reservations: dict[str, Reservation] = {}
        self._booked: dict[str, list[tuple[str, Usage]]] = {}
        """By owner: what its reservation takes for members that are not bound."""

    def pod(self, key: Hashable, now: PodUsage | None) -> None:
        """What the pod takes now; None: nothing, or it is gone."""
        before = self._pods.pop(key, None)
        if now is not None:
            self._pods[key] = now
        if now == before:
            return
        if before is not None:
            self._give_back(before.node, before.amount)
            self._of_owner[before.owner_uid].discard(key)
            if not self._of_owner[before.owner_uid]:
                del self._of_owner[before.owner_uid]
        if now is not None:
            self._take(now.node, now.amount)
            self._of_owner.setdefault(now.owner_uid, set()).add(key)
        for owner in {each.owner_uid for each in (before, now) if each is not None}:
            self._book(owner)

    def reservation(self, owner_uid: str, now: Reservation | None) -> None:
        """What the ReplicaGroup holds before its pods are bound; None: nothing any more."""
        self._reservations.pop(owner_uid, None)
        if now is not None:
            self._reservations[owner_uid] = now
        self._book(owner_uid)

    def taken(self, nodes: Iterable[str], without: Iterable[str] = ()) -> dict[str, Usage]:
        """Of these nodes, those where something is taken; `without` are owners that do not count."""
        found = {name: self._taken[name] for name in nodes if name in self._taken}
        for owner in without:
            for node, amount in [*self._held_by(owner), *self._booked.get(owner, ())]:
                if node in found:
                    found[node] -= amount
        return found

    def held(self, owners: Iterable[str]) -> dict[str, Usage]:
        """What pods of these owners take on each node."""
        found: dict[str, Usage] = {}
        for owner in owners:
            for node, amount in self._held_by(owner):
                found[node] = found.get(node, _NOTHING) + amount
        return found

    def _held_by(self, owner: str) -> list[tuple[str, Usage]]:
        return [(self._pods[key].node, self._pods[key].amount) for key in self._of_owner.get(owner, ())]

    def _book(self, owner: str) -> None:
        """Members that are bound count with their pods, the others with the reservation."""
        for node, amount in self._booked.pop(owner, ()):
            self._give_back(node, amount)
        reservation = self._reservations.get(owner)
        if reservation is None:
            return
        bound = {self._pods[key].member_index for key in self._of_owner.get(owner, ())}
        open_nodes = [node for index, node in enumerate(reservation.nodes) if index not in bound]
        if open_nodes:
            self._booked[owner] = [(node, reservation.member) for node in open_nodes]
        for node in open_nodes:
            self._take(node, reservation.member)

    def _take(self, node: str, amount: Usage) -> None:
        if amount != _NOTHING:
            self._taken[node] = self._taken.get(node, _NOTHING) + amount

    def _give_back(self, node: str, amount: Usage) -> None:
        left = self._taken.pop(node, _NOTHING) - amount
        if left != _NOTHING:
            self._taken[node] = left
