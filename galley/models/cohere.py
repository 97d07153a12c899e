"""Cohere Command-R and Command-R 7B (Cohere 2): both blocks of a layer read one norm, the rotary
embedding is interleaved, logits are scaled."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec, PerHeadLayerNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import (
    ModelFields,
    attention_kinds,
    every_nth_full,
    model_fields,
    window_of,
)
from galley.models.decoder import DecoderSpec, ParallelLayerSpec
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes


def cohere(model_info: ModelInfo) -> DecoderSpec:
    config = cohere_fields(model_info)
    sizes = cohere_sizes(config)
    mixers = [cohere_attention(config, sizes, i) for i in range(sizes.layers)]
    if config.flag("use_qk_norm", False):
        mixers = [_with_norms(mixer, sizes, i) for i, mixer in enumerate(mixers)]
    return _decoder(config, sizes, mixers)


def cohere2(model_info: ModelInfo) -> DecoderSpec:
    """Layers with a window are rotated, those that see all tokens are not."""
    config = cohere_fields(model_info)
    sizes = cohere_sizes(config)
    pattern = config.integer("sliding_window_pattern", 4, least=1)
    kinds = attention_kinds(config, sizes.layers, every_nth_full(pattern))
    window = window_of(config, kinds)
    mixers = []
    for i, kind in enumerate(kinds):
        mixer = cohere_attention(config, sizes, i)
        sliding = kind == "sliding_attention"
        mixers.append(replace(mixer, window=window) if sliding else replace(mixer, rotary=None))
    return _decoder(config, sizes, mixers)


def cohere_fields(model_info: ModelInfo) -> ModelFields:
    return model_fields(model_info).with_defaults(tie_word_embeddings=True, logit_scale=0.0625)


def cohere_sizes(config: ModelFields) -> Sizes:
    sizes = read_sizes(config, interleaved=True)
    return replace(sizes, eps=config.number("layer_norm_eps", 1e-5))


def cohere_attention(config: ModelFields, sizes: Sizes, index: int) -> AttentionSpec:
    bias = config.flag("attention_bias", False)
    prefix = f"model.layers.{index}.self_attn"
    return attention(sizes, prefix, qkv_bias=bias, out_bias=bias)


def _with_norms(mixer: AttentionSpec, sizes: Sizes, index: int) -> AttentionSpec:
    prefix, d = f"model.layers.{index}.self_attn", sizes.head_dim
    q = Part(f"{prefix}.q_norm.weight", (sizes.heads, d))
    k = Part(f"{prefix}.k_norm.weight", (sizes.kv_heads, d))
    return replace(
        mixer,
        q_norm=PerHeadLayerNormSpec((q,), d, sizes.eps),
        k_norm=PerHeadLayerNormSpec((k,), d, sizes.eps),
    )


def _decoder(config: ModelFields, sizes: Sizes, mixers: list[AttentionSpec]) -> DecoderSpec:
    layers = [
        ParallelLayerSpec(
            mixer=mixer,
            mlp=mlp(sizes, f"model.layers.{i}.mlp"),
            norm=cohere_norm(sizes, f"model.layers.{i}.input_layernorm"),
        )
        for i, mixer in enumerate(mixers)
    ]
    return replace(
        decoder(sizes, layers),
        norm=cohere_norm(sizes, "model.norm"),
        logits_scale=config.above_zero("logit_scale"),
    )


def cohere_norm(sizes: Sizes, name: str) -> LayerNormSpec:
    return LayerNormSpec(name, sizes.hidden, sizes.eps, bias=False)
