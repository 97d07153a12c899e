"""Falcon: 7B (one KV head, parallel blocks), 40B and 180B (two norms), RW (ALiBi, sequential)."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.alibi import alibi_slopes
from galley.layers.weight_specs import fuse_runs
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec, ParallelLayerSpec
from galley.models.gpt import Sizes, attention, decoder, mlp, read_sizes


def falcon(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = replace(
        read_sizes(
            config,
            eps_key="layer_norm_epsilon",
            activation_key="activation",
            activation="gelu",
            tied=True,
        ),
        intermediate=config.integer("ffn_hidden_size", 4 * config.integer("hidden_size"), least=1),
    )
    sizes = replace(sizes, kv_heads=_kv_heads(config, sizes))
    return decoder(
        sizes,
        lambda i: _layer(config, sizes, i),
        embedding="transformer.word_embeddings",
        norm=sizes.norm("transformer.ln_f"),
    )


def _kv_heads(config: ModelFields, sizes: Sizes) -> int:
    if config.flag("new_decoder_architecture", False):
        kv_heads = config.integer("num_kv_heads", sizes.heads, least=1)
        if sizes.heads % kv_heads:
            raise config.wrong("num_kv_heads", f"a divisor of {sizes.heads}, the number of heads")
        return kv_heads
    return 1 if config.flag("multi_query", True) else sizes.heads


def _layer(config: ModelFields, sizes: Sizes, index: int) -> AnyLayerSpec:
    prefix = f"transformer.h.{index}"
    bias, is_new = config.flag("bias", False), config.flag("new_decoder_architecture", False)
    name = f"{prefix}.self_attention"
    alibi = config.flag("alibi", False)
    scale = sizes.head_dim**-0.5
    apart = attention(
        sizes,
        name,
        out="dense",
        rotary=None if alibi else read_rotary(config, sizes.head_dim, 10000.0),
        qkv_bias=bias,
        out_bias=bias,
        # Falcon scales the slopes with the scores.
        slopes=tuple(scale * s for s in alibi_slopes(sizes.heads)) if alibi else None,
    )
    # For each KV head: its query heads, k, v.
    q, k, v = fuse_runs(f"{name}.query_key_value", (apart.q, apart.k, apart.v), sizes.kv_heads)
    mixer = replace(apart, q=q, k=k, v=v)
    block = mlp(sizes, f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h", bias=bias)
    input_norm = sizes.norm(f"{prefix}.input_layernorm")
    if is_new and config.integer("num_ln_in_parallel_attn", 2) == 2:
        norms = sizes.norm(f"{prefix}.ln_attn"), sizes.norm(f"{prefix}.ln_mlp")
        return ParallelLayerSpec(mixer, block, *norms)
    if is_new or config.flag("parallel_attn", True):
        return ParallelLayerSpec(mixer, block, input_norm)
    return LayerSpec(mixer, block, input_norm, sizes.norm(f"{prefix}.post_attention_layernorm"))
