"""Granite 3 and 4 (dense), HyperCLOVA X and Granite with windows: Llama with multipliers of
embeddings, scores, residuals and logits."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import ModelFields, attention_kinds, model_fields, read_rotary, window_of
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, biased_layers, decoder, read_sizes, with_attention


def granite(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    return _scaled(config, sizes, biased_layers(config, sizes))


def hyperclovax(model_info: ModelInfo) -> DecoderSpec:
    """Norms of each block's output too, by config; logits are multiplied, not divided."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    layers = biased_layers(config, sizes)
    if config.flag("use_post_norm", True):
        layers = [
            replace(
                layer,
                mixer_out_norm=RMSNormSpec(f"model.layers.{i}.post_norm1", sizes.hidden, sizes.eps),
                mlp_out_norm=RMSNormSpec(f"model.layers.{i}.post_norm2", sizes.hidden, sizes.eps),
            )
            for i, layer in enumerate(layers)
        ]
    model = _scaled(config.with_defaults(attention_multiplier=sizes.head_dim**-0.5), sizes, layers)
    return replace(model, logits_scale=config.above_zero("logits_scaling", 1.0))


def granite_swa(model_info: ModelInfo) -> DecoderSpec:
    """Sinks, windows on three layers of four, and a rotary base of each layer, or no positions."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    layers = biased_layers(config, sizes)
    return _scaled(config, sizes, with_sinks(config, sizes, layers))


def with_sinks(config: ModelFields, sizes: Sizes, layers: list[LayerSpec]) -> list[LayerSpec]:
    """The layers with sinks, windows and rotary embeddings as `granite_swa` has them."""
    kinds = attention_kinds(
        config, sizes.layers, lambda i: "sliding_attention" if i % 4 else "full_attention"
    )
    window, thetas = window_of(config, kinds), config.values.get("layer_rope_theta")
    if thetas is not None and (not isinstance(thetas, list) or len(thetas) != sizes.layers):
        raise config.wrong("layer_rope_theta", f"{sizes.layers} numbers")
    changed = []
    for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        rotary = None if thetas and not thetas[i] else sizes.rotary
        if thetas and thetas[i]:
            rope = {**config.table("rope_parameters"), "rope_theta": thetas[i]}
            rotary = read_rotary(config.replaced(rope_parameters=rope), sizes.head_dim, 10000.0)
        changed.append(
            with_attention(
                layer,
                rotary=rotary,
                window=window if kind == "sliding_attention" else 0,
                sinks=Part(f"model.layers.{i}.self_attn.sinks", (sizes.heads,)),
            )
        )
    return changed


def _scaled(config: ModelFields, sizes: Sizes, layers: list[LayerSpec]) -> DecoderSpec:
    scale = config.number("attention_multiplier", 1.0)
    residual = config.number("residual_multiplier", 1.0)
    layers = [replace(with_attention(one, scale=scale), residual=residual) for one in layers]
    return replace(
        decoder(sizes, layers),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logits_scale=1 / config.above_zero("logits_scaling", 1.0),
    )
