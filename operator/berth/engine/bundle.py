"""The files a pod needs, as text for ConfigMaps: the library at /opt/berth/lib and the model repository.

`berth/__init__.py` is left out on purpose: in the pod `berth` is a namespace package with nothing but the engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LIBRARY_PATH: Final = "/opt/berth/lib"
REPOSITORY_PATH: Final = "/models/tensorrt_llm"
MODEL_CONFIG: Final = "1/model.yaml"
"""The one file of the repository that differs between deployments; written by the pod's renderer."""

_ENGINE: Final = Path(__file__).parent
_REPOSITORY: Final = _ENGINE / "repository"


def library() -> dict[str, str]:
    """Path under LIBRARY_PATH -> text."""
    root = _ENGINE.parents[1]
    files = [_ENGINE.parent / "labels.py", *_ENGINE.rglob("*.py"), *_ENGINE.rglob("*.json")]
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(files)
        if not path.is_relative_to(_REPOSITORY)
    }


def repository() -> dict[str, str]:
    """Path under REPOSITORY_PATH -> text, without MODEL_CONFIG."""
    return {
        path.relative_to(_REPOSITORY).as_posix(): path.read_text()
        for path in (_REPOSITORY / "config.pbtxt", _REPOSITORY / "1" / "model.py")
    }


def config_map_key(path: str) -> str:
    """ConfigMap keys hold no slash."""
    return path.replace("/", "__")
