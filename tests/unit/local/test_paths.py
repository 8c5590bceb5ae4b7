"""Paths of a container lead to the pod's folders, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from berth.local.kubelet.paths import PathMap


@pytest.fixture
def paths(tmp_path: Path) -> PathMap:
    for name in ("lib", "model", "shm"):
        (tmp_path / name).mkdir()
    mounts = {"/opt/berth/lib": "lib", "/models/llm": "model", "/dev/shm/": "shm"}
    return PathMap(tmp_path / "root", {path: tmp_path / name for path, name in mounts.items()})


@pytest.mark.parametrize(
    ("given", "rewritten"),
    [
        ("/opt/berth/lib", "ROOT/opt/berth/lib"),
        ("/opt/berth/lib/x.py", "ROOT/opt/berth/lib/x.py"),
        ("--model-repository=/models", "--model-repository=ROOT/models"),
        ("/models/llm:/opt/berth/lib,/dev/shm/a", "ROOT/models/llm:ROOT/opt/berth/lib,ROOT/dev/shm/a"),
        ("/dev/null", "/dev/null"),
        ("/models/other", "/models/other"),
        ("/opt/berth/library", "/opt/berth/library"),
        ("/home/models/llm", "/home/models/llm"),
        ("https://host/models/llm", "https://host/models/llm"),
        ("", ""),
    ],
)
def test_only_mounts_and_the_folders_above_them_are_rewritten(
    paths: PathMap, tmp_path: Path, given: str, rewritten: str
) -> None:
    assert paths.rewrite(given) == rewritten.replace("ROOT", str(tmp_path / "root"))


def test_a_mount_lies_in_the_folder_above_it(paths: PathMap, tmp_path: Path) -> None:
    (tmp_path / "model" / "config").write_text("x")
    repository = paths.host("/models")
    assert [each.name for each in repository.iterdir()] == ["llm"]
    assert (repository / "llm" / "config").read_text() == "x"


def test_a_mount_inside_another_is_found_below_it(tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
    paths = PathMap(tmp_path / "root", {"/data/in": tmp_path / "inner", "/data": tmp_path / "outer"})
    (tmp_path / "inner" / "file").write_text("x")
    assert (paths.host("/data") / "in" / "file").read_text() == "x"


def test_without_mounts_nothing_is_rewritten(tmp_path: Path) -> None:
    assert PathMap(tmp_path, {}).rewrite("/tmp:/models") == "/tmp:/models"


def test_a_second_life_finds_the_mounts_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for _ in range(2):
        paths = PathMap(tmp_path / "root", {"/data": tmp_path / "data"})
    assert paths.host("/data").is_dir()
