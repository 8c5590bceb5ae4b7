"""Finding what Triton's stub needs, and saying precisely what is missing."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from berth.local import triton_env
from berth.local.triton_env import Interpreter, TritonEnv, Unavailable

LOCK = triton_env.LOCK


def test_the_lock_pins_two_packages_by_hash() -> None:
    lines = [line.split()[0] for line in LOCK.read_text().splitlines() if not line.startswith(" ")]
    assert lines == ["numpy==1.26.4", "nvidia-pytriton==0.7.0"]
    assert "--hash=sha256:" in LOCK.read_text()


def test_only_a_complete_environment_of_this_lock_is_found(tmp_path: Path) -> None:
    assert triton_env.find(tmp_path) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").touch()
    stamp = tmp_path / "complete.json"
    stamp.write_text(json.dumps({"version": "3.12", "lock": triton_env.digest(LOCK)}))
    env = triton_env.find(tmp_path)
    assert env == TritonEnv(tmp_path, "3.12")
    assert env.environment()["PATH"].startswith(f"{tmp_path}/bin:")
    assert env.environment()["LD_LIBRARY_PATH"].split(":")[1] == f"{tmp_path}/tritonserver/lib"
    stamp.write_text(json.dumps({"version": "3.12", "lock": "older"}))
    assert triton_env.find(tmp_path) is None


@pytest.mark.parametrize(
    ("system", "machine", "libc", "words"),
    [
        ("Darwin", "arm64", ("", ""), "Linux on x86_64, this is Darwin on arm64"),
        ("Linux", "aarch64", ("glibc", "2.36"), "this is Linux on aarch64"),
        ("Linux", "x86_64", ("glibc", "2.31"), "glibc 2.35 or newer, this is glibc 2.31"),
        ("Linux", "x86_64", ("", ""), "this is no glibc"),
    ],
)
def test_other_platforms_are_named(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, libc: tuple[str, str], words: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(Unavailable, match=words):
        triton_env.check_platform()


def test_an_interpreter_tells_its_version_and_strangers_are_skipped(tmp_path: Path) -> None:
    found = triton_env.inspect(sys.executable)
    version = "{}.{}".format(*sys.version_info)
    assert (found.version if found else None) == (version if version in triton_env.VERSIONS else None)
    assert triton_env.inspect("/bin/false") is None
    assert triton_env.inspect(str(tmp_path / "none")) is None


def test_only_a_library_that_loads_counts(tmp_path: Path) -> None:
    broken = tmp_path / "libpython3.12.so.1.0"
    assert not triton_env.loads(broken)
    broken.write_text("no library")
    assert not triton_env.loads(broken)
    assert not triton_env.loads(Path("libc.so.6"))


def offer(monkeypatch: pytest.MonkeyPatch, *found: Interpreter, fetched: Path | None = None) -> None:
    def interpreters() -> Iterator[Interpreter]:
        yield from found

    monkeypatch.setattr(triton_env, "interpreters", interpreters)
    monkeypatch.setattr(triton_env, "fetch_library", lambda interpreter, scratch: fetched)


def test_a_python_with_its_library_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare, whole = Interpreter("/a", "3.12", None), Interpreter("/b", "3.11", Path("/lib/libpython3.11.so.1.0"))
    offer(monkeypatch, bare, whole)
    assert triton_env.choose(tmp_path) is whole
    offer(monkeypatch, bare, fetched=Path("/x/libpython3.12.so.1.0"))
    assert triton_env.choose(tmp_path) == Interpreter("/a", "3.12", Path("/x/libpython3.12.so.1.0"))


def test_what_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offer(monkeypatch)
    with pytest.raises(Unavailable, match=r"needs Python 3\.12 or 3\.11: install one .* BERTH_TRITON_PYTHON"):
        triton_env.choose(tmp_path)
    offer(monkeypatch, Interpreter("/a", "3.12", None))
    with pytest.raises(Unavailable, match=r"libpython3\.12\.so\.1\.0 is missing: .*apt install libpython3\.12"):
        triton_env.choose(tmp_path)


def test_a_failed_step_shows_its_words() -> None:
    with pytest.raises(Unavailable, match="failed: out of luck"):
        triton_env._run([sys.executable, "-c", "import sys; sys.exit('out of luck')"])
    with pytest.raises(Unavailable, match="No such file"):
        triton_env._run(["/nowhere/pip"])


def test_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "berth.local.triton_env", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
