"""Volumes are folders; what cannot be one is said with the remedy."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from berth.local.kubelet.objects import Missing, References
from berth.local.kubelet.volumes import PodFolders, make_volumes
from tests.unit.local.kubelet_api import FakeApi, pod

OBJECTS = (
    {
        "kind": "ConfigMap",
        "metadata": {"name": "files"},
        "data": {"a__b.py": "text"},
        "binaryData": {"raw": base64.b64encode(b"\x00\x01").decode()},
    },
    {"kind": "Secret", "metadata": {"name": "keys"}, "data": {"id": base64.b64encode(b"k").decode()}},
)


async def made(folder: Path, volume: dict[str, Any], storage: Path | None = None) -> Path:
    folders = PodFolders(folder / "disk", folder / "memory", storage)
    references = References(FakeApi(*OBJECTS), "default")  # type: ignore[arg-type]
    addresses = {"podIP": "127.9.1.2", "hostIP": "127.9.1.1"}
    found = await make_volumes(pod({}, volumes=[{"name": "v", **volume}]), folders, addresses, references)
    return found["v"]


async def test_config_maps_put_their_items_at_their_paths(tmp_path: Path) -> None:
    items = [{"key": "a__b.py", "path": "a/b.py"}]
    folder = await made(tmp_path, {"configMap": {"name": "files", "items": items}})
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*")] == ["a", "a/b.py"]
    assert (folder / "a/b.py").read_text() == "text"


async def test_without_items_every_key_is_a_file(tmp_path: Path) -> None:
    folder = await made(tmp_path, {"configMap": {"name": "files"}})
    assert (folder / "raw").read_bytes() == b"\x00\x01"
    assert (await made(tmp_path / "2", {"secret": {"secretName": "keys"}}) / "id").read_text() == "k"


async def test_the_downward_api_as_files(tmp_path: Path) -> None:
    items = [{"path": "me/ip", "fieldRef": {"fieldPath": "status.podIP"}}]
    assert (await made(tmp_path, {"downwardAPI": {"items": items}}) / "me/ip").read_text() == "127.9.1.2"


async def test_memory_is_memory_and_the_rest_is_disk(tmp_path: Path) -> None:
    assert await made(tmp_path, {"emptyDir": {"medium": "Memory"}}) == tmp_path / "memory" / "v"
    assert (await made(tmp_path, {"emptyDir": {}})).is_relative_to(tmp_path / "disk")


async def test_a_claim_is_a_folder_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / "store" / "models").mkdir(parents=True)
    claim = {"persistentVolumeClaim": {"claimName": "models"}}
    assert await made(tmp_path, claim, tmp_path / "store") == tmp_path / "store" / "models"
    with pytest.raises(Missing, match=r'claim "models" .* no storage \(--storage DIR of up\)'):
        await made(tmp_path, claim)
    with pytest.raises(Missing, match="is no folder"):
        await made(tmp_path, {"persistentVolumeClaim": {"claimName": "other"}}, tmp_path / "store")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "none"}}, 'configmap "none" not found'),
        ({"configMap": {"name": "files", "items": [{"key": "none", "path": "x"}]}}, "no key none"),
        ({"configMap": {"name": "files", "items": [{"key": "raw", "path": "../../x"}]}}, "leaves its volume"),
        ({"hostPath": {"path": "/etc"}}, "no hostPath volumes: use configMap"),
        ({"projected": {"sources": []}}, "set automountServiceAccountToken: false"),
    ],
)
async def test_what_cannot_be_mounted_says_why(tmp_path: Path, volume: dict[str, Any], message: str) -> None:
    with pytest.raises(Missing, match=message):
        await made(tmp_path, volume)


async def test_an_optional_source_that_is_missing_is_an_empty_folder(tmp_path: Path) -> None:
    folder = await made(tmp_path, {"configMap": {"name": "none", "optional": True}})
    assert list(folder.iterdir()) == []
