"""LeaderWorkerSet, the peer that Berth is measured beside: its sources, and its installation by its own chart."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

from berth.local import binaries
from e2e.cluster import images, programs
from e2e.cluster.shell import run
from e2e.site import Site
from e2e.support.berth import ON_CONTROL_PLANE

VERSION: Final = "v0.9.0"


def module() -> Path:
    """The folder of its sources."""
    download = run("go", "mod", "download", "-json", f"sigs.k8s.io/lws@{VERSION}")
    return Path(json.loads(download)["Dir"])


def install(site: Site) -> None:
    """From the module that its program is built of. Its webhook may answer later than this returns."""
    program = binaries.provide([programs.LEADER_WORKER_SET])["lws"]
    image = images.program("lws", program, "manager")
    site.cluster.load(image, [site.cluster.control_plane])
    repository, _, tag = image.name.rpartition(":")
    values = {
        "image": {"manager": {"repository": repository, "tag": tag, "pullPolicy": "Never"}},
        "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 65532},
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        **ON_CONTROL_PLANE,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        what = ["upgrade", "--install", "lws", str(module() / "charts" / "lws"), f"--values={file.name}"]
        where = ["--namespace=lws-system", "--create-namespace", "--wait", "--timeout=4m"]
        run(site.cluster.helm, *what, *where, environment=site.cluster.kubectl.environment())
