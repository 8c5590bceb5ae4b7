"""What the audit of dependencies makes of pip-audit's answers."""

from __future__ import annotations

from typing import Any

from tools.audit import verdict

FINE = {"name": "idna", "version": "3.20", "vulns": []}
FLAWED = {"name": "aiohttp", "version": "3.8.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.9.4"]}]}
UNKNOWN = {"name": "ours", "version": "1", "skip_reason": "not found"}


def judged(*dependencies: dict[str, Any]) -> tuple[int, list[str]]:
    return verdict({"dependencies": list(dependencies)})


def test_a_known_vulnerability_fails_and_names_the_cure() -> None:
    assert judged(FINE, FLAWED) == (1, ["aiohttp 3.8.0: PYSEC-1, fixed in 3.9.4"])


def test_clean_dependencies_pass() -> None:
    assert judged(FINE) == (0, ["1 dependencies, none vulnerable"])


def test_what_the_database_does_not_know_is_said_and_hides_nothing() -> None:
    status, lines = judged(UNKNOWN, FLAWED)
    assert status == 1
    assert any(line.startswith("SKIPPED") and "ours" in line for line in lines)


def test_a_database_that_cannot_be_reached_is_a_skip_that_is_said() -> None:
    for answer in (verdict(None), judged(UNKNOWN)):
        status, lines = answer
        assert status == 0
        assert lines[0].startswith("SKIPPED: pip-audit")
