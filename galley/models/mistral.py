"""Mistral, Ministral and CWM: no biases, windows on all layers, on some or on none."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.models.config import LayerKind, ModelFields, attention_kinds, model_fields, window_of
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes, with_attention


def mistral(model_info: ModelInfo) -> DecoderSpec:
    """Every layer has the window that the config names."""
    config = model_fields(model_info)
    if config.has("layer_types"):
        raise ModelError(f"{config.where}: layer_types is not supported for Mistral")
    sizes = read_sizes(config)
    window = config.optional_int("sliding_window") or 0
    return decoder(sizes, [layer(sizes, i, window=window) for i in range(sizes.layers)])


def ministral(model_info: ModelInfo) -> DecoderSpec:
    """Layers have a window by `layer_types`; without them all have it, if the config names one."""
    config = model_fields(model_info)
    default: LayerKind = "sliding_attention" if config.has("sliding_window") else "full_attention"
    return _by_kind(config, lambda i: default)


def cwm(model_info: ModelInfo) -> DecoderSpec:
    """Three layers of four have a window; the first has none."""
    return _by_kind(
        model_fields(model_info), lambda i: "sliding_attention" if i % 4 else "full_attention"
    )


def _by_kind(config: ModelFields, default: Callable[[int], LayerKind]) -> DecoderSpec:
    sizes = read_sizes(config)
    kinds = attention_kinds(config, sizes.layers, default)
    window = window_of(config, kinds)
    layers = [
        layer(sizes, i, window=window if kind == "sliding_attention" else 0)
        for i, kind in enumerate(kinds)
    ]
    return decoder(sizes, layers)


def ministral3(model_info: ModelInfo) -> DecoderSpec:
    """Queries grow with their position."""
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=1_000_000.0)
    window = config.optional_int("sliding_window") or 0
    key = "rope_parameters" if config.table("rope_parameters") else "rope_scaling"
    rope = config.within(key)
    growth = None
    if rope.number("llama_4_scaling_beta", 0.0):
        every = rope.integer("original_max_position_embeddings", least=1)
        growth = (rope.number("llama_4_scaling_beta"), every)
    layers = []
    for i in range(sizes.layers):
        one = layer(sizes, i, window=window)
        layers.append(with_attention(one, q_rotary=replace(sizes.rotary, growth=growth)))
    return decoder(sizes, layers)
