"""Heads of attention: their sizes in config files, and the four projections under usual names."""

from __future__ import annotations

import msgspec

from galley.layers.attention import AttentionSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS
from galley.models.config import ModelFields


class HeadSizes(msgspec.Struct, frozen=True):
    """Sizes of the hidden state and of the heads."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int


def read_heads(config: ModelFields, *, grouped: bool = True) -> HeadSizes:
    """The sizes under their common names (`loader.common_keys`).

    Args:
        grouped: query heads may share KV heads.

    Raises ModelError naming a key that is missing, out of range or not supported.
    """
    hidden = config.integer("hidden_size", least=1)
    heads = config.integer("num_attention_heads", least=1, most=MAX_HEADS)
    kv_heads = heads
    if grouped:
        kv_heads = config.integer("num_key_value_heads", heads, least=1, most=MAX_HEADS)
    if not config.has("head_dim") and hidden % heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads={heads}")
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of {heads}, the number of heads")
    head_dim = config.integer("head_dim", hidden // heads, least=2, most=MAX_HEAD_DIM)
    if head_dim % 2:
        raise config.wrong("head_dim", "even")
    return HeadSizes(hidden, heads, kv_heads, head_dim)


def plain_attention(
    sizes: HeadSizes, prefix: str, rotary: Rotary | None, *, out: str = "o_proj"
) -> AttentionSpec:
    """Attention with q_proj, k_proj, v_proj and `out` under `prefix`, without biases."""
    d = sizes.head_dim
    q, kv = sizes.heads * d, sizes.kv_heads * d
    return AttentionSpec(
        q=Part(f"{prefix}.q_proj", (q, sizes.hidden)),
        k=Part(f"{prefix}.k_proj", (kv, sizes.hidden)),
        v=Part(f"{prefix}.v_proj", (kv, sizes.hidden)),
        out=Part(f"{prefix}.{out}", (sizes.hidden, q)),
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=d,
        scale=d**-0.5,
        rotary=rotary,
    )
