"""Entry point of the console scripts `berth` and `kubectl-berth`, and of `python -m berth`."""

from __future__ import annotations

from berth.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
