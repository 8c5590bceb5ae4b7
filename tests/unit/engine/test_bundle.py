"""What travels to the pod: small, complete, and runnable with a bare Python."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from berth.engine import bundle
from berth.engine.contract import Exit

ALLOWED = {"numpy", "ray", "triton_python_backend_utils", "tensorrt_llm", "berth"}


def write(directory: Path) -> None:
    for path, text in bundle.library().items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_fits_a_config_map_several_times() -> None:
    files = {**bundle.library(), **bundle.repository()}
    assert "berth/__init__.py" not in files
    assert set(bundle.repository()) == {"config.pbtxt", "1/model.py"}
    assert sum(len(bundle.config_map_key(path)) + len(text.encode()) for path, text in files.items()) < 256 * 1024
    keys = [bundle.config_map_key(path) for path in files]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) for key in keys)


def test_imports_only_the_standard_library_and_what_the_image_has() -> None:
    for path, text in bundle.library().items():
        if not path.endswith(".py"):
            json.loads(text)
            continue
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                if names == ["berth"]:
                    assert {alias.name for alias in node.names} == {"labels"}, path
                assert node.module != "berth" or path.endswith("contract.py")
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names | ALLOWED, f"{path} imports {name}"
                assert top != "berth" or name == "berth" or name.startswith("berth.engine"), f"{path} imports {name}"


def test_the_launcher_starts_from_the_bundle_alone(tmp_path: Path) -> None:
    write(tmp_path)
    command = [sys.executable, "-S", "-m", "berth.engine.launcher", "--role=worker"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (Exit.USAGE, "Usage: a worker needs --leader HOST\n")
