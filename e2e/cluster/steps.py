"""Things that are made once: a step is named by its inputs' content, and moved to its place when it is complete.

So an interrupted build continues with the step that it was in, an unchanged one is never done twice, and several
processes may ask at once. Older results of a step are removed when a newer one is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from berth.local.binaries import cache_folder

Input = str | bytes | Path


def say(line: str) -> None:
    print(f"e2e: {line}", file=sys.stderr, flush=True)


def cache() -> Path:
    """Folder of everything that the cluster is built from; the programs lie beside it."""
    folder = cache_folder().parent / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(inputs: Iterable[Input]) -> str:
    """Of texts, and of files and folders by content, names and whether they can be executed."""
    total = hashlib.sha256()
    for each in inputs:
        if isinstance(each, Path):
            for path in sorted(each.rglob("*")) if each.is_dir() else [each]:
                if path.is_file() and "__pycache__" not in path.parts:
                    name = str(path.relative_to(each)) if path != each else path.name
                    total.update(f"{name}\0{path.stat().st_mode & 0o111}\0".encode())
                    total.update(hashlib.sha256(path.read_bytes()).digest())
        else:
            data = each.encode() if isinstance(each, str) else each
            total.update(hashlib.sha256(data).digest())
    return total.hexdigest()[:16]


def made(name: str, inputs: Iterable[Input], make: Callable[[Path], None]) -> Path:
    """The result of step `name` for these inputs: a folder that `make` filled."""
    place = cache() / f"{name}-{digest(inputs)}"
    with locked(cache() / f".{name}.lock"):
        if place.is_dir():
            return place
        partial = cache() / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        began = time.monotonic()
        say(f"{name}: making it")
        make(partial)
        for old in cache().glob(f"{name}-" + "?" * 16):
            shutil.rmtree(old, ignore_errors=True)
        partial.rename(place)
        say(f"{name}: made in {time.monotonic() - began:.0f} s")
    return place


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock that ends with the process."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
