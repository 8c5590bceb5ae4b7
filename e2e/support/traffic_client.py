"""Runs in a pod: streams of tokens through a Service until told to stop, and one line about every request.

    python traffic_client.py FILE ADDRESS RATE INPUT_TOKENS OUTPUT_TOKENS LIMIT_SECONDS

Starts itself in the background and returns. FILE gets a JSON object per request that ended; when a file of that name
with the suffix `.stop` exists no new one is sent, and `.done` appears after the last has ended. The requests are those
of the demonstration's client: a few connections that are kept, one retry on UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from berth.local.demo.client import Outcome, Replay
from berth.local.demo.trace import Request


class Written(list[Outcome]):
    """Outcomes that are written down as they are added; times become those of the wall clock."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w", buffering=1)
        self._zero = time.time()

    def append(self, outcome: Outcome) -> None:
        super().append(outcome)
        line: dict[str, Any] = {
            name: None if value is None else round(self._zero + value, 3)
            for name, value in (("sent", outcome.sent), ("first", outcome.first), ("last", outcome.last))
        }
        retried = None if outcome.broken_at is None else round(self._zero + outcome.broken_at, 3)
        line |= {"ended": round(time.time(), 3), "retried": retried, "tokens": outcome.tokens, "error": outcome.error}
        self._file.write(json.dumps(line) + "\n")


def requests(stop: Path, rate: float, input_tokens: int, output_tokens: int, limit: float) -> Iterator[Request]:
    for number in range(int(rate * limit)):
        if stop.exists():
            return
        yield Request(number / rate, input_tokens, output_tokens)


def main(path: Path, address: str, rate: str, input_tokens: str, output_tokens: str, limit: str) -> None:
    planned = requests(path.with_suffix(".stop"), float(rate), int(input_tokens), int(output_tokens), float(limit))
    outcomes = Written(path)
    replay = Replay(
        address, cast(Sequence[Request], planned), connections=4, longest=int(output_tokens), outcomes=outcomes
    )
    asyncio.run(replay.run())
    path.with_suffix(".done").touch()


if __name__ == "__main__":
    if os.fork() == 0:
        os.setsid()
        with open(f"{sys.argv[1]}.log", "wb") as log, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        main(Path(sys.argv[1]), *sys.argv[2:])
