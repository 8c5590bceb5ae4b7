"""`spec.model`: the model, and the checkpoints or built engines (variants) that may be served."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from berth.api.architecture import Architecture
from berth.api.common import Backend, KvPrecision, Precision
from berth.api.placement import Parallelism, VariantName
from berth.api.schema import DnsName, ListMap, ListSet, Matches, Model, Rule

GpuType = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Matches("[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?", "must be a GPU type such as H100-SXM-80: correct it"),
]


class PersistentVolumeClaimSource(Model):
    """Weights on a volume of the same namespace, mounted read-only."""

    claim_name: DnsName
    """Name of the PersistentVolumeClaim."""
    path: (
        Annotated[
            str,
            Field(min_length=1, max_length=256),
            Matches(
                "[A-Za-z0-9_][-A-Za-z0-9_.]*(/[A-Za-z0-9_][-A-Za-z0-9_.]*)*",
                "must be a relative path of plain segments (letters, digits, '-', '_', '.', none beginning with '.'), "
                "without '..', leading '/', URL or blanks: give the folder inside the volume",
            ),
        ]
        | None
    ) = None
    """Folder inside the volume; absent: its root."""


class HuggingFaceSource(Model):
    """Weights the pod downloads from the Hugging Face hub. The operator itself never contacts it."""

    repository: Annotated[
        str,
        Field(min_length=1, max_length=193),
        Matches(
            "[A-Za-z0-9][-A-Za-z0-9_.]{0,95}/[A-Za-z0-9][-A-Za-z0-9_.]{0,95}",
            "must be a repository such as meta-llama/Llama-3.1-70B-Instruct, not a URL: give owner/name",
        ),
    ]
    """owner/name on the hub."""
    revision: (
        Annotated[
            str,
            Field(min_length=1, max_length=128),
            Matches(
                "[A-Za-z0-9][-A-Za-z0-9_.]*(/[A-Za-z0-9][-A-Za-z0-9_.]*)*",
                "must be a commit, tag or branch name of plain segments: prefer a commit, which never changes",
            ),
        ]
        | None
    ) = None
    """Commit, tag or branch; absent: the repository's default. A commit keeps all groups equal."""
    token_secret_name: DnsName | None = None
    """Secret whose key `token` becomes HF_TOKEN in the pod; absent: public repository. Berth never reads it."""


class Source(Model):
    """Where weights come from: exactly one of the members."""

    rules = (
        Rule(
            "has(self.persistentVolumeClaim) != has(self.huggingFace)",
            "exactly one of persistentVolumeClaim and huggingFace must be given: add or remove one",
            lambda source: (source.persistent_volume_claim is None) != (source.hugging_face is None),
        ),
    )

    persistent_volume_claim: PersistentVolumeClaimSource | None = None
    """A volume that already holds the weights."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of the Hugging Face hub."""


class Variant(Model):
    """One checkpoint (or set of built engines) that may be served. The planner chooses among these and nothing else."""

    rules = (
        Rule(
            "!has(self.backend) || self.backend != 'tensorrt' || "
            "(has(self.gpus) && has(self.tensorParallel) && has(self.pipelineParallel))",
            "backend tensorrt serves engines, built for certain GPUs and one layout: give gpus, tensorParallel "
            "and pipelineParallel",
            lambda variant: (
                variant.backend != "tensorrt"
                or (variant.gpus and variant.tensor_parallel and variant.pipeline_parallel)
            ),
        ),
    )

    name: VariantName
    """Name that allocations refer to; unique in the list."""
    precision: Precision
    """Precision of the weights."""
    kv_precision: KvPrecision | None = None
    """Precision of the KV cache; absent: 16 bit."""
    source: Source
    """Where the weights come from."""
    gpus: Annotated[tuple[GpuType, ...], Field(min_length=1, max_length=16), ListSet()] | None = None
    """GPU types it may run on; absent: all that support its precision."""
    tensor_parallel: Parallelism | None = None
    """The only tensor parallelism it may run with; absent: any."""
    pipeline_parallel: Parallelism | None = None
    """The only pipeline parallelism it may run with; absent: any."""
    backend: Backend | None = None
    """Backend that reads it; absent: engine.backend."""

    @property
    def effective_kv_precision(self) -> KvPrecision:
        """Precision of the KV cache; 16 bit unless given."""
        return self.kv_precision or ("fp16" if self.precision == "fp16" else "bf16")


class LanguageModel(Model):
    """What is served."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=100),
        Matches("[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", "must be a model name such as llama-3.1-70b-instruct"),
    ]
    """Name in the built-in catalogue; with `architecture`, any name."""
    architecture: Architecture | None = None
    """Shape of a model that the catalogue does not know."""
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=16), ListMap("name")]
    """What may be served."""

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)
