"""Model geometry: what of an architecture decides memory and time. Built-in catalogue and Hugging Face config.json.

Parameter counts leave out norms and biases (below 0.1 % of any model here). Invariant: `head_dim * heads` need not be
`hidden`; `heads` is a multiple of `kv_heads`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final


@dataclass(frozen=True)
class ModelSpec:
    """Geometry of a decoder-only transformer, in the words of the literature."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward block; of one expert in a mixture of experts."""
    vocab: int
    max_context: int
    gated: bool = True
    """Three feed-forward matrices (SwiGLU and its kind) instead of two."""
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0
    """Width of the feed-forward block that every token passes besides its experts."""
    tied_embeddings: bool = False
    parallel_residual: bool = False
    """Attention and feed-forward run side by side, so that a layer pays one all-reduce, not two."""
    kv_latent: int = 0
    """Multi-head latent attention: elements of the KV cache per token and layer, which no head has for itself."""
    query_latent: int = 0
    """Width that latent attention compresses queries to; 0: it does not."""
    rope_dim: int = 0
    """Part of a head, and of `kv_latent`, that carries the position."""
    value_dim: int = 0
    """Size of a value head under latent attention; there `head_dim` is that of queries and keys."""
    dense_layers: int = 0
    """Layers of a mixture of experts that have an ordinary feed-forward block instead."""
    dense_intermediate: int = 0
    """Width of that block."""

    @property
    def all_reduces(self) -> int:
        """All-reduces of one layer under tensor parallelism."""
        return 1 if self.parallel_residual else 2

    @property
    def attention_parameters(self) -> int:
        """Query, key, value and output projections of one layer."""
        if self.kv_latent:
            query = self.heads * self.head_dim
            queries = self.query_latent * (self.hidden + query) if self.query_latent else self.hidden * query
            expanded = self.heads * (self.head_dim - self.rope_dim + self.value_dim)
            keys_and_values = self.hidden * self.kv_latent + (self.kv_latent - self.rope_dim) * expanded
            return queries + keys_and_values + self.heads * self.value_dim * self.hidden
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mixture_layers(self) -> int:
        """Layers with experts; all of them where there are none."""
        return self.layers - self.dense_layers

    @property
    def expert_parameters(self) -> float:
        """One expert, as a mean over all layers; the whole feed-forward block of a dense model."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate * self.mixture_layers / self.layers

    @property
    def shared_parameters(self) -> float:
        """Feed-forward weights that every token of a mixture uses, router included, as a mean over layers."""
        if not self.experts:
            return 0
        matrix = (3 if self.gated else 2) * self.hidden
        mixture = self.mixture_layers * (self.hidden * self.experts + matrix * self.shared_intermediate)
        return (mixture + self.dense_layers * matrix * self.dense_intermediate) / self.layers

    @property
    def layer_parameters(self) -> float:
        return self.attention_parameters + self.shared_parameters + max(self.experts, 1) * self.expert_parameters

    @property
    def body_parameters(self) -> int:
        """All weights but embeddings and output head."""
        return round(self.layers * self.layer_parameters)

    @property
    def active_parameters(self) -> int:
        """Weights of the body that one token is multiplied with."""
        active = max(self.experts_per_token, 1) * self.expert_parameters
        return round(self.layers * (self.attention_parameters + self.shared_parameters + active))

    @property
    def head_parameters(self) -> int:
        """The output head: vocabulary times hidden."""
        return self.vocab * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Input embedding and output head as stored: one matrix if tied, else two."""
        return self.head_parameters * (1 if self.tied_embeddings else 2)

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.embedding_parameters

    def touched_experts(self, tokens: float) -> float:
        """Experts of one layer that at least one of `tokens` tokens picks, if picks are even and independent."""
        if not self.experts:
            return 1.0
        return float(self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens))

    def kv_bytes_per_token(self, kv_bytes: float) -> float:
        """KV cache bytes of one token over all layers, before any replication of heads."""
        elements = self.kv_latent or 2 * self.kv_heads * self.head_dim
        return self.layers * elements * kv_bytes


# config.json keys by family: Llama and its kind first, then GPT-J/GPT-2, Falcon, MPT, BLOOM.
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "vocab": ("vocab_size",),
    "max_context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    "intermediate": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "moe_top_k", "num_experts_per_token"),
}
_UNGATED: Final = frozenset(
    {
        "gptj",
        "gpt2",
        "gpt_neox",
        "falcon",
        "RefinedWeb",
        "RefinedWebModel",
        "opt",
        "bloom",
        "mpt",
        "gpt_bigcode",
        "starcoder2",
    }
)
_TIED_BY_DEFAULT: Final = frozenset({"opt", "bloom", "mpt", "gpt2", "gpt_bigcode", "gemma", "gemma2", "gemma3_text"})
_LARGEST: Final = {"layers": 1024, "hidden": 2**20, "vocab": 10**8, "max_context": 2**30, "experts": 10**5}
_LARGEST_OTHER: Final = 10**7


def from_config(config: Mapping[str, Any], name: str = "custom") -> ModelSpec:
    """Reads a Hugging Face config.json. ValueError names the key that is missing or out of bounds.

    Multi-modal wrappers are read by their `text_config`: the language model is what is served token by token.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**config, **text}
    if config.get("kv_lora_rank"):
        known = ", ".join(name for name, spec in catalogue().items() if spec.kv_latent)
        raise ValueError(f"kv_lora_rank: of multi-head latent attention only the catalogue's models are known: {known}")
    kind = str(config.get("model_type", ""))
    layers, hidden, heads = (_count(config, field) for field in ("layers", "hidden", "heads"))
    kv_heads = _kv_heads(config, kind, heads)
    if heads % kv_heads:
        raise ValueError(f"{_KEYS['kv_heads'][0]}: {kv_heads} key/value heads do not divide {heads} attention heads")
    if config.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"head_dim: missing, and {heads} attention heads do not divide hidden_size {hidden}: give head_dim"
        )
    experts = _count(config, "experts", default=0)
    per_token = _count(config, "experts_per_token", default=0)
    if (experts > 0) != (per_token > 0) or per_token > experts:
        raise ValueError(f"num_experts_per_tok: {per_token} of {experts} experts: give both, at most all experts")
    intermediate = _bounded(config, "moe_intermediate_size", 0) if experts else 0
    shared = _bounded(config, "shared_expert_intermediate_size", 0)
    return ModelSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_bounded(config, "head_dim", hidden // heads),
        intermediate=intermediate or _count(config, "intermediate", default=4 * hidden),
        vocab=_count(config, "vocab"),
        max_context=_count(config, "max_context", default=2048),
        gated=kind not in _UNGATED,
        experts=experts,
        experts_per_token=per_token,
        shared_intermediate=shared,
        tied_embeddings=bool(config.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT)),
        parallel_residual=_parallel_residual(config, kind),
    )


def _parallel_residual(config: Mapping[str, Any], kind: str) -> bool:
    if kind == "falcon":
        return bool(config.get("parallel_attn", True) or config.get("new_decoder_architecture"))
    return kind == "gptj" or (kind == "gpt_neox" and bool(config.get("use_parallel_residual", True)))


def _kv_heads(config: Mapping[str, Any], kind: str, heads: int) -> int:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    attention = config.get("attn_config")  # MPT
    if kind == "mpt" and isinstance(attention, Mapping) and attention.get("kv_n_heads"):
        return _bounded(attention, "kv_n_heads", heads)
    return _count(config, "kv_heads", default=heads)


def _count(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    keys = _KEYS[field]
    for key in keys:
        if config.get(key) is not None:
            return _bounded(config, key, 0, _LARGEST.get(field, _LARGEST_OTHER), lowest=0 if default == 0 else 1)
    if default is None:
        raise ValueError(f"{keys[0]}: missing from the model's config: give {' or '.join(keys)}")
    return default


def _bounded(config: Mapping[str, Any], key: str, default: int, largest: int = _LARGEST_OTHER, lowest: int = 0) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= largest:
        raise ValueError(f"{key}: {value!r} must be a whole number from {lowest} to {largest}")
    return value


@cache
def catalogue() -> Mapping[str, ModelSpec]:
    """The built-in models by canonical name, in the order of the data file."""
    entries = _data()["models"]
    return {name: ModelSpec(name=name, **{k: v for k, v in e.items() if k != "aliases"}) for name, e in entries.items()}


@cache
def _names() -> Mapping[str, str]:
    """Every accepted spelling, folded, to its canonical name."""
    return {
        _fold(spelling): name
        for name, entry in _data()["models"].items()
        for spelling in (name, *entry.get("aliases", ()))
    }


@cache
def _data() -> Any:
    return json.loads(resources.files("berth.estimator").joinpath("data/models.json").read_text())


def _fold(name: str) -> str:
    """Case, separators and the owner of a repository do not tell models apart."""
    return name.rsplit("/", 1)[-1].lower().replace("-", "").replace("_", "").replace(" ", "")


def model(name: str) -> ModelSpec:
    """The built-in model `llama-3.1-70b-instruct`, or `meta-llama/Llama-3.1-70B`; ValueError if unknown."""
    canonical = _canonical(_fold(name))
    if canonical is None:
        raise ValueError(f"model {name!r} is not in the catalogue: see `berth model list`, or give architecture")
    return catalogue()[canonical]


def _canonical(folded: str) -> str | None:
    """Known as it is, or without what repositories append: `-Instruct`, `-hf`, `-FP8`, in any number."""
    found = _names().get(folded)
    if found is not None:
        return found
    endings = (ending for ending in map(_fold, _data()["suffixes"]) if folded.endswith(ending))
    shorter = (_canonical(folded.removesuffix(ending)) for ending in endings)
    return next((name for name in shorter if name is not None), None)
