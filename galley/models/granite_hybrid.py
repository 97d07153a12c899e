"""Granite 4 hybrid: Mamba-2 layers, attention in some, and a shared MLP beside experts."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Score
from galley.layers.norm import RMSNormSpec
from galley.models.config import ModelFields, layer_kinds, model_fields
from galley.models.decoder import DecoderSpec, FeedForwardSpec, LayerSpec, MixerSpec
from galley.models.granite_moe import granite_experts, shared_mlp
from galley.models.llama import Sizes, attention, decoder, read_sizes
from galley.models.mamba2 import read_mamba2
from galley.models.mixture import mixture, read_routing


def granite_hybrid(model_info: ModelInfo) -> DecoderSpec:
    """Multipliers as in Granite; positions only where the config asks for them."""
    config = model_fields(model_info)
    config.require("position_embedding_type", None, "nope", "rope")
    sizes = read_sizes(config)
    kinds = layer_kinds(config, sizes.layers, ("linear_attention", "full_attention"))
    scaling = config.number("logits_scaling", 1.0)
    if not scaling:
        raise config.wrong("logits_scaling", "other than 0")
    return replace(
        decoder(sizes, [_layer(config, sizes, i, kind) for i, kind in enumerate(kinds)]),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logits_scale=1 / scaling,
    )


def _layer(config: ModelFields, sizes: Sizes, index: int, kind: str) -> LayerSpec:
    prefix = f"model.layers.{index}"
    mixer: MixerSpec
    if kind == "linear_attention":
        mixer = read_mamba2(config, f"{prefix}.mamba", sizes.hidden, sizes.eps)
    else:
        bias = config.flag("attention_bias", False)
        mixer = attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias)
        mixer = replace(mixer, scale=config.number("attention_multiplier", 1.0))
        if config.values.get("position_embedding_type") != "rope":
            mixer = replace(mixer, rotary=None)
    return LayerSpec(
        mixer=mixer,
        mlp=_feed_forward(config, sizes, prefix),
        mixer_norm=RMSNormSpec(f"{prefix}.input_layernorm", sizes.hidden, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.post_attention_layernorm", sizes.hidden, sizes.eps),
        residual=config.number("residual_multiplier", 1.0),
    )


def _feed_forward(config: ModelFields, sizes: Sizes, prefix: str) -> FeedForwardSpec:
    shared = shared_mlp(
        f"{prefix}.shared_mlp", sizes.hidden, config.integer("shared_intermediate_size", least=1)
    )
    if not config.integer("num_local_experts", 0):
        return shared
    routing = read_routing(config, score=Score.softmax_of_chosen)
    name = f"{prefix}.block_sparse_moe"
    parts = granite_experts(name, routing.experts, sizes.hidden, sizes.intermediate)
    return mixture(name, sizes.hidden, routing, parts, router="router.layer", shared=shared)
