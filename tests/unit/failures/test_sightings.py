"""What counts as silence, and when silence proves nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from berth.core.observed import Contact
from berth.core.sightings import LONGEST_GAP, Freezer, Lasting, LeaseWatch, evacuations_frozen

LATE, SILENT = 12.0, 20.0


class Watched:
    """A watch of Leases that are looked at every other second; `renewals` are counted per node."""

    def __init__(self, *nodes: str, duration: float = 40.0) -> None:
        self.watch = LeaseWatch(LATE, SILENT)
        self.now = 1000.0
        self.duration = duration
        self.renewals = dict.fromkeys(nodes, 0)

    def look(self, seconds: float, *, step: float = 2.0, renewing: frozenset[str] = frozenset()) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for node in renewing:
                self.renewals[node] += 1
            self.watch.look({node: (str(count), self.duration) for node, count in self.renewals.items()}, self.now)

    def contact(self, node: str) -> Contact:
        return self.watch.contact(node, self.now)


ALL = frozenset({"a", "b"})


def test_a_lease_that_stops_changing_is_late_and_then_silent() -> None:
    watched = Watched("a", "b")
    watched.look(10, renewing=ALL)
    assert {watched.contact("a"), watched.contact("b")} == {Contact.FRESH}
    watched.look(10, renewing=frozenset("b"))
    assert watched.contact("a") is Contact.FRESH
    watched.look(2, renewing=frozenset("b"))
    assert watched.contact("a") is Contact.LATE
    watched.look(8, renewing=frozenset("b"))
    assert (watched.contact("a"), watched.contact("b")) == (Contact.SILENT, Contact.FRESH)
    watched.look(2, renewing=ALL)
    assert watched.contact("a") is Contact.FRESH


def test_kubelets_with_long_leases_get_more_time() -> None:
    watched = Watched("a", duration=200.0)
    watched.look(10, renewing=frozenset("a"))
    watched.look(58)
    assert watched.contact("a") is Contact.FRESH, "it renews every 50 s"
    watched.look(44)
    assert watched.contact("a") is Contact.SILENT


def test_after_an_outage_of_the_api_server_everything_is_watched_afresh() -> None:
    watched = Watched("a")
    watched.look(10, renewing=frozenset("a"))
    watched.look(8)
    watched.now += 300  # nothing could be read, and nothing could be renewed
    assert watched.contact("a") is Contact.UNKNOWN
    watched.look(10)
    assert watched.contact("a") is Contact.FRESH
    watched.look(20)
    assert watched.contact("a") is Contact.SILENT


def test_a_node_that_was_never_seen_to_renew_is_not_taken_for_well() -> None:
    watched = Watched("a")
    watched.look(8)
    assert watched.contact("a") is Contact.UNKNOWN
    assert watched.contact("elsewhere") is Contact.UNKNOWN


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60))
def test_only_watched_time_makes_silent(steps: list[float]) -> None:
    watched = Watched("a")
    watched.look(2, renewing=frozenset("a"))
    counted = 0.0
    for step in steps:
        watched.look(step, step=step)
        counted = counted + step if step <= LONGEST_GAP else 0.0
        assert (watched.contact("a") is Contact.SILENT) == (counted >= SILENT - 1e-6) or abs(counted - SILENT) < 1e-6


def test_a_report_counts_after_it_lasted_without_a_break() -> None:
    sick = Lasting(hold=3.0)
    assert sick.see(["gpu"], 10) == 3.0
    assert not sick.lasts("gpu", 12)
    sick.see([], 12)
    sick.see(["gpu"], 13)
    assert not sick.lasts("gpu", 15)
    sick.see(["gpu"], 16)
    assert sick.lasts("gpu", 16)


def names(prefix: str, count: int) -> frozenset[str]:
    return frozenset(f"{prefix}{number}" for number in range(count))


def frozen(pool: int, silent: int, *, others: int = 4, silent_others: int = 0, anybody: bool = True) -> str:
    suspects = names("p", silent) | names("o", silent_others)
    fresh = (names("p", pool) | names("o", others)) - suspects
    return evacuations_frozen(names("p", pool), suspects, fresh, anybody_reached=anybody)


def test_a_node_that_dies_is_evacuated() -> None:
    assert frozen(4, 1) == frozen(4, 2) == frozen(1, 1) == ""


def test_a_pool_that_dies_alone_is_evacuated() -> None:
    assert frozen(4, 4) == "", "nodes elsewhere are well and somebody is reached: the pool is gone"


def test_a_pool_that_falls_silent_with_others_is_not() -> None:
    assert frozen(4, 3, silent_others=3) == "3 of 4 nodes are silent, and 3 of 4 others are too"
    assert frozen(4, 3, silent_others=1) == "", "one node elsewhere that died long ago is no witness"
    assert frozen(4, 2, silent_others=4) == "", "half of the pool is not more than half"


def test_silence_proves_nothing_while_no_leader_can_be_reached() -> None:
    assert frozen(4, 3, anybody=False) == "3 of 4 nodes are silent and no leader anywhere can be reached"


def test_silence_of_everybody_proves_nothing_however_few_they_are() -> None:
    assert "more likely on Berth's side" in frozen(1, 1, others=0)
    assert "more likely on Berth's side" in frozen(2, 2, others=3, silent_others=3)


def test_a_freeze_outlasts_its_reason_because_nodes_come_back_one_by_one() -> None:
    freezer = Freezer(calm=30.0)
    assert freezer.update({"h100": "because"}, 100) == {"h100"}
    assert freezer.update({"h100": "because"}, 150) == frozenset(), "begun once"
    assert freezer.update({"h100": ""}, 170) == frozenset()
    assert freezer.frozen == {"h100": "because"}
    freezer.update({"h100": ""}, 181)
    assert freezer.frozen == {}
