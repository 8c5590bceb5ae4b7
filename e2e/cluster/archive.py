"""Container images written without an engine, as archives in Docker's format: the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, cast

from e2e.cluster.shell import run

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EPOCH: Final = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Image:
    """`layers` are folders, lowest first; what they hold belongs to root."""

    name: str
    layers: Sequence[Path]
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_directory: str = "/"


def write(path: Path, images: Sequence[Image]) -> None:
    """All images in one archive, each layer once."""
    manifest, layers = [], dict[Path, str]()
    with tarfile.open(path, "w") as tar, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        for image in images:
            ids = []
            for folder in image.layers:
                if folder not in layers:
                    layers[folder] = _layer(folder, Path(scratch) / "layer")
                    tar.add(Path(scratch) / "layer", f"{layers[folder]}.tar.gz", filter=_anonymous)
                ids.append(layers[folder])
            config = _config(image, ids)
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _put(tar, name, config)
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": [f"{each}.tar.gz" for each in ids]})
        _put(tar, "manifest.json", json.dumps(manifest).encode())


def _layer(folder: Path, output: Path) -> str:
    """Writes the folder as a compressed tar; the digest of the tar before compression."""
    total = hashlib.sha256()

    class Tee:
        def __init__(self, target: BinaryIO) -> None:
            self.target = target

        def write(self, data: bytes) -> int:
            total.update(data)
            return self.target.write(data)

    with (
        output.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as zipped,
    ):
        tee = cast(BinaryIO, Tee(cast(BinaryIO, zipped)))
        with tarfile.open(fileobj=tee, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for parent, folders, files in os.walk(folder):
                folders.sort()
                for name in sorted(folders + files):
                    _add(tar, folder, Path(parent) / name)
    return total.hexdigest()


def _add(tar: tarfile.TarFile, root: Path, path: Path) -> None:
    entry = tar.gettarinfo(str(path), str(path.relative_to(root)))
    if entry is None:  # a socket
        return
    if entry.islnk():  # a second name of a file: its content again, so that no order of names is needed
        entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
    _anonymous(entry)
    if entry.isreg():
        with path.open("rb") as file:
            tar.addfile(entry, file)
    else:
        tar.addfile(entry)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Says nothing about when and by whom it was made."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = "root"
    return entry


def _config(image: Image, layers: Sequence[str]) -> bytes:
    environment = {"PATH": PATH, **image.environment}
    settings = {
        "Env": [f"{name}={value}" for name, value in environment.items()],
        **({"Entrypoint": list(image.entrypoint)} if image.entrypoint else {}),
        **({"Cmd": list(image.command)} if image.command else {}),
        **({"User": image.user} if image.user else {}),
        "WorkingDir": image.working_directory,
    }
    content = {
        "architecture": "amd64",
        "os": "linux",
        "created": _EPOCH,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each}" for each in layers]},
        "history": [{"created": _EPOCH, "created_by": "e2e"} for _ in layers],
    }
    return json.dumps(content, sort_keys=True).encode()


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, BytesIO(data))


def copy_with_libraries(root: Path, place: Path, programs: Sequence[str]) -> None:
    """Programs of a root file system with the shared libraries that they load, at the same paths."""
    needed = set(programs)
    for program in programs:
        for word in run("chroot", root, "ldd", program).split():
            if word.startswith("/"):
                needed.add(word)
    for name in sorted(needed):
        target = place / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name.lstrip("/"), target)
