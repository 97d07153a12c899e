"""Bamba: Mamba-2 layers, and attention in some."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.loader.fields import MAX_LAYERS
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes
from galley.models.mamba2 import read_mamba2


def bamba(model_info: ModelInfo) -> DecoderSpec:
    """Half of each head is rotated."""
    config = model_fields(model_info)
    whole = ModelFields({"partial_rotary_factor": 0.5, **config.values}, config.where)
    sizes = read_sizes(whole, eps=1e-5, partial_rotary=True)
    layers = config.values.get("attn_layer_indices") or []
    if not isinstance(layers, list) or not all(
        isinstance(i, int) and 0 <= i < MAX_LAYERS for i in layers
    ):
        raise config.wrong("attn_layer_indices", "a list of layers")
    return replace(
        decoder(sizes, [_layer(config, sizes, i, i in layers) for i in range(sizes.layers)]),
        norm=RMSNormSpec("model.final_layernorm", sizes.hidden, sizes.eps),
    )


def _layer(config: ModelFields, sizes: Sizes, index: int, attends: bool) -> LayerSpec:
    prefix = f"model.layers.{index}"
    bias = config.flag("attention_bias", False)
    return LayerSpec(
        mixer=(
            attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias)
            if attends
            else read_mamba2(config, f"{prefix}.mamba", sizes.hidden, sizes.eps)
        ),
        mlp=mlp(sizes, f"{prefix}.feed_forward", config.flag("mlp_bias", False)),
        mixer_norm=RMSNormSpec(f"{prefix}.input_layernorm", sizes.hidden, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.pre_ff_layernorm", sizes.hidden, sizes.eps),
    )
