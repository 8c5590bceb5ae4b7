"""The programs of a real control plane, Helm and a policy checker: found here, or built once from pinned Go modules.

`gomodules/<module>/go.mod` and `go.sum` pin every source file of every program; `go build -mod=readonly` refuses
anything else. Others may have folders of such modules too, also with a program of their own in them
(`Binary.modules`). Built programs live in the user's cache folder under a name made of what they were built from, so
that a changed pin is a new folder and an unchanged one never builds again, also after an upgrade of Go. Several
processes may ask at once: one builds, the others wait for it. Nothing but the Go module proxy is contacted, and only
for a build.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from berth.errors import BerthError

Report = Callable[[str], None]
"""Takes one line of progress for a person."""

GO_MODULES: Final = Path(__file__).parent / "gomodules"
KUBERNETES_VERSION: Final = "v1.37.2"
HELM_VERSION: Final = "v4.3.1"
HELM3_VERSION: Final = "v3.22.0"
KUBE_SCORE_VERSION: Final = "v1.20.0"
REPORT_EVERY: Final = 15.0
"""Seconds between two lines of progress of one build."""

KUBERNETES_STAMPS: Final = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": KUBERNETES_VERSION[1:].split(".")[0],
        "gitMinor": KUBERNETES_VERSION[1:].split(".")[1],
        "gitTreeState": "clean",
    }.items()
)


class BinaryUnavailable(BerthError):
    """A program is neither on this machine nor can be built; the message names the remedy."""


@dataclass(frozen=True)
class Binary:
    """One program: where its source is pinned, and how it says its version."""

    name: str
    module: str
    """Folder below `modules`."""
    package: str
    version: str
    """What the output of `version_arguments` must contain."""
    version_arguments: tuple[str, ...] = ("--version",)
    """Empty: it cannot say its version, so only one that was built here counts."""
    linker_flags: str = "-s -w"
    tags: str = ""
    """Build tags, separated by commas."""
    modules: Path = GO_MODULES

    @property
    def folder(self) -> Path:
        return self.modules / self.module


def _kubernetes(name: str, *version_arguments: str) -> Binary:
    return Binary(
        name=name,
        module="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        version=KUBERNETES_VERSION,
        version_arguments=version_arguments or ("--version",),
        linker_flags=f"-s -w {KUBERNETES_STAMPS}",
    )


def _helm(name: str, major: str, version: str, *linker_flags: str) -> Binary:
    return Binary(
        name=name,
        module=name,
        package=f"helm.sh/helm/{major}/cmd/helm",
        version=version,
        version_arguments=("version", "--template", "{{.Version}}"),
        linker_flags=" ".join((f"-s -w -X helm.sh/helm/{major}/internal/version.version={version}", *linker_flags)),
    )


BINARIES: Final = {
    binary.name: binary
    for binary in (
        Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3", "3.7.3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubectl", "version", "--client"),
        Binary("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
        _helm("helm", "v4", HELM_VERSION),
        _helm(
            "helm3",
            "v3",
            HELM3_VERSION,
            *(  # what it takes a cluster for when it renders without one
                f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={number}"
                for package in ("chartutil", "lint/rules")
                for part, number in zip(("Major", "Minor"), KUBERNETES_VERSION[1:].split("."), strict=False)
            ),
        ),
        Binary(
            "kube-score",
            "kube-score",
            "github.com/zegl/kube-score/cmd/kube-score",
            KUBE_SCORE_VERSION,
            ("version",),
            f"-s -w -X main.version={KUBE_SCORE_VERSION}",
        ),
    )
}


def provide(wanted: Iterable[str | Binary], report: Report | None = None) -> dict[str, Path]:
    """Paths of programs by name (BINARIES has the names), building what is missing.

    `report` gets a line per step of a build, by default on standard error; it is silent when nothing is built.
    Raises BinaryUnavailable.
    """
    say = report or _print
    missing: list[Binary] = []
    found: dict[str, Path] = {}
    for each in wanted:
        binary = BINARIES[each] if isinstance(each, str) else each
        if path := _in_assets(binary, say) or _cached(binary) or _in_path(binary):
            found[binary.name] = path
        else:
            missing.append(binary)
    for index, binary in enumerate(missing, start=1):
        found[binary.name] = _build(binary, f"[{index}/{len(missing)}] {binary.name} {binary.version}".rstrip(), say)
    return found


def cache_folder() -> Path:
    """`berth/bin` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "berth" / "bin"


def build_folder(binary: Binary) -> Path:
    """Where `binary` lies once built, named by everything that decides what the build gives."""
    content = hashlib.sha256()
    for part in (
        (binary.folder / "go.mod").read_bytes(),
        (binary.folder / "go.sum").read_bytes(),
        binary.linker_flags.encode(),
        f"{platform.system()}/{platform.machine()}".encode(),
        *([binary.tags.encode()] if binary.tags else []),
        *(source.read_bytes() for source in sorted(binary.folder.glob("*.go"))),
    ):
        content.update(hashlib.sha256(part).digest())
    return cache_folder() / f"{binary.module}-{content.hexdigest()[:16]}"


def _cached(binary: Binary) -> Path | None:
    path = build_folder(binary) / binary.name
    return path if path.is_file() else None


def _in_assets(binary: Binary, report: Report) -> Path | None:
    """The program in the folder that the caller chose; another version there is said, not used."""
    folder = os.environ.get("KUBEBUILDER_ASSETS") if binary.version_arguments else None
    path = shutil.which(binary.name, path=folder) if folder else None
    if path and not _says_version(Path(path), binary):
        report(f"{path} (KUBEBUILDER_ASSETS) is not {binary.version}: not used")
        return None
    return Path(path).resolve() if path else None


def _in_path(binary: Binary) -> Path | None:
    path = shutil.which(binary.name) if binary.version_arguments else None
    return Path(path).resolve() if path and _says_version(Path(path), binary) else None


def _says_version(path: Path, binary: Binary) -> bool:
    try:
        answer = subprocess.run([path, *binary.version_arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"(?<![\w.+-]){re.escape(binary.version)}(?![\w.+-])", answer.stdout) is not None


def _build(binary: Binary, title: str, report: Report) -> Path:
    folder = build_folder(binary)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / binary.name
    with _locked(folder / f".{binary.name}.lock", lambda: report(f"{title}: another process builds it, waiting")):
        if path.is_file():
            return path
        go = _go(binary)
        partial = folder / f".{binary.name}.partial"
        started = time.monotonic()
        report(f"{title}: building from source, once per version")
        _run_go_build(go, binary, partial, lambda line: report(f"{title}: {line}"))
        if binary.version_arguments and not _says_version(partial, binary):
            raise BinaryUnavailable(f"{binary.name}: the build does not say {binary.version}; this is a bug in Berth")
        partial.replace(path)
        report(f"{title}: built in {time.monotonic() - started:.0f} s")
    return path


def _go(binary: Binary) -> str:
    """The go command, known to be able to build the module (Go fetches a newer toolchain by itself, if allowed)."""
    remedy = (
        f"install Go {_wanted_go(binary)} or newer, or point KUBEBUILDER_ASSETS at a folder with "
        f"{binary.name} {binary.version}"
    )
    go = shutil.which("go")
    if go is None:
        raise BinaryUnavailable(f"{binary.name}: not found, and no go command in PATH to build it: {remedy}")
    check = subprocess.run(
        [go, "list", "-mod=readonly", "-m"],
        cwd=binary.folder,
        env=_go_environment(),
        capture_output=True,
        text=True,
    )
    if check.returncode != 0:
        raise BinaryUnavailable(f"{binary.name}: {go} cannot build it ({_last_line(check.stderr)}): {remedy}")
    return go


def _wanted_go(binary: Binary) -> str:
    match = re.search(r"^go (\d+\.\d+)", (binary.folder / "go.mod").read_text(), re.MULTILINE)
    assert match, "every go.mod names its Go version"
    return match[1]


def _run_go_build(go: str, binary: Binary, output: Path, report: Report) -> None:
    """Compiles to `output`; `go build -v` names each package it compiles, which is the progress."""
    command = [go, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    command += ["-tags", binary.tags, "-ldflags", binary.linker_flags, "-o", str(output), binary.package]
    started = reported = time.monotonic()
    compiled, errors = 0, [""]
    with subprocess.Popen(
        command,
        cwd=binary.folder,
        env=_go_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.fullmatch(r"[\w.~/-]+", line.strip()):
                compiled += 1
            elif not line.startswith("go: downloading"):
                errors = [*errors, line.rstrip()][-10:]
            if time.monotonic() - reported >= REPORT_EVERY:
                reported = time.monotonic()
                report(f"{compiled} packages compiled, {reported - started:.0f} s")
    if process.returncode != 0:
        output.unlink(missing_ok=True)
        reason = "\n  ".join(errors)
        raise BinaryUnavailable(
            f"{binary.name}: go build failed; if the Go module proxy cannot be reached, set GOPROXY, or point "
            f"KUBEBUILDER_ASSETS at a folder with {binary.name} {binary.version}:{reason}"
        )


def _go_environment() -> dict[str, str]:
    """The caller's environment without what would change the result: flags, workspaces, C code, target."""
    kept = {name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH", "GOEXPERIMENT"}}
    return {**kept, "GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0"}


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds an advisory lock that the kernel releases when the process ends, however it ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
