"""A real Triton server in an environment of its own, made without root: `.venv-triton` in the checkout.

    python -m berth.local.triton_env [--directory .venv-triton] [--lock requirements-triton.lock]

The wheel nvidia-pytriton carries Triton 2.51 for CPUs. Its Python stub is built against numpy 1 and links
libpython3.X.so.1.0, which neither the wheel nor a Python built without --enable-shared has. So an interpreter 3.11 or
3.12 is looked for whose libpython can be found, or fetched with apt and unpacked here; if none is, the error says what
to install. The result looks like NVIDIA's images: `home` stands for /opt/tritonserver.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[3]
DIRECTORY: Final = CHECKOUT / ".venv-triton"
LOCK: Final = CHECKOUT / "requirements-triton.lock"
VERSIONS: Final = ("3.12", "3.11")
"""numpy 1 has no wheels for 3.13; the library in the pod needs 3.11."""
CHOICE: Final = "BERTH_TRITON_PYTHON"
OLDEST_GLIBC: Final = (2, 35)
LIBRARY_DIRECTORIES: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/lib64",
)


class Unavailable(Exception):
    """Triton cannot run or be installed here; the message says why and what to do."""


@dataclass(frozen=True)
class TritonEnv:
    """A finished environment."""

    root: Path
    version: str

    @property
    def home(self) -> Path:
        """Stands for /opt/tritonserver: bin/tritonserver, backends/python."""
        return self.root / "tritonserver"

    @property
    def server(self) -> Path:
        return self.home / "bin" / "tritonserver"

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python3"

    def environment(self) -> dict[str, str]:
        """What a process that starts the server needs: the stub finds numpy by the first `python3` on PATH."""
        packages = self.root / "lib" / f"python{self.version}" / "site-packages"
        return {
            "PATH": f"{self.root / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{self.home / 'lib'}",
        }


@dataclass(frozen=True)
class Interpreter:
    """A Python on this machine, and its shared library if that is known."""

    path: str
    version: str
    library: Path | None

    @property
    def library_name(self) -> str:
        return f"libpython{self.version}.so.1.0"


def find(directory: Path = DIRECTORY, lock: Path = LOCK) -> TritonEnv | None:
    """The environment if it is complete and made from this lock."""
    try:
        stamp = json.loads((directory / "complete.json").read_text())
    except (OSError, ValueError):
        return None
    env = TritonEnv(directory, str(stamp.get("version")))
    return env if stamp.get("lock") == digest(lock) and env.python.exists() else None


def ensure(directory: Path = DIRECTORY, lock: Path = LOCK) -> TritonEnv:
    """Finds or makes the environment; one process makes it, others wait. Raises Unavailable."""
    check_platform()
    directory.parent.mkdir(parents=True, exist_ok=True)
    guard = os.open(directory.parent, os.O_RDONLY)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        return find(directory, lock) or _make(directory, lock)
    finally:
        os.close(guard)


def check_platform() -> None:
    """Raises Unavailable where the wheel's binaries cannot run."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Unavailable(f"Triton's binaries are for Linux on x86_64, this is {system} on {machine}")
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLIBC:
        raise Unavailable(f"Triton's binaries need glibc 2.35 or newer, this is {name or 'no glibc'} {version}")


def digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


# --- interpreter and libpython ----------------------------------------------------------------------------------------
def interpreters() -> Iterator[Interpreter]:
    """Suitable Pythons, the user's choice first, one per real path."""
    names = [sys.executable, *(f"python{version}" for version in VERSIONS), "/usr/bin/python3"]
    for version in VERSIONS:
        names += sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}*/bin/python3")), reverse=True)
        names += sorted(glob.glob(os.path.expanduser(f"~/.local/share/uv/python/cpython-{version}*/bin/python3")))
    if chosen := os.environ.get(CHOICE):
        names = [chosen]
    seen = set()
    for name in names:
        path = shutil.which(name)
        if path and (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            if found := inspect(path):
                yield found


def inspect(path: str) -> Interpreter | None:
    """Asks an interpreter about itself; None if it does not run or is of another version."""
    question = (
        "import json, sys, sysconfig; "
        "print(json.dumps([sys._base_executable, '%d.%d' % sys.version_info[:2], sysconfig.get_config_var('LIBDIR')]))"
    )
    try:
        answer = subprocess.run([path, "-I", "-c", question], capture_output=True, text=True, timeout=30, check=True)
        base, version, directory = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if version not in VERSIONS:
        return None
    candidates = [Path(each) / f"libpython{version}.so.1.0" for each in (directory or "", *LIBRARY_DIRECTORIES)]
    return Interpreter(base, version, next((each for each in candidates if loads(each)), None))


def loads(library: Path) -> bool:
    """Whether the dynamic loader takes it: right architecture, nothing missing."""
    if not library.is_absolute() or not library.exists():
        return False
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY | os.RTLD_LOCAL)
    except OSError:
        return False
    return True


def choose(scratch: Path) -> Interpreter:
    """An interpreter with its libpython, fetched if it must be. Raises Unavailable."""
    found = list(interpreters())
    for interpreter in found:
        if interpreter.library:
            return interpreter
    for interpreter in found:
        if library := fetch_library(interpreter, scratch):
            return Interpreter(interpreter.path, interpreter.version, library)
    if not found:
        raise Unavailable(
            f"Triton's Python stub needs Python {' or '.join(VERSIONS)}: install one beside yours (Debian, Ubuntu: "
            f"apt install python3.12 libpython3.12; uv: uv python install 3.12) or name it in {CHOICE}"
        )
    name, version = found[0].library_name, found[0].version
    raise Unavailable(
        f"{name} is missing: install it (Debian, Ubuntu: apt install libpython{version}; Fedora: dnf install "
        f"python{version}-libs; pyenv: rebuild with PYTHON_CONFIGURE_OPTS=--enable-shared), or name another Python "
        f"{' or '.join(VERSIONS)} in {CHOICE}"
    )


def fetch_library(interpreter: Interpreter, scratch: Path) -> Path | None:
    """Downloads the distribution's package with apt and unpacks it here, without root; None if that does not work."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    scratch.mkdir(parents=True, exist_ok=True)
    package = f"libpython{interpreter.version}"
    lists = scratch / "lists"
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={scratch / 'cache'}"]
    attempts: list[list[list[str]]] = [
        [["apt-get", "download", package]],
        [["apt-get", *own, "update"], ["apt-get", *own, "download", package]],
    ]
    for commands in attempts:
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        if all(_quiet(command, scratch) for command in commands):
            break
    for archive in scratch.glob(f"{package}_*.deb"):
        if _quiet(["dpkg-deb", "-x", str(archive), str(scratch / "unpacked")], scratch):
            for library in (scratch / "unpacked").rglob(interpreter.library_name):
                if loads(library):
                    return library
    return None


def _quiet(command: list[str], directory: Path) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, cwd=directory, capture_output=True, timeout=300).returncode == 0
    return False


# --- making it --------------------------------------------------------------------------------------------------------
def _make(directory: Path, lock: Path) -> TritonEnv:
    new = directory.with_name(directory.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)
    try:
        interpreter = choose(new / "packages")
        assert interpreter.library is not None
        print(f"Triton server: Python {interpreter.version} at {interpreter.path}", flush=True)
        _run([interpreter.path, "-m", "venv", "--without-pip", str(new)])
        env = TritonEnv(new, interpreter.version)
        print("Triton server: downloading nvidia-pytriton and numpy (75 MB)", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(env.python)]
        _run([*pip, "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", f"-r{lock}"])
        _lay_out(env, interpreter)
        (new / "complete.json").write_text(json.dumps({"version": env.version, "lock": digest(lock)}))
        new.rename(directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return TritonEnv(directory, interpreter.version)


def _lay_out(env: TritonEnv, interpreter: Interpreter) -> None:
    """The server finds its backend beside it, and the backend its stub: the wheel keeps them apart."""
    assert interpreter.library is not None
    wheel = env.root / "lib" / f"python{env.version}" / "site-packages" / "pytriton" / "tritonserver"
    backend = env.home / "backends" / "python"
    backend.mkdir(parents=True)
    env.server.parent.mkdir()
    (env.home / "lib").mkdir()
    env.server.symlink_to(os.path.relpath(wheel / "bin" / "tritonserver", env.server.parent))
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(wheel / "backends" / "python" / name, backend)
    shutil.copy(wheel / "python_backend_stubs" / env.version / "triton_python_backend_stub", backend)
    shutil.copy(interpreter.library, env.home / "lib" / interpreter.library_name)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{' '.join(command[:4])} ...: {error}") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:4])} ... failed: {done.stderr.strip()[-1000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the environment in which a real Triton server runs.")
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    parser.add_argument("--lock", type=Path, default=LOCK)
    arguments = parser.parse_args()
    try:
        env = ensure(arguments.directory.resolve(), arguments.lock.resolve())
    except Unavailable as error:
        print(f"no Triton server: {error}", file=sys.stderr)
        return 1
    print(f"Triton server: {env.server}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
