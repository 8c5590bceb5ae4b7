"""`spec.model.architecture`: what decides the size and the speed of a model.

Keys are those of a Hugging Face config.json (snake_case), so that lines can be copied from there.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from berth.api.schema import Int, Model, Rule

Dimension = Annotated[Int, Field(ge=1, le=1_048_576)]


class Architecture(Model):
    """A decoder-only transformer, dense or mixture of experts, as its config.json describes it."""

    model_config = ConfigDict(alias_generator=None)

    rules = (
        Rule(
            "!has(self.num_key_value_heads) || (self.num_key_value_heads <= self.num_attention_heads && "
            "self.num_attention_heads % self.num_key_value_heads == 0)",
            "num_key_value_heads must divide num_attention_heads: copy both from config.json",
            lambda a: a.num_attention_heads % a.kv_heads == 0,
        ),
        Rule(
            "has(self.head_dim) || self.hidden_size % self.num_attention_heads == 0",
            "num_attention_heads must divide hidden_size: correct them or give head_dim",
            lambda a: a.head_dim is not None or a.hidden_size % a.num_attention_heads == 0,
        ),
        Rule(
            "!(has(self.num_local_experts) && has(self.num_experts))",
            "num_local_experts and num_experts mean the same: keep the one that config.json has",
            lambda a: a.num_local_experts is None or a.num_experts is None,
        ),
        Rule(
            "(has(self.num_local_experts) || has(self.num_experts)) == has(self.num_experts_per_tok)",
            "a mixture of experts needs num_local_experts (or num_experts) and num_experts_per_tok: give both or none",
            lambda a: (a.experts is None) == (a.num_experts_per_tok is None),
        ),
        Rule(
            "!has(self.num_experts_per_tok) || "
            "self.num_experts_per_tok <= (has(self.num_local_experts) ? self.num_local_experts : "
            "has(self.num_experts) ? self.num_experts : self.num_experts_per_tok)",
            "num_experts_per_tok must not be above the number of experts: lower it",
            lambda a: a.num_experts_per_tok is None or a.experts is None or a.num_experts_per_tok <= a.experts,
        ),
    )

    hidden_size: Dimension
    """Width of the residual stream."""
    num_hidden_layers: Annotated[Int, Field(ge=1, le=1024)]
    """Number of transformer layers."""
    num_attention_heads: Annotated[Int, Field(ge=1, le=1024)]
    """Number of query heads; tensor parallelism must divide it."""
    num_key_value_heads: Annotated[Int, Field(ge=1, le=1024)] | None = None
    """Number of key/value heads; absent: as many as query heads."""
    head_dim: Annotated[Int, Field(ge=1, le=4096)] | None = None
    """Size of one head; absent: hidden_size / num_attention_heads."""
    intermediate_size: Dimension
    """Inner width of the MLP (of one expert, if moe_intermediate_size is absent)."""
    vocab_size: Annotated[Int, Field(ge=1, le=16_777_216)]
    """Tokens in the vocabulary."""
    max_position_embeddings: Annotated[Int, Field(ge=1, le=1_073_741_824)]
    """Longest context, in tokens."""
    tie_word_embeddings: Annotated[bool, Field(strict=True)] | None = None
    """Whether the output projection shares the input embedding's weights; absent: as usual for model_type."""
    num_local_experts: Annotated[Int, Field(ge=1, le=4096)] | None = None
    """Experts per layer (Mixtral's name); absent: dense."""
    num_experts: Annotated[Int, Field(ge=1, le=4096)] | None = None
    """Experts per layer (Qwen's name); absent: dense."""
    num_experts_per_tok: Annotated[Int, Field(ge=1, le=4096)] | None = None
    """Experts each token is sent to."""
    moe_intermediate_size: Dimension | None = None
    """Inner width of one expert; absent: intermediate_size."""
    shared_expert_intermediate_size: Dimension | None = None
    """Inner width of the expert that every token passes; absent: none."""
    sliding_window: Annotated[Int, Field(ge=1, le=1_073_741_824)] | None = None
    """Tokens a layer attends back to; absent: all."""
    model_type: Annotated[str, Field(max_length=64)] | None = None
    """Family, such as llama; decides what config.json leaves out, such as gated MLPs."""

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Elements of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def experts(self) -> int | None:
        """Experts per layer; None for a dense model."""
        return self.num_local_experts or self.num_experts
