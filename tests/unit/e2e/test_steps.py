"""What the cluster of the end-to-end tests is built of: made once, whole or not at all, the same bytes again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from e2e.cluster import archive, steps
from e2e.cluster.archive import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return steps.cache()


def fill(place: Path) -> None:
    (place / "file").write_text("content")


def test_what_is_there_is_not_made_again(cache: Path) -> None:
    made = []

    def make(place: Path) -> None:
        made.append(place)
        fill(place)

    first = steps.made("part", ["a"], make)
    assert (first / "file").read_text() == "content"
    assert steps.made("part", ["a"], make) == first
    assert len(made) == 1


def test_a_changed_input_makes_another_and_removes_the_old_one(cache: Path) -> None:
    kept = steps.made("part-of-another-name", ["a"], fill)
    old = steps.made("part", ["a"], fill)
    new = steps.made("part", ["b"], fill)
    assert new != old
    assert not old.exists()
    assert kept.exists()


def test_what_was_interrupted_is_made_anew(cache: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        steps.made("part", ["a"], fail)
    assert sorted(path.name for path in steps.made("part", ["a"], fill).iterdir()) == ["file"]


def test_inputs_count_by_content_name_and_mode(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("x")
    seen = {steps.digest([folder])}
    (folder / "a").chmod(0o755)
    seen.add(steps.digest([folder]))
    (folder / "a").rename(folder / "b")
    seen.add(steps.digest([folder]))
    (folder / "b").write_text("y")
    seen.add(steps.digest([folder]))
    assert len(seen) == 4
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "b.pyc").write_text("z")
    assert steps.digest([folder]) in seen


def test_an_image_is_the_same_bytes_and_holds_a_shared_layer_once(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "bin").mkdir(parents=True)
    (low / "bin" / "program").write_text("#!")
    (low / "bin" / "program").chmod(0o755)
    (low / "link").symlink_to("bin/program")
    high.mkdir()
    (high / "config").write_text("x")
    images = [Image("one:1", [low], ["/bin/program"]), Image("two:2", [low, high], environment={"A": "b"}, user="5:5")]
    for name in ("first", "second"):
        archive.write(tmp_path / name, images)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with tarfile.open(tmp_path / "first") as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert [image["RepoTags"] for image in manifest] == [["one:1"], ["two:2"]]
        assert manifest[0]["Layers"] == manifest[1]["Layers"][:1]
        assert len([name for name in names if name.endswith(".tar.gz")]) == 2
        with tarfile.open(fileobj=tar.extractfile(manifest[0]["Layers"][0])) as layer:
            entries = {entry.name: entry for entry in layer}
    assert entries["bin/program"].mode & 0o111
    assert entries["link"].linkname == "bin/program"
    assert {(entry.uid, entry.mtime) for entry in entries.values()} == {(0, 0)}
