"""What stands in for a container's file system: paths that pods name, and where they lie on this machine.

There is no image and no root file system. A container sees the machine's own files, except below its mounts and the
few folders that every image is taken to have; paths to those are rewritten in its command, arguments and environment,
at the start of a word or after `=`, `:` or `,`. So `--model-repository=/models` becomes a folder of the pod.

Invariant: only mounts and the folders above them are rewritten; `/dev/null` stays itself where `/dev/shm` is mounted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


class PathMap:
    """The mounts of one container, laid out below `root` as they are below / in a container.

    `mounts` maps absolute container paths to existing files or folders.
    """

    def __init__(self, root: Path, mounts: Mapping[str, Path]) -> None:
        self._root = root
        places = {_clean(path): target for path, target in mounts.items()}
        for path in sorted(places, key=len):
            link = self._at(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(places[path])
        above = {str(parent) for path in places for parent in PurePosixPath(path).parents} - {"/"} - set(places)
        self._pattern = re.compile(rf"(?<![^=:,])(?:(?:{_any_of(places)})(?=[/:,]|$)|(?:{_any_of(above)})(?=[:,]|$))")

    def host(self, path: str) -> Path:
        """Where a container path lies on this machine."""
        return Path(self.rewrite(_clean(path)))

    def rewrite(self, text: str) -> str:
        """`text` with every container path in it replaced."""
        return self._pattern.sub(lambda match: str(self._at(match[0])), text)

    def _at(self, path: str) -> Path:
        return self._root / path.removeprefix("/")


def _clean(path: str) -> str:
    return "/" + str(PurePosixPath(path)).strip("/")


def _any_of(paths: Mapping[str, Path] | set[str]) -> str:
    """An expression for one of the paths, the longest that fits; never matches if there are none."""
    return "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True)) or "(?!)"
