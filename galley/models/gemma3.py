"""Gemma 3 text: five layers with a window to one without, each kind with its own rotary table, and
norms of q and k."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.rotary import Rotary
from galley.models.config import (
    ModelFields,
    attention_kinds,
    every_nth_full,
    read_rotary,
    rope_of_kind,
    window_of,
)
from galley.models.decoder import DecoderSpec
from galley.models.gemma import (
    gemma_decoder,
    gemma_fields,
    gemma_sizes,
    head_norm,
    sandwich_layer,
)
from galley.models.llama import with_attention


def gemma3(model_info: ModelInfo) -> DecoderSpec:
    # The defaults of the first checkpoints, whose configs leave them out.
    config = gemma_fields(model_info).with_defaults(
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131072,
        sliding_window=4096,
        vocab_size=262208,
    )
    sizes = gemma_sizes(rope_of_kind(config, "full_attention").with_defaults(rope_theta=1e6))
    pattern = config.integer("sliding_window_pattern", 6, least=1)
    kinds = attention_kinds(config, sizes.layers, every_nth_full(pattern))
    window, bias = window_of(config, kinds), config.flag("attention_bias", False)
    if config.flag("use_bidirectional_attention", False):
        window = window // 2 + 1  # half of it on each side, and the token itself
    scale = config.above_zero("query_pre_attn_scalar", 256.0) ** -0.5
    soft_cap = config.number("attn_logit_softcapping", 0.0)
    local = sliding_rotary(config, sizes.head_dim)
    layers = []
    for i, kind in enumerate(kinds):
        sliding = kind == "sliding_attention"
        layer = sandwich_layer(sizes, i, window=window if sliding else 0, bias=bias)
        layer = with_attention(
            layer,
            scale=scale,
            soft_cap=soft_cap,
            rotary=local if sliding else sizes.rotary,
            q_norm=head_norm(sizes, f"model.layers.{i}.self_attn.q_norm"),
            k_norm=head_norm(sizes, f"model.layers.{i}.self_attn.k_norm"),
        )
        layers.append(layer)
    return replace(
        gemma_decoder(sizes, layers),
        logits_soft_cap=config.number("final_logit_softcapping", 0.0),
    )


def sliding_rotary(config: ModelFields, head_dim: int) -> Rotary:
    """The rotary embedding of layers with a window: `rope_local_base_freq` in older configs."""
    of_kind = rope_of_kind(config, "sliding_attention")
    if of_kind is not config:
        return read_rotary(of_kind, head_dim, 10000.0)
    return Rotary(head_dim, config.above_zero("rope_local_base_freq", 10000.0))
