"""The files every pod needs from this release of Berth, read from the installed package."""

from __future__ import annotations

from functools import cache

from berth.engine import bundle


@cache
def engine_files() -> dict[str, str]:
    """Text by absolute path in the container: the engine library and Triton's model repository without model.yaml."""
    return {
        **{f"{bundle.LIBRARY_PATH}/{path}": text for path, text in bundle.library().items()},
        **{f"{bundle.REPOSITORY_PATH}/{path}": text for path, text in bundle.repository().items()},
    }
