"""Gemma 2 and VaultGemma: norms around each block (before it, in VaultGemma), every
second layer with a window, soft-capped scores and logits."""

from __future__ import annotations

from typing import cast

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import attention_kinds, every_nth_full, window_of
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gemma import gemma_decoder, gemma_fields, gemma_sizes, sandwich_layer
from galley.models.llama import with_attention


def gemma2(model_info: ModelInfo) -> DecoderSpec:
    config = gemma_fields(model_info)
    sizes = gemma_sizes(config)
    kinds = attention_kinds(config, sizes.layers, every_nth_full(2))
    window, bias = window_of(config, kinds), config.flag("attention_bias", False)
    scale = config.above_zero("query_pre_attn_scalar", 256.0) ** -0.5
    soft_cap = config.number("attn_logit_softcapping", 0.0)
    layers = []
    for i, kind in enumerate(kinds):
        layer = sandwich_layer(sizes, i, window=window if "sliding" in kind else 0, bias=bias)
        layers.append(with_attention(layer, scale=scale, soft_cap=soft_cap))
    return replace(
        gemma_decoder(sizes, layers),
        logits_soft_cap=config.number("final_logit_softcapping", 0.0),
    )


def vault_gemma(model_info: ModelInfo) -> DecoderSpec:
    spec = gemma2(model_info)
    layers = [
        replace(cast(LayerSpec, layer), mixer_out_norm=None, mlp_out_norm=None)
        for layer in spec.layers
    ]
    return replace(spec, layers=layers)
