"""Entry point of the console scripts `berth` and `kubectl-berth`, and of `python -m berth`."""

from __future__ import annotations

import sys
from pathlib import Path

from berth import cli


def main() -> None:
    """The command line, under the name by which it was called."""
    plugin = Path(sys.argv[0]).name.startswith("kubectl-berth")
    cli.main(prog_name="kubectl berth" if plugin else "berth", complete_var="_BERTH_COMPLETE")


def complete() -> None:
    """What kubectl runs to complete `kubectl berth`."""
    from berth.cli.kubectl.completion import kubectl_complete

    kubectl_complete()


if __name__ == "__main__":
    main()
