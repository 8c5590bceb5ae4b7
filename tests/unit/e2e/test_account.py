"""Every request of a client is accounted for, and a fault excuses only those around it."""

from __future__ import annotations

import dataclasses

import pytest

from e2e.support.faults import Fault
from e2e.support.traffic import Account, Sent

FINE = Sent(sent=0, first=0.1, last=0.5, ended=0.5, retried=None, tokens=24, error="")


def sent(at: float, *, took: float = 0.5, error: str = "") -> Sent:
    return dataclasses.replace(FINE, sent=at, ended=at + took, error=error)


def account(*failed: float) -> Account:
    """A request a second for a minute; those sent at `failed` get no answer."""
    return Account(tuple(sent(at, error="lost" if at in failed else "") for at in range(60)))


def test_failures_around_the_fault_are_excused_and_returned() -> None:
    during = Fault(at=20, aftermath=10).check(account(20, 25, 29))
    assert [each.sent for each in during.failed] == [20, 25, 29]
    assert len(during.requests) == 10


@pytest.mark.parametrize(
    ("failed", "words"), [(10, "before the fault"), (30, "after the fault"), (55, "after the fault")]
)
def test_any_other_failure_is_told(failed: int, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        Fault(at=20, aftermath=10).check(account(failed))


def test_a_request_on_its_way_at_the_fault_belongs_to_it() -> None:
    requests = (*account().requests, sent(18, took=5, error="broken"))
    assert len(Fault(at=20, aftermath=10).check(Account(requests)).failed) == 1


def test_no_traffic_proves_nothing() -> None:
    with pytest.raises(AssertionError, match="traffic"):
        Fault(at=100, aftermath=10).check(account())


def test_the_longest_gap_is_between_answers() -> None:
    silent = Account(tuple(each for each in account().requests if not 20 <= each.sent < 27))
    assert silent.longest_gap() == 8
    assert "60 requests, 1 failed" in str(account(5))
