"""The real helm and kubectl, on one cluster, with folders of their own: nothing of the user's is read or written."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[3] / "charts" / "berth"
Manifest = dict[str, Any]


class Refused(Exception):
    """A command ended with an error; the message is what it said."""


@dataclass(frozen=True)
class Helm:
    program: Path
    kubectl: Path
    kubeconfig: Path
    home: Path

    @property
    def major(self) -> int:
        return 3 if self.program.name == "helm3" else 4

    async def __call__(self, *arguments: str | Path, values: Manifest | None = None) -> str:
        """Output of `helm arguments`, with `values` as a file of values. Raises Refused."""
        if values is not None:
            path = self.home / f"values-{abs(hash(yaml.safe_dump(values)))}.yaml"
            path.write_text(yaml.safe_dump(values))
            arguments = (*arguments, "--values", path)
        return await self._run(self.program, *arguments)

    async def apply(self, *arguments: str | Path) -> str:
        """Output of `kubectl arguments`. Raises Refused."""
        return await self._run(self.kubectl, *arguments)

    async def template(self, *arguments: str, values: Manifest | None = None, chart: Path = CHART) -> list[Manifest]:
        """What the chart renders for release `berth`, without asking a cluster."""
        rendered = await self("template", "berth", chart, *arguments, values=values)
        return [document for document in yaml.safe_load_all(rendered) if document]

    async def _run(self, program: Path, *arguments: str | Path) -> str:
        own = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            env={**os.environ, **own, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.home)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        if process.returncode:
            raise Refused(errors.decode())
        return output.decode()
