"""Root file systems from Debian packages: one for the nodes, one under the images that need Python.

DEBIAN_ARCHIVE names another archive than debootstrap's own choice. Package versions are those of the day, so the
result is kept until the list of packages here changes, or its folder in the cache is removed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from e2e.cluster.engine import NoEngine
from e2e.cluster.shell import Failed, run
from e2e.cluster.steps import made

SUITE: Final = "bookworm"
NODE: Final = (
    *("systemd", "systemd-sysv", "dbus", "mount", "kmod", "procps", "util-linux", "hostname"),
    *("iproute2", "iptables", "nftables", "conntrack", "ethtool", "socat", "runc", "libseccomp2", "ca-certificates"),
)
PYTHON: Final = ("python3", "libpython3.11", "ca-certificates")
PYTHON_VERSION: Final = "3.11"
_NOT_NEEDED: Final = ("var/cache/apt", "var/lib/apt/lists", *(f"usr/share/{each}" for each in ("doc", "man", "locale")))


def node() -> Path:
    """What every node starts from."""
    return made("rootfs-node", ["1", SUITE, *NODE], lambda place: _debootstrap(place, NODE))


def python() -> Path:
    """Python as Debian has it, without package managers."""
    return made("rootfs-python", ["1", SUITE, *PYTHON], _python)


def _python(place: Path) -> None:
    _debootstrap(place, PYTHON)
    for pattern in ("usr/bin/apt*", "usr/bin/dpkg*", "usr/lib/apt", "var/lib/apt", "usr/lib/python3*/ensurepip"):
        for path in place.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (place / "usr/bin/python").symlink_to("python3")


def _debootstrap(place: Path, packages: tuple[str, ...]) -> None:
    if not shutil.which("debootstrap"):
        if not shutil.which("apt-get"):
            raise NoEngine("debootstrap is not installed: install it, or use a public image with NODE_IMAGE=")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap")
    archive = os.environ.get("DEBIAN_ARCHIVE")
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(place)]
    try:
        run(*command, *([archive] if archive else []), timeout=1500)
    except Failed as error:
        raise NoEngine(f"Debian packages are not to be had (DEBIAN_ARCHIVE names another archive): {error}") from error
    for name in _NOT_NEEDED:
        shutil.rmtree(place / name, ignore_errors=True)
    # Devices are the runtime's to make. Copied as files, they would never end.
    shutil.rmtree(place / "dev")
    (place / "dev").mkdir()
