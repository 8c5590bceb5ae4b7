"""Known vulnerabilities of what requirements.lock pins, by pip-audit.

    python -m tools.audit

Fails on a known vulnerability. Where the advisory database cannot be reached it audits nothing and says so in a line
that begins with SKIPPED, as anything does that could not be checked: an outage of a database is no fault of the change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCK: Final = ROOT / "requirements.lock"
TIMEOUT_SECONDS: Final = 120


def report(lock: Path = LOCK) -> dict[str, Any] | None:
    """pip-audit's report about the pins of `lock`; None with a line on standard error where it had none to give."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(lock)]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        print(f"pip-audit: {error}", file=sys.stderr)
        return None
    return found


def verdict(found: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Exit status and what to say. What the database does not know was not audited, and counts as unreachable only when
    it knows nothing at all."""
    dependencies = found["dependencies"] if found else []
    audited = [each for each in dependencies if "skip_reason" not in each]
    if not audited:
        return 0, ["SKIPPED: pip-audit: the advisory database cannot be reached, no dependency was audited"]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no release'}"
        for each in audited
        for flaw in each["vulns"]
    ]
    unknown = [each["name"] for each in dependencies if "skip_reason" in each]
    if unknown:
        lines.append(f"SKIPPED: pip-audit: not in the advisory database: {', '.join(unknown)}")
    return int(any(each["vulns"] for each in audited)), lines or [f"{len(audited)} dependencies, none vulnerable"]


def main() -> None:
    status, lines = verdict(report())
    print("\n".join(lines))
    sys.exit(status)


if __name__ == "__main__":
    main()
