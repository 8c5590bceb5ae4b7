"""Programs are found where they may be found, built where they must be, and never in a wrong version."""

from __future__ import annotations

import dataclasses
import fcntl
import re
import stat
import sys
import threading
from pathlib import Path

import pytest

from berth.local import binaries
from berth.local.binaries import BINARIES, BinaryUnavailable, build_folder, provide

SCHEDULER = BINARIES["kube-scheduler"]


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without cache, without programs, without Go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)


def program(path: Path, body: str) -> Path:
    """An executable Python script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def scheduler(folder: Path, version: str = "v1.37.2") -> Path:
    return program(folder / "kube-scheduler", f"print('Kubernetes {version}')")


def go(folder: Path, *, builds: str = "Kubernetes v1.37.2", fails: str = "") -> Path:
    """A stand-in for the go command that writes what `go build` would, and a line per call beside itself."""
    return program(
        folder / "go",
        f"""
open(os.path.join({str(folder)!r}, "calls"), "a").write(" ".join(sys.argv[1:]) + "\\n")
if {fails!r}:
    sys.exit({fails!r})
if sys.argv[1] == "build":
    print("k8s.io/kubernetes/cmd/kube-scheduler", file=sys.stderr)
    output = sys.argv[sys.argv.index("-o") + 1]
    open(output, "w").write("#!{sys.executable}\\nprint({builds!r})\\n")
    os.chmod(output, 0o755)
""",
    )


def test_the_chosen_assets_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler(tmp_path / "path")
    chosen = scheduler(tmp_path / "assets")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert provide(["kube-scheduler"]) == {"kube-scheduler": chosen}


def test_a_program_in_path_of_the_pinned_version_is_used(tmp_path: Path) -> None:
    found = scheduler(tmp_path / "path")
    assert provide(["kube-scheduler"]) == {"kube-scheduler": found}


@pytest.mark.parametrize("version", ["v1.37.1", "v1.37.20", "v1.37.2-rc.1", "vv1.37.2"])
def test_another_version_is_not_used_and_chosen_assets_are_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    scheduler(tmp_path / "path", version)
    scheduler(tmp_path / "assets", version)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    lines: list[str] = []
    with pytest.raises(BinaryUnavailable):
        provide(["kube-scheduler"], lines.append)
    assert lines == [f"{tmp_path}/assets/kube-scheduler (KUBEBUILDER_ASSETS) is not v1.37.2: not used"]


def test_without_go_the_remedies_are_named() -> None:
    with pytest.raises(BinaryUnavailable, match=r"no go command.*install Go 1\.26 or newer.*KUBEBUILDER_ASSETS"):
        provide(["kube-scheduler"])


def test_a_go_that_cannot_build_the_module_is_quoted(tmp_path: Path) -> None:
    go(tmp_path / "path", fails="go: go.mod requires go >= 1.26.0 (running go 1.19; GOTOOLCHAIN=local)")
    with pytest.raises(BinaryUnavailable, match=r"running go 1\.19; GOTOOLCHAIN=local\)+: install Go 1\.26 or newer"):
        provide(["kube-scheduler"])


def test_a_missing_program_is_built_once_from_the_pinned_module(tmp_path: Path) -> None:
    go(tmp_path / "path")
    lines: list[str] = []
    built = provide(["kube-scheduler"], lines.append)["kube-scheduler"]
    assert built.parent == build_folder(SCHEDULER)
    assert provide(["kube-scheduler"], lines.append) == {"kube-scheduler": built}
    calls = (tmp_path / "path" / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["list", "build"]
    assert "-mod=readonly" in calls[1]
    assert calls[1].endswith("k8s.io/kubernetes/cmd/kube-scheduler")
    assert re.fullmatch(r"\[1/1\] kube-scheduler v1.37.2: built in \d+ s", lines[-1])


def test_a_failed_build_quotes_the_compiler_and_leaves_nothing_that_looks_built(tmp_path: Path) -> None:
    program(
        tmp_path / "path" / "go",
        "print('k8s.io/api: dial tcp: no route', file=sys.stderr); sys.exit(sys.argv[1] == 'build')",
    )
    with pytest.raises(BinaryUnavailable, match=r"(?s)set GOPROXY.*dial tcp: no route"):
        provide(["kube-scheduler"])
    assert not (build_folder(SCHEDULER) / "kube-scheduler").exists()


def test_a_build_that_says_another_version_is_refused(tmp_path: Path) -> None:
    go(tmp_path / "path", builds="Kubernetes v0.0.0")
    with pytest.raises(BinaryUnavailable, match=r"does not say v1\.37\.2"):
        provide(["kube-scheduler"])
    assert not (build_folder(SCHEDULER) / "kube-scheduler").exists()


def test_a_second_process_waits_for_the_first_to_build(tmp_path: Path) -> None:
    """The lock is held by an open file of ours; flock tells files apart, not processes."""
    go(tmp_path / "path")
    folder = build_folder(SCHEDULER)
    folder.mkdir(parents=True)
    waiting = threading.Event()
    found: list[dict[str, Path]] = []

    def second() -> None:
        found.append(provide(["kube-scheduler"], lambda line: waiting.set() if "waiting" in line else None))

    with (folder / ".kube-scheduler.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        scheduler(folder)
    thread.join(10)
    assert found == [{"kube-scheduler": folder / "kube-scheduler"}]
    assert not (tmp_path / "path" / "calls").exists()


def test_what_is_built_decides_the_folder(tmp_path: Path) -> None:
    before = build_folder(SCHEDULER)
    assert before == build_folder(BINARIES["kube-apiserver"])
    module = tmp_path / "modules" / "kubernetes"
    module.mkdir(parents=True)
    for name in ("go.mod", "go.sum"):
        (module / name).write_bytes((binaries.GO_MODULES / "kubernetes" / name).read_bytes())
    copied = dataclasses.replace(SCHEDULER, modules=tmp_path / "modules")
    assert build_folder(copied) == before
    assert build_folder(dataclasses.replace(copied, tags="no_zfs")) != before
    with (module / "go.sum").open("a") as file:
        file.write("\n")
    changed = build_folder(copied)
    assert changed != before
    (module / "main.go").write_text("package main\n")
    assert build_folder(copied) not in (before, changed), "a program of its own counts, too"


@pytest.mark.parametrize("binary", BINARIES.values(), ids=BINARIES)
def test_every_program_is_pinned_at_the_version_that_it_must_say(binary: binaries.Binary) -> None:
    pins = (binaries.GO_MODULES / binary.module / "go.mod").read_text()
    assert re.search(rf"^(tool |\t){re.escape(binary.package)}$", pins, re.MULTILINE)
    source = next(line for line in pins.splitlines() if re.match(rf"\t{re.escape(owner(binary))} v", line))
    assert source.split()[1].lstrip("v") == binary.version.lstrip("v")


def owner(binary: binaries.Binary) -> str:
    """The module that holds the program's package."""
    return binary.package.partition("/cmd/")[0]
