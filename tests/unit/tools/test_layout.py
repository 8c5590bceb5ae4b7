"""What holds of the repository as a whole: its folders hide none of Python's modules, its release has one number."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from click.testing import CliRunner

from berth.cli import main

ROOT = Path(__file__).parents[3]


def test_the_folder_operator_is_no_package() -> None:
    """With an `__init__.py` it would hide the operator of the standard library, which everything needs."""
    assert (ROOT / "operator/berth/__init__.py").is_file()
    assert not list((ROOT / "operator").glob("__init__.*"))
    script = "import operator, berth; print(operator.__file__, berth.__file__)"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    standard, ours = map(Path, found.split())
    assert not standard.is_relative_to(ROOT)
    assert ours.is_relative_to(ROOT / "operator")


def test_the_command_says_which_release_it_is() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    result = CliRunner().invoke(main, ["--version"], prog_name="berth")
    assert (result.exit_code, result.output) == (0, f"berth, version {release}\n")


def test_folders_of_tests_are_no_packages_and_none_is_called_operator() -> None:
    folders = [each for each in (ROOT / "tests").rglob("*") if each.is_dir()]
    assert ROOT / "tests/unit/tools" in folders
    assert not [each for each in folders if each.name == "operator" or (each / "__init__.py").exists()]
