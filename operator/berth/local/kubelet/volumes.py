"""The volumes of a pod as folders of this machine.

ConfigMaps and Secrets are copied once, when the pod starts; memory is memory (`/dev/shm`); claims are folders below the
one that the cluster was given as storage. Nothing else of the machine is handed to pods as a volume.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berth.local.kubelet.environment import field
from berth.local.kubelet.objects import Missing, References


@dataclass(frozen=True)
class PodFolders:
    """What a pod has on this machine: `disk` for everything, `memory` for volumes that are memory."""

    disk: Path
    memory: Path
    storage: Path | None
    """Holds a folder per PersistentVolumeClaim; None if the cluster has no storage."""

    def remove(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)
        shutil.rmtree(self.memory, ignore_errors=True)


async def make_volumes(
    pod: Mapping[str, Any], folders: PodFolders, addresses: Mapping[str, str], references: References
) -> dict[str, Path]:
    """The folder of each volume by name. Raises Missing, with the remedy where the volume can never be had."""
    made = {}
    for volume in pod["spec"].get("volumes") or ():
        name = volume["name"]
        folder = folders.disk / "volumes" / name
        if "emptyDir" in volume:
            if (volume["emptyDir"] or {}).get("medium") == "Memory":
                folder = folders.memory / name
        elif "persistentVolumeClaim" in volume:
            folder = _claim(volume, folders.storage)
        else:
            files = await _files(volume, pod, addresses, references)
            _write(folder, files)
        folder.mkdir(parents=True, exist_ok=True)
        made[name] = folder
    return made


def _claim(volume: Mapping[str, Any], storage: Path | None) -> Path:
    claim: str = volume["persistentVolumeClaim"]["claimName"]
    if storage is None or not (storage / claim).is_dir():
        where = f"{storage / claim} is no folder" if storage else "this cluster has no storage (--storage DIR of up)"
        raise Missing(f'volume "{volume["name"]}": claim "{claim}" is a folder of that name, and {where}')
    return storage / claim


async def _files(
    volume: Mapping[str, Any], pod: Mapping[str, Any], addresses: Mapping[str, str], references: References
) -> dict[str, bytes]:
    """Content by path below the volume."""
    if source := volume.get("configMap"):
        found = await references.config_map(source["name"], optional=source.get("optional", False))
        return _chosen(found, source.get("items"), f"configmap {source['name']}")
    if source := volume.get("secret"):
        found = await references.secret(source["secretName"], optional=source.get("optional", False))
        return _chosen(found, source.get("items"), f"secret {source['secretName']}")
    if source := volume.get("downwardAPI"):
        items = source.get("items") or ()
        return {item["path"]: field(item["fieldRef"]["fieldPath"], pod, addresses).encode() for item in items}
    kind = next(key for key in volume if key != "name")
    remedy = (
        "set automountServiceAccountToken: false"
        if kind == "projected"
        else "use configMap, secret, downwardAPI, emptyDir or persistentVolumeClaim"
    )
    raise Missing(f'volume "{volume["name"]}": local nodes have no {kind} volumes: {remedy}')


def _chosen(found: Mapping[str, bytes], items: Sequence[Mapping[str, Any]] | None, source: str) -> dict[str, bytes]:
    """What `items` names, at its paths; everything under its keys without."""
    if items is None:
        return dict(found)
    if missing := [item["key"] for item in items if item["key"] not in found]:
        raise Missing(f"{source} has no key {missing[0]}")
    return {item["path"]: found[item["key"]] for item in items}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Paths come from objects of the cluster: the API server refuses `..` and absolute ones, and so is it checked."""
    for path, content in files.items():
        target = Path(os.path.normpath(folder / path))
        if not target.is_relative_to(folder):
            raise Missing(f"path {path} leaves its volume")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
