"""The fault switches of a simulated engine, thrown from outside its pod."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from berth.engine import contract


def switch(folder: Path, faults: Mapping[str, Any]) -> None:
    """The faults of the engine whose launcher works in `folder`, all at once; empty ends all of them."""
    new = folder / "faults.new"
    new.write_text(json.dumps({fault: value for fault, value in faults.items() if value}))
    new.rename(folder / contract.DEFAULT_FAULT_FILE)
