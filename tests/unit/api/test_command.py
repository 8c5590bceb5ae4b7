"""`berth crd`."""

from __future__ import annotations

from pathlib import Path

import yaml
from click.testing import CliRunner

from berth.api.crd import RESOURCES, files
from berth.cli import main


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["crd", *arguments])
    return result.exit_code, result.output


def test_writes_one_file_per_kind_and_finds_no_drift_in_them(tmp_path: Path) -> None:
    assert run("--output-dir", str(tmp_path)) == (0, "".join(f"wrote {tmp_path / name}\n" for name in files()))
    assert run("--output-dir", str(tmp_path), "--check") == (0, "")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "crds"
    assert run("--output-dir", str(folder)) == (1, f"Error: --output-dir {folder}: Not a directory\n")


def test_check_names_what_differs_and_the_remedy(tmp_path: Path) -> None:
    run("--output-dir", str(tmp_path))
    (tmp_path / "berth.dev_gpupools.yaml").write_text("kind: Nothing\n")
    (tmp_path / "berth.dev_forgotten.yaml").write_text("")
    code, output = run("--output-dir", str(tmp_path), "--check")
    assert code == 1
    assert "(berth.dev_forgotten.yaml, berth.dev_gpupools.yaml): run `berth crd`" in output


def test_dash_prints_a_stream_for_kubectl() -> None:
    code, output = run("--output-dir", "-")
    assert code == 0
    assert [crd["spec"]["names"]["kind"] for crd in yaml.safe_load_all(output)] == [r.kind for r in RESOURCES]


def test_check_compatible_lists_what_breaks(tmp_path: Path) -> None:
    run("--output-dir", str(tmp_path))
    assert run("--check-compatible", str(tmp_path)) == (0, "")
    released = tmp_path / "berth.dev_llmdeployments.yaml"
    released.write_text(released.read_text().replace("maximum: 1000\n", "maximum: 2000\n"))
    (tmp_path / "berth.dev_lost.yaml").write_text("")
    code, output = run("--check-compatible", str(tmp_path))
    assert code == 1
    assert "berth.dev_lost.yaml was removed" in output
    assert "spec.replicas maximum was 2000, is 1000" in output


def test_check_compatible_needs_a_release(tmp_path: Path) -> None:
    code, output = run("--check-compatible", str(tmp_path))
    assert code == 1
    assert "holds no CRDs: name the folder of a release" in output
