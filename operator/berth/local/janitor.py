"""The last one out: waits until its supervisor is gone, however it ended, and removes what may be left.

    python -m berth.local.janitor MARK MEMORY-FOLDER ADDRESS-PREFIX

The supervisor holds the other end of standard input. The janitor also inherits the lock of the cluster, so that whoever
gets the lock after a cluster knows that all of it is gone.
"""

from __future__ import annotations

import shutil
import signal
import sys

from berth.local.sandbox import remove_regions, sweep


def main(mark: str, memory: str, addresses: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    sweep(mark)
    remove_regions(addresses)
    shutil.rmtree(memory, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
